"""The queue: every cell ends as it should, whoever is killed, whoever works beside it, at next to no cost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mbrl.bench.plan import FAILED, OUTPUT, Cell, State, cleaned, failure_of, retried, settled, state_of
from mbrl.bench.queue import Queue, environment, train_command
from mbrl.io.lock import RunLock, in_use, orphaned
from mbrl.rundir.stop import Stop
from tests.bench.cells import Notes, cells, count, fake

ENDS = {"good": State.DONE, "again": State.DONE, "bad": State.FAILED, "killed": State.FAILED, "empty": State.FAILED}


def queue(todo: list[Cell], *, slots: int = 2, notes: Notes | None = None, stop: object = False) -> Queue:
    return Queue(todo, slots=slots, stop=stop, watcher=notes or Notes(), command=fake)


def in_child(work: Callable[[], object]) -> int:
    """The pid of a forked process that does `work` and ends with 0, or 99 where that raised."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def until(so: Callable[[], bool], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_two_hundred_cells_end_as_they_should_and_cost_little(tmp_path: Path) -> None:
    kinds = ["good"] * 150 + ["again"] * 25 + ["bad"] * 15 + ["killed"] * 5 + ["empty"] * 5
    Random(1).shuffle(kinds)
    todo, notes = cells(tmp_path, kinds), Notes()
    begin = time.monotonic()
    assert queue(todo, notes=notes).work()
    assert (time.monotonic() - begin) / len(todo) < 0.2
    assert [state_of(cell) for cell in todo] == [ENDS[kind] for kind in kinds]
    assert [count(cell, "begun") for cell in todo] == [1 + (kind == "again") for kind in kinds]
    assert notes.most == 2
    assert not any(in_use(cell.folder) for cell in todo)


def test_a_second_start_begins_nothing_that_has_ended(tmp_path: Path) -> None:
    todo = cells(tmp_path, ["good", "bad", "good"])
    assert queue(todo).work()
    notes = Notes()
    assert queue(todo, notes=notes).work()
    assert [count(cell, "begun") for cell in todo] == [1, 1, 1]
    assert [state for _, state, _ in notes.moves] == [State.DONE, State.FAILED, State.DONE]


def test_why_a_cell_failed_is_its_last_error_or_its_last_line(tmp_path: Path) -> None:
    bad, killed, empty = todo = cells(tmp_path, ["bad", "killed", "empty"])
    assert queue(todo, slots=1).work()
    assert failure_of(bad) == "exit code 2: error: agent.gamma must be < 1"
    assert failure_of(killed) == "exit code -9: killed by SIGKILL"
    assert failure_of(empty) == "exit code 0: ended without a result"
    assert (bad.folder / OUTPUT).read_text().endswith("a last word\n")
    assert retried(bad)
    assert queue([replace(bad, words=("silent",))]).work()
    assert failure_of(bad) == "exit code 3: without a word"  # what an earlier process said is not its reason


def test_a_failed_cell_goes_on_after_retry_and_begins_anew_after_clean(tmp_path: Path) -> None:
    good, bad = todo = cells(tmp_path, ["good", "bad"])
    queue(todo).work()
    assert not retried(good)
    assert retried(bad)
    assert settled(bad) is State.STOPPED  # its run folder is still there
    queue(todo).work()
    assert (count(good, "begun"), count(bad, "begun")) == (1, 2)
    assert not cleaned(good)
    assert cleaned(bad)
    assert (settled(bad), bad.run.exists(), (bad.folder / FAILED).exists()) == (State.QUEUED, False, False)
    assert settled(good) is State.DONE


def test_sigkill_at_random_moments_loses_and_repeats_nothing(tmp_path: Path) -> None:
    kinds = ["good"] * 110 + ["again"] * 6 + ["bad"] * 4
    Random(2).shuffle(kinds)
    todo, random = cells(tmp_path, kinds), Random(3)
    for _ in range(20):
        aim = sum(count(cell, "begun") for cell in todo) + random.randint(1, 5)
        child = in_child(queue(todo).work)
        until(lambda aim=aim: sum(count(cell, "begun") for cell in todo) >= aim)  # type: ignore[misc]
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert queue(todo).work()
    assert [state_of(cell) for cell in todo] == [ENDS[kind] for kind in kinds]
    assert [count(cell, "finished") for cell in todo] == [int(ENDS[kind] is State.DONE) for kind in kinds]


