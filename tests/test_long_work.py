"""Long work shows itself: what, how far, time left; on terminals of any width, in files and in a run's log alike."""

from __future__ import annotations

import fcntl
import io
import itertools
import logging
import os
import pty
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.cli.errors import guarded
from mbrl.envs.make import make_envs
from mbrl.progress import REDRAWN_S, TOLD_S, HowFar, TerminalLine, clock_time, leave_line, quiet, told
from mbrl.replay.store import EpisodeStore
from mbrl.run.evaluate import Evaluator
from tests.data.numbered import numbered
from tests.envs.worlds import config
from worldmodel.seeds import Seeds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves on."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[int]:
    """stderr is a terminal of so many columns; gives the end at which somebody reads."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        yield reader
    finally:
        monkeypatch.undo()
        leave_line()
        stream.close()
        os.close(reader)


def read_lines(reader: int) -> str:
    """What a terminal was sent, up to the end of a line."""
    shown = ""
    while not shown.endswith("\n"):
        shown += os.read(reader, 1 << 12).decode()
    return shown


def test_the_words_say_how_far_and_how_long_still() -> None:
    assert str(HowFar(120, 600, "updates of tokenizer", 30.0)) == "120 of 600 updates of tokenizer, 2m00s left"
    assert str(HowFar(600, 600, "updates of tokenizer", 150.0)) == "600 of 600 updates of tokenizer in 2m30s"
    assert str(HowFar(7, 0, "items", 3.0)) == "7 items in 0m03s", "nobody knows how many there are"
    far = HowFar(120, 600, "updates of tokenizer", 30.0)
    assert [far.within(columns) for columns in (33, 23, 10)] == [
        "120 of 600 updates of, 2m00s left",
        "120 of 600, 2m00s left",
        "120 of 600",
    ]


@pytest.mark.parametrize("columns", [12, 40, 80, 200])
def test_a_terminal_has_one_line_that_is_never_wider(
    columns: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(monkeypatch, columns) as reader:
        tell = told("episodes of a data set with a long name")
        for done in range(41):
            tell(done, 40)
            clock[0] += REDRAWN_S / 2
        shown = read_lines(reader)
    assert shown.endswith("\r\n") and shown.count("\n") == 1, "one line, and it is left at the end"
    looks = shown.removesuffix("\r\n").split("\r")[1:]
    assert len(looks) > 15 and {len(look) for look in looks} == {min(79, columns - 1)}
    end = HowFar(40, 40, "episodes of a data set with a long name", 10.0)
    assert looks[-1].rstrip() == end.within(columns - 1)
    assert looks[0].startswith("2 of 40")
    assert columns < 20 or looks[0].rstrip().endswith(", 0m10s left")


def test_a_file_has_a_line_now_and_then(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tell = told("items")
    for done in range(41):
        tell(done, 40)
        clock[0] += 1.0
    assert stream.getvalue() == "15 of 40 items, 0m25s left\n30 of 40 items, 0m10s left\n40 of 40 items in 0m40s\n"


def test_a_run_has_the_same_lines_in_its_log(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mbrl")
    tell = told("items")
    for done in range(41):
        tell(done, 40)
        clock[0] += 1.0
    assert caplog.messages == [
        "  15 of 40 items, 0m25s left",
        "  30 of 40 items, 0m10s left",
        "  40 of 40 items in 0m40s",
    ]


def test_short_work_says_nothing(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tell = told("items")
    for done in range(41):
        tell(done, 40)
        clock[0] += TOLD_S / 50
    quiet(1, 2)
    assert stream.getvalue() == ""


def test_work_of_unknown_length_is_counted(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tell = told("items")
    for done in range(20):
        tell(done, 0)
        clock[0] += 1.0
    assert stream.getvalue() == "15 items in 0m15s\n"


def test_an_error_begins_a_line_of_its_own(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        tell = told("items")
        clock[0] += 1.0
        tell(3, 40)
        raise ValueError("the fourth is broken")

    with terminal(monkeypatch, 60) as reader:
        assert guarded(work, debug=False) == 2
        shown = read_lines(reader)
        shown += "" if "error" in shown else read_lines(reader)
    assert shown == f"\r{'3 of 40 items, 0m12s left'.ljust(59)}\r\nerror: the fourth is broken\r\n"
    assert TerminalLine.open is None


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every look at the clock takes four seconds; what a run says is kept."""
    seconds = itertools.count(0, 4)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    caplog.set_level(logging.INFO, "mbrl")
    return caplog


def test_a_replay_that_is_read_tells(tmp_path: Path, ticking: pytest.LogCaptureFixture) -> None:
    store = EpisodeStore(tmp_path, capacity=1000)
    for number in range(9):
        store.append(numbered(number, 4))
    ticking.clear()
    EpisodeStore(tmp_path, capacity=1000).restore(store.listing())
    assert ticking.messages[0] == "  3 of 9 episodes of the replay read, 0m32s left"


def test_an_evaluation_tells(ticking: pytest.LogCaptureFixture) -> None:
    task, protocol = config("task", "toy"), config("protocol", "toy")
    env = make_envs(task, protocol, seeds=Seeds(0), stream="evaluate", rows=2)
    Evaluator(env, obs_keys=()).score(Still(), 3)
    said = [message for message in ticking.messages if "of the evaluation" in message]
    total = 2 * env.env_spec.decisions
    assert said[0] == f"  3 of {total} decisions of the evaluation, {clock_time((total - 3) * 16 / 3)} left"
    assert len(said) >= total // 4 - 1


class Still:
    """Does nothing."""

    def act(self, td: Any, memory: Any, mode: str, *, step: int) -> tuple[torch.Tensor, None]:
        return torch.zeros(len(td), 2), None
