"""A real Meta-World task from pixels through the whole program: a minute at most, too short to learn."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mbrl.cli.main import main

Train = Callable[..., int]

SHORT = (
    "task.name=drawer-close-v3", "compute.threads=1", "protocol.decisions=12",
    "schedule.total=120", "schedule.prefill=48",
    *(f"schedule.{part}.start=48" for part in ("tokenizer", "dynamics", "learn", "evaluate", "save")),
    *(f"schedule.{part}.initial=2" for part in ("tokenizer", "dynamics", "learn")),
    *(f"schedule.{part}.every=0" for part in ("tokenizer", "dynamics", "learn")),
    "schedule.evaluate.every=48", "schedule.log.start=24", "schedule.log.every=24", "schedule.save.every=48",
    "evaluation.episodes=2", "evaluation.interim=1", "evaluation.rows=2",
    "fit.tokenizer.batch=3", "fit.tokenizer.length=5", "fit.dynamics.batch=3", "fit.dynamics.length=12",
    "agent.batch_size=4",
)  # fmt: skip


@pytest.mark.metaworld
def test_a_real_task_is_trained_on_and_judged_from_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", f"run_dir={folder}", *SHORT]) == 0
    told = capsys.readouterr().out
    assert "what was learned" in told and "random policy" in told and "left" in told
    info = json.loads((folder / "run.json").read_text())
    assert info["task"] == "drawer-close-v3" and info["protocol"] == "default" and info["camera"]["azimuth"] == 148.0
    with (folder / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[:4] == ["env_step", "decision", "update", "wall_s"]
    assert float(rows[-2]["time/collect_s"]) > 0
    videos = sorted(path.name for path in (folder / "videos").iterdir())
    assert "eval-000000120.gif" in videos and "openloop-000000120.gif" in videos
    assert main(["eval", f"run={folder}", "episodes=2"]) == 0
    assert "drawer-close-v3" in capsys.readouterr().out
    assert len(json.loads((folder / "evaluation.json").read_text())["final"]["returns"]) == 2
