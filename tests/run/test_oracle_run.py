"""Runs whose world model is the simulator: they say so, need no fits, and survive kills like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mbrl.cli.main import main
from tests.run.test_resume import assert_same_run

Train = Callable[..., int]

NOTHING_TO_FIT = [f"schedule.{part}.{key}=0" for part in ("tokenizer", "dynamics") for key in ("initial", "updates")]
TINY = ["task=toy", "protocol=toy", "agent=dreamer_toy", "schedule=toy", "evaluation=toy", "compute.threads=1"]
TINY += ["schedule.total=200", "schedule.prefill=100", "schedule.learn.initial=2", "schedule.learn.updates=1"]
TINY += [f"schedule.{part}.start=100" for part in ("tokenizer", "dynamics", "learn", "evaluate", "save")]
TINY += ["evaluation.episodes=3", "evaluation.rows=3", "evaluation.interim=1", "agent.horizon=4", "agent.batch_size=6"]


def test_a_run_in_the_simulator_itself_says_everywhere_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=oracle", *TINY]) == 0
    said = capsys.readouterr().out
    (loud,) = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert "FOR DIAGNOSIS ONLY" in loud and "no result from pixels" in loud
    assert "world model: oracle, without parameters" in said and "token model" not in said
    (info,) = tmp_path.glob("runs/*/*/*/*/run.json")
    assert info.parts[-4] == "dreamer_toy-oracle"
    assert json.loads(info.read_text())["world_model"] == "oracle"
    assert loud in (info.parent / "console.log").read_text()
    assert (info.parent / "eval.csv").read_text().count("\n") > 2
    assert main(["eval", f"run={info.parent}", "episodes=2"]) == 0


def test_a_usual_run_says_no_such_thing() -> None:
    from mbrl.cli.train import privileged

    assert privileged(("pixels", "proprio")) == ""
    assert "state" in privileged(("pixels", "state"))


def test_kills_change_nothing_in_it(tmp_path: Path, train: Train) -> None:
    words = ["worldmodel=oracle", *NOTHING_TO_FIT]
    assert train(tmp_path / "uninterrupted", *words) == 0
    folder = tmp_path / "killed"
    log = folder / "console.log"
    for seen in (3, 5):

        def saved(seen: int = seen) -> bool:
            return log.exists() and log.read_text().count("env steps ") >= seen

        train(folder, *words, once=saved)
    assert train(folder, *words) == 0
    assert_same_run(tmp_path / "uninterrupted", folder)
