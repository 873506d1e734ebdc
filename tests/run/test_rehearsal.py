"""Data sets that lie in a replay beside the run's own episodes: drawn like them, counted nowhere, never touched."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.cli.train import as_plain
from mbrl.io.checkpoint import read_newest
from mbrl.run.assemble import Configs, assemble
from mbrl.run.run import Run
from mbrl.rundir.folder import default_folder
from mbrl.rundir.stop import Stop
from tests.children import lines_said
from tests.run.test_resume import assert_same_run

Train = Callable[..., int]
SHORT = "schedule.total=100"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four episodes of the toy world."""
    assert main(["data", "collect", "task=reach", f"to={tmp_path / 'old'}", "policy=noisy", "episodes=4"]) == 0
    return tmp_path / "old"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assembled(folder: Path, *words: str) -> Run:
    """A run as it is before its first step."""
    plain = as_plain(compose("train", ["experiment=debug", f"run_dir={folder}", *words]))
    run = assemble(Configs.of(plain, trusted=True), folder, info={}, stop=Stop())
    run.logger.close()
    return run


def test_they_are_drawn_but_are_neither_demonstrations_nor_recent_nor_dropped(tmp_path: Path, data: Path) -> None:
    words = ("replay.recent_fraction=1.0", "replay.recent_episodes=100", "replay.return_prioritised_fraction=0.0")
    run = assembled(tmp_path / "run", f"rehearsal=[{data}]", "demos=1", "replay.capacity=60", *words)
    run.demonstrate()
    store = run.replay.store
    assert (len(store.lent), len(store.stored), len(run.replay)) == (4, 1, 125)
    while run.clock.env_steps < 150:
        run.collector.step(run.prefiller)
    assert [one.episode.number for one in store.stored] == [0, 5, 6], "one demonstration, 50 of 60 decisions"
    assert len(store.lent) == 4 and run.clock.episodes == 7

    ours = {frame.tobytes() for one in store.stored for frame in one.episode.pixels}

    def own(pixels: Tensor) -> set[bool]:
        return {frame.numpy().tobytes() in ours for frame in pixels}

    for subset, expected in {"all": {True, False}, "demos": {True}, "recent": {True}}.items():
        rows = run.replay.transitions(300, n_step=1, stack=1, stream="q", draw=0, subset=subset)  # type: ignore[arg-type]
        assert own(rows["pixels"]) == expected, subset
    assert own(run.replay.clips(100, 3, stream="fit", draw=0)["pixels"][:, 0]) == {True}, "recent_fraction"
    rewards = np.concatenate([one.episode.reward for one in store.stored[1:]])
    assert run.instruments._reward_variance() == pytest.approx(float(rewards.var())), "of the run's own experience"


def test_a_run_that_rehearses_and_is_interrupted_is_the_run_that_is_not(
    tmp_path: Path, data: Path, train: Train
) -> None:
    whole, folder, words = tmp_path / "whole", tmp_path / "interrupted", (f"rehearsal=[{data}]",)
    before = contents(data)
    assert train(whole, *words) == 0
    code = train(folder, *words, once=lambda: lines_said(folder, "env steps ") > 0, number=signal.SIGTERM)
    assert code == 75, "stopped too late to mean anything"
    assert train(folder, *words) == 0
    assert_same_run(whole, folder)
    assert contents(data) == before
    assert len(list((whole / "replay").glob("ep-*.npz"))) == 12, "its own 300 decisions, and no copies"
    state = read_newest(whole / "checkpoints").states["replay"]
    assert [Path(name).name for name, _ in state["lent"]] == [name for name in before if name.endswith(".npz")]
    assert json.loads((whole / "run.json").read_text())["rehearsal"] == [str(data)]
    plain = assembled(tmp_path / "plain", SHORT)
    with pytest.raises(ValueError, match=r"rehearsal has changed since this run was saved: .*ep-000000.* is missing"):
        plain.replay.load_state_dict(state)


@pytest.mark.parametrize(("change", "said"), [("remove", "is missing"), ("add", "is new"), ("all", "is not a folder")])
def test_a_changed_data_set_is_refused_in_one_line(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "experiment=debug", f"run_dir={folder}", f"rehearsal=[{data}]", SHORT]) == 0
    if change == "remove":
        sorted(data.glob("ep-*.npz"))[1].unlink()
    elif change == "add":
        assert main(["data", "collect", "task=reach", f"to={data}", "policy=noisy", "episodes=5"]) == 0
    else:
        data.rename(tmp_path / "elsewhere")
        assert main(["eval", f"run={folder}", "episodes=1"]) == 0, "who only plays needs no data"
    capsys.readouterr()
    saved = contents(folder / "checkpoints" / sorted((folder / "checkpoints").glob("step-*"))[-1].name)
    assert main(["train", f"run_dir={folder}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "rehearsal" in line
    assert contents(folder / "checkpoints" / sorted((folder / "checkpoints").glob("step-*"))[-1].name) == saved


@pytest.mark.parametrize(
    ("how", "card", "said"),
    [
        ({"side": 16, "actions": 2}, {}, "its frames are 16x16, protocol.image=32"),
        ({"side": 32, "actions": 2, "rewarded": False}, {}, "its rewards are unknown"),
        ({"side": 32, "actions": 3}, {}, "it has 3 actions, the task 2"),
        (
            {"side": 32, "actions": 2},
            {"protocol": {"image": 32, "action_repeat": 2}},
            "protocol.action_repeat=2, not 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_the_folder_free(
    tmp_path: Path, make_set, capsys: pytest.CaptureFixture[str], how: dict, card: dict, said: str
) -> None:
    folder, data = tmp_path / "run", make_set("strange", [9, 9], card=card, **how)
    assert main(["train", "experiment=debug", f"run_dir={folder}", f"rehearsal=[{data}]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and str(data) in line
    assert not (folder / "config.yaml").exists()
    assert folder.exists() == ("actions" in said), "known from the card alone, or from the world"


def test_a_bad_word_is_one_line_and_the_folder_s_name_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", f"rehearsal=[{tmp_path / 'no'}]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is not a folder; give a data set: a folder with dataset.json, or a run folder")
    with pytest.raises(ValueError, match=r"rehearsal must be a list of data sets like \[a,b\] \(got 3\)"):
        plain = as_plain(compose("train", ["experiment=debug"]))
        Configs.of(plain | {"rehearsal": 3}, trusted=False)
    variants = {"agent": "mine", "transformer": "s"}
    assert default_folder({**plain, "rehearsal": ["a"]}, variants).parts[2] == "mine-s-rehearsal"