def test_a_run_whose_queue_was_killed_keeps_its_cell_and_ends(tmp_path: Path) -> None:
    slow, other = todo = cells(tmp_path, ["slow", "slow"])
    child = in_child(queue(todo).work)
    until(lambda: count(slow, "begun") + count(other, "begun") == 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert state_of(slow) is State.RUNNING
    assert orphaned(slow.folder)
    notes = Notes()
    more = [*todo, *cells(tmp_path / "more", ["good", "good"])]
    assert queue(more, slots=1, notes=notes).work()  # waits for it, with nothing beside it
    assert notes.said == ["still running, of a queue that was killed, each in a slot: 2"]
    assert [state for _, state, _ in notes.moves[:2]] == [State.DONE, State.DONE]
    for cell in todo:
        assert (count(cell, "begun"), count(cell, "finished"), state_of(cell)) == (1, 1, State.DONE)


def test_two_queues_on_one_folder_share_the_cells(tmp_path: Path) -> None:
    todo = cells(tmp_path, ["good"] * 60)
    children = [in_child(queue(todo).work) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [count(cell, "begun") for cell in todo] == [1] * 60


def test_a_stop_lets_every_run_save_and_a_second_start_goes_on(tmp_path: Path) -> None:
    todo = cells(tmp_path, ["slow", "slow", "good"])

    def work() -> None:
        stop = Stop()
        stop.listen()
        assert not queue(todo, stop=stop).work()

    child = in_child(work)
    until(lambda: all(count(cell, "begun") for cell in todo[:2]))
    time.sleep(0.1)  # the shell sets its trap
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [count(cell, "saved") for cell in todo] == [1, 1, 0]
    assert [state_of(cell) for cell in todo] == [State.STOPPED, State.STOPPED, State.QUEUED]
    assert queue([replace(cell, words=("good",)) for cell in todo]).work()
    assert [state_of(cell) for cell in todo] == [State.DONE] * 3


def test_a_cell_in_use_is_left_alone_and_seen_as_running(tmp_path: Path) -> None:
    (good,) = todo = cells(tmp_path, ["good"])
    assert state_of(good) is State.QUEUED
    assert not good.folder.exists()  # asking creates nothing
    with RunLock(good.folder) as lock:

        def work() -> None:
            lock.close()  # what a fork inherits
            assert queue(todo).work()

        assert state_of(good) is State.RUNNING
        assert not orphaned(good.folder)
        child = in_child(work)
        time.sleep(0.2)
        assert count(good, "begun") == 0
    assert os.waitpid(child, 0)[1] == 0
    assert state_of(good) is State.DONE


def test_the_process_of_a_cell_is_mbrl_train_with_its_threads_and_gpu(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, ["compute.threads=3"])
    assert train_command(cell) == [sys.executable, "-m", "mbrl", "train", "compute.threads=3", f"run_dir={cell.run}"]
    seen = environment(cell, 1)
    assert (seen["OMP_NUM_THREADS"], seen["CUDA_VISIBLE_DEVICES"]) == ("3", "1")
    assert environment(cell, None).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_gpus_are_shared_out_among_the_slots(tmp_path: Path) -> None:
    todo = cells(tmp_path, ["a", "b", "c", "d"])

    def slow(cell: Cell) -> list[str]:
        return ["sh", "-c", f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/{cell.words[0]}; sleep 0.3"]

    Queue(todo, slots=4, stop=False, watcher=Notes(), command=slow, gpus=[5, 7]).work()
    assert sorted((tmp_path / name).read_text().strip() for name in "abcd") == ["5", "5", "7", "7"]


def test_a_process_that_cannot_be_started_stops_the_others(tmp_path: Path) -> None:
    slow, bad = todo = cells(tmp_path, ["slow", "bad"])

    def command(cell: Cell) -> list[str]:
        if cell is bad:
            until(lambda: count(slow, "begun") == 1)
            time.sleep(0.1)
            return ["/no/such/program"]
        return fake(cell)

    with pytest.raises(FileNotFoundError):
        Queue(todo, slots=2, stop=False, watcher=Notes(), command=command).work()
    until(lambda: count(slow, "saved") == 1)
