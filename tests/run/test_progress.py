"""Where the time goes: what an update says of its dreams is booked by declared fields, never by a name."""

from __future__ import annotations

import logging
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from agents.api import DreamMetrics
from mbrl.run.clock import Cadence, Clock
from mbrl.run.learning import Learning
from mbrl.run.progress import Progress
from mbrl.run.run import PACE_ROWS, Run
from worldmodel.processes import alone


def test_the_time_of_dreams_is_taken_from_learning_and_their_frames_give_the_pace() -> None:
    progress = Progress()
    progress._spend("learn", 5.0)
    for loss in (1.0, 3.0):
        progress.note(DreamMetrics({"agent/loss": loss}, imagined_frames=300, imagine_s=2.0))
    row = progress.row()
    assert (row["agent/loss"], row["time/imagine_s"], row["time/learn_s"]) == (2.0, 4.0, 1.0)
    assert row["perf/imagined_frames_per_s"] == pytest.approx(150.0)


@pytest.mark.parametrize(("frames", "seconds", "said"), [(300, 2.0, True), (0, 0.0, False), (0, 1.0, False)])
def test_a_line_speaks_of_imagination_where_there_was_some(frames: int, seconds: float, said: bool) -> None:
    progress = Progress()
    progress.note(DreamMetrics({}, imagined_frames=frames, imagine_s=seconds))
    line = progress.line(progress.row(), env_steps=0, total=9, episodes=0, left_s=1.0)
    assert ("imagined    150 frames/s | " in line) is said is ("frames/s" in line)


def test_a_line_says_of_episodes_what_is_known() -> None:
    progress, row = Progress(), Progress().row()
    shown = {"env_steps": 0, "total": 9, "episodes": 0, "left_s": 1.0}
    assert "none has ended yet |" in progress.line(row, **shown)  # type: ignore[arg-type]
    progress.episode(3.0, None)
    assert "last 1: return      3.0 |" in progress.line(row, **shown)  # type: ignore[arg-type]
    progress.episode(5.0, True)
    assert "last 2: return      4.0 success 1.00 |" in progress.line(row, **shown)  # type: ignore[arg-type]


def test_no_name_of_a_metric_means_more_than_a_column() -> None:
    progress = Progress()
    progress.note({"imagined_frames": 7.0, "time/dream_s": 1.0})
    row = progress.row()
    assert (row["imagined_frames"], row["time/dream_s"]) == (7.0, 1.0)
    assert row["perf/imagined_frames_per_s"] == 0.0 and row["time/imagine_s"] == 0.0


def test_long_work_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))  # an update takes a second
    caplog.set_level(logging.INFO, "mbrl")
    parts: dict[str, Any] = dict.fromkeys(("model", "replay", "updater", "agent", "gate"))
    cadences = {"dynamics": Cadence(every=0, start=0, initial=60, updates=0)}
    cadences["tokenizer"] = Cadence(every=0, start=0, initial=14, updates=0)
    schedule: Any = SimpleNamespace(**cadences)
    stop: Any = False
    run = Learning(schedule=schedule, clock=Clock(), stop=stop, processes=alone(), **parts)
    assert list(run.owed("dynamics")) == list(range(60))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "env step 0: 60 updates of dynamics come first"
    assert said[1:] == [
        "  14 of 60 updates of dynamics, 0m49s left",
        "  29 of 60 updates of dynamics, 0m32s left",
        "  44 of 60 updates of dynamics, 0m16s left",
        "  59 of 60 updates of dynamics, 0m01s left",
    ]
    caplog.clear()
    assert len(list(run.owed("tokenizer"))) == 14 and not caplog.records


def test_time_left_is_told_by_the_last_rows_and_not_before_the_agent_learns() -> None:
    """Of a prefill that is cheap, updates that are dear, and an hour that a first fit took."""
    run: Any = SimpleNamespace(progress=Progress(), clock=Clock(), paces=deque(maxlen=PACE_ROWS))
    run.schedule = SimpleNamespace(total=20_000, learn=Cadence(every=100, start=2000, initial=0, updates=1))

    def row(env_steps: int, seconds: float) -> float | None:
        run.clock.env_steps = env_steps
        run.progress._spend("fit", seconds)
        return Run._left_s(run)

    assert [row(1000, 4.0), row(2000, 4.0)] == [None, None]
    line = Progress().line(Progress().row(), env_steps=0, total=9, episodes=0, left_s=None)
    assert line.endswith("| time left unknown before the agent learns")
    run.clock.done["learn"] = 1
    row(3000, 3600.0)
    for env_steps in range(4000, 9000, 1000):
        left = row(env_steps, 60.0)
    assert left == pytest.approx(12 * 60.0), "the hour is no longer among the last rows"
    assert row(20_000, 60.0) == 0.0
