"""A plan as an array job: what is handed over, and a real SLURM that runs it, stops it in the middle and goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mbrl.bench.plan import State, extend_plan, read_plan, state_of
from mbrl.bench.slurm import requeue, script
from mbrl.cli.bench import cells_of, read
from mbrl.cli.main import main
from tests.bench.cells import cells
from tests.bench.cluster import lacking, slurm, wait
from tests.bench.test_bench_command import TWO
from tests.children import run_child

DEBUG = ["experiment=debug", "evaluation.episodes=2", "evaluation.interim=1", "evaluation.rows=2"]


def test_a_job_has_a_task_for_each_run_that_is_left_and_its_options_come_last(tmp_path: Path) -> None:
    job = script(tmp_path / "a b", [0, 3, 4], slots=2, options=["--partition=gpu", "--array=1"])
    lines = job.splitlines()
    assert lines[0] == "#!/bin/sh" and "#SBATCH --array=0,3,4%2" in lines and "#SBATCH --requeue" in lines
    assert lines.index("#SBATCH --array=1") > lines.index("#SBATCH --array=0,3,4%2")
    assert re.fullmatch(rf"exec (\S+|'[^']+') -m mbrl bench 'to={tmp_path}/a b' only=\$SLURM_ARRAY_TASK_ID", lines[-1])


def test_outside_of_slurm_nothing_is_queued_again() -> None:
    assert not requeue({}) and not requeue({"SLURM_ARRAY_JOB_ID": "3"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launcher=ray"], "launcher must be local or slurm (got ray)"),
        (["sbatch=--time=1 --mem=0"], "sbatch has no effect with launcher=local"),
        (["only=7"], "only must be in 0..1, the places of the plan (got 7)"),
        (["launcher=slurm"], "launcher=slurm needs SLURM's sbatch, which is not found here"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    extend_plan(tmp_path / "b", cells(tmp_path / "b", ["good", "good"]))
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", f"to={tmp_path / 'b'}", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_one_run_of_a_plan_can_be_done_alone(tmp_path: Path) -> None:
    to = tmp_path / "b"
    extend_plan(
        to, cells_of(to, TWO, [*DEBUG, "schedule.total=150", "agent=random", "worldmodel=none"], seeds=1, more=[])
    )
    assert main(["bench", f"to={to}", "only=1"]) == 0
    assert [state_of(cell) for cell in read_plan(to)] == [State.QUEUED, State.DONE]


def test_a_task_that_is_warned_before_it_has_begun_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend_plan(tmp_path / "b", cells(tmp_path / "b", ["good"]))
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")

    def warned(args: list[str]) -> Any:
        os.kill(os.getpid(), signal.SIGUSR2)
        return read(args)

    monkeypatch.setattr("mbrl.cli.bench.read", warned)
    assert run_child(["bench", f"to={tmp_path / 'b'}", "only=0"]) == 75
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"
    assert state_of(read_plan(tmp_path / "b")[0]) is State.QUEUED


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    if why := lacking():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm-") as home, slurm(Path(home)) as environment:
        yield environment


def test_a_real_slurm_does_a_plan_and_a_task_whose_time_is_over_is_queued_again_and_goes_on(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    to = tmp_path / "bench"
    words = ["experiment=debug", "schedule.total=2000000", "schedule.evaluate.every=0", "schedule.save.every=0"]
    extend_plan(to, cells_of(to, TWO, [*words, *DEBUG[1:], "agent=random", "worldmodel=none"], seeds=1, more=[]))
    assert main(["bench", f"to={to}", "launcher=slurm", "slots=2", "sbatch=--mem=0 --time=30"]) == 0
    job = capsys.readouterr().out.split()[1].rstrip(":")
    assert main(["bench", f"to={to}", "launcher=slurm"]) == 2
    assert f"job {job} of this plan is in the queue" in capsys.readouterr().err
    planned = read_plan(to)
    wait(lambda: all(state_of(cell) is State.RUNNING for cell in planned), "both runs", 120)
    wait(lambda: all((cell.run / "metrics.csv").exists() for cell in planned), "their first rows", 120)
    subprocess.run(["scancel", "--signal=USR2", "--batch", f"{job}_0"], check=True)
    log = next(iter((to / "slurm").glob("*-0.log")))
    wait(lambda: "stopped; queued again" in log.read_text(), "the first task's end", 120)
    wait(lambda: "resumed from step" in (planned[0].folder / "output.log").read_text(), "its second life", 180)
    subprocess.run(["scancel", job], check=True)
    wait(lambda: not any(state_of(cell) is State.RUNNING for cell in planned), "all to leave", 120)
    assert {state_of(cell) for cell in planned} == {State.STOPPED}
