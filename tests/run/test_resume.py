"""Killed and resumed equals uninterrupted: weights, optimizer moments, replay, metric rows."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.io.checkpoint import checkpoint_paths, read_newest
from mbrl.run.run import Run
from tests.children import laid, lines_said, moments, run_child
from worldmodel.training.updater import Updater

Train = Callable[..., int]

KILLS, LINES = 10, 9  # what a continued run says before its first row is five lines
CLOCKS = ("wall_s", "time/", "perf/")  # columns that tell the time of day, and nothing else


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in csv.DictReader(lines)]


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not str(key).startswith(CLOCKS)}
        return {k: v for key, value in kept.items() for k, v in leaves(value, f"{name}/{key}").items()}
    return {name: node}


def assert_same_run(one: Path, other: Path) -> None:
    parts = ("model", "updater", "agent", "collector", "replay", "run")
    first, second = (leaves({p: read_newest(run / "checkpoints").states[p] for p in parts}) for run in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same or name.endswith("/wall_s"), name
    for table in ("metrics.csv", "eval.csv"):
        assert rows(one / table) == rows(other / table)
    listing = [sorted(path.name for path in (run / "replay").glob("ep-*.npz")) for run in (one, other)]
    assert listing[0] == listing[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert run_child(["train", *laid("experiment=debug", f"run_dir={folder}")]) == 0
    return folder


def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, train: Train, uninterrupted: Path) -> None:
    folder = tmp_path / "killed"
    died = [train(folder, once=come) for come in moments(folder, KILLS, seed=7, lines=LINES)]
    assert died.count(-signal.SIGKILL) >= KILLS // 2, "most children must have been killed before they were done"
    assert train(folder) == 0
    assert_same_run(uninterrupted, folder)


def test_a_polite_stop_saves_leaves_with_75_and_goes_on_as_if_nothing_had_been(
    tmp_path: Path, train: Train, uninterrupted: Path
) -> None:
    folder = tmp_path / "stopped"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        # a moment at which the child surely listens: it has written rows since it started
        seen = lines_said(folder, "env steps ")
        code = train(folder, once=lambda seen=seen: lines_said(folder, "env steps ") > seen, number=number)
        assert code in (75, 0)
        assert list((folder / "checkpoints").glob("step-*")), "a stop leaves a checkpoint"
    assert train(folder) == 0
    assert_same_run(uninterrupted, folder)


def test_evaluating_and_logging_more_often_does_not_change_what_is_learned(
    tmp_path: Path, train: Train, uninterrupted: Path
) -> None:
    folder = tmp_path / "watched"
    assert train(folder, "schedule.evaluate.every=50", "schedule.log.every=25", "evaluation.interim=1") == 0
    ours, theirs = (read_newest(run / "checkpoints").states["model"] for run in (uninterrupted, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_learned_between_a_stop_and_the_save_of_the_same_step_survives_a_kill(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop among the first fits saves at the step whose own save is owed behind them."""
    folder = tmp_path / "run"
    first = partial_fit(folder, train, monkeypatch)
    assert first < FITS
    before = [path.name for path in checkpoint_paths(folder / "checkpoints")]

    def killed(run: Run, *, owed: bool = True) -> None:
        whole_save(run, owed=owed)
        os._exit(9)

    whole_save = Run.save
    monkeypatch.setattr(Run, "save", killed)
    assert train(folder) == 9
    newest = read_newest(folder / "checkpoints")
    assert newest.states["run"]["clock"]["done"]["dynamics"] >= FITS > first
    assert checkpoint_paths(folder / "checkpoints")[0].name not in before
    monkeypatch.undo()
    assert train(folder) == 0


FITS = 3


def partial_fit(folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> int:
    """Stops a new run behind its first update of the dynamics; how many there were."""
    whole = Updater.update

    def stopping(updater: Updater, part: str, update: int) -> Any:
        if part == "dynamics":
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(updater, part, update)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", stopping)
        assert train(folder) == 75
    return int(read_newest(folder / "checkpoints").states["run"]["clock"]["done"]["dynamics"])
