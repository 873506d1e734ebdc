"""Recorded demonstrations: a published set through conversion into a run, whole, in order, and there for good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache
from mbrl.replay.episode import Episode, read_episode
from tests.data.test_foreign import stored
from tests.envs.worlds import toy

SHORT = ["experiment=debug", "schedule.total=100"]


def published(folder: Path, episodes: int = 3) -> Path:
    """Episodes of the toy world's expert as DrQ-v2 stores them: three frames stacked, a filler in the first row."""
    env = toy(rows=1)
    for number in range(episodes):
        now, frames, actions, rewards = env.reset(), [], [np.zeros(2)], [0.0]
        frames.append(now["pixels"][0].numpy())
        done = False
        while not done:
            action = env.expert_actions()
            stepped, now = env.step_and_maybe_reset(now.set("action", action))
            frames.append(stepped["next", "pixels"][0].numpy())
            actions.append(action[0].double().numpy())
            rewards.append(float(stepped["next", "reward"][0]))
            done = bool(stepped["next", "done"][0])
        padded = np.stack([frames[0], frames[0], *frames])
        observation = np.concatenate([padded[place : place + len(frames)] for place in range(3)], axis=1)
        arrays = {"observation": observation, "action": np.stack(actions), "reward": np.array(rewards)[:, None]}
        part = stored(folder / str(number), **arrays, discount=np.ones((len(frames), 1)))
        (part / "ep.npz").rename(folder / f"2022_{number}_25.npz")
        part.rmdir()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted set."""
    folder = tmp_path_factory.mktemp("demos")
    published(folder / "raw")
    assert main(["data", "convert", f"from={folder / 'raw'}", f"to={folder / 'set'}", "format=drqv2"]) == 0
    assert main(["data", "preview", str(folder / "set"), f"out={folder / 'preview.png'}"]) == 0
    return folder / "set"


def held(folder: Path) -> list[Episode]:
    return [read_episode(path) for path in sorted((folder / "replay").glob("ep-*.npz"))]


def test_actions_of_converted_demonstrations_explain_the_frames_they_lead_into(data: Path) -> None:
    episode = DataSet(data, cache=EpisodeCache(0)).episode(0)
    env = toy(rows=1)
    now = env.reset()
    for step, action in enumerate(episode.action):
        assert (now["pixels"][0].numpy() == episode.pixels[step]).all()
        stepped, now = env.step_and_maybe_reset(now.set("action", torch.from_numpy(action.copy())[None]))
        assert (stepped["next", "pixels"][0].numpy() == episode.pixels[step + 1]).all()
        assert float(stepped["next", "reward"][0]) == episode.reward[step]


def test_a_run_begins_with_them_and_goes_on_without_the_set(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run = Path(shutil.copytree(data, tmp_path / "set (1)")), tmp_path / "run"
    assert main(["train", *SHORT, f"demos={copy}", f"run_dir={run}"]) == 0
    assert f"3 demonstrations of {copy}" in capsys.readouterr().out
    whole = [DataSet(data, cache=EpisodeCache(0)).episode(place) for place in range(3)]
    found = held(run)
    assert [episode.number for episode in found] == list(range(len(found))) and len(found) > 3
    for one, other in zip(found[:3], whole, strict=True):
        assert (one.pixels == other.pixels).all() and (one.action == other.action).all()
        assert (one.reward == other.reward).all()
    assert json.loads((run / "result.json").read_text())["demos"] == 3
    assert main(["train", f"demos={copy}", f"run_dir={run}"]) == 0, "the same words again"
    shutil.rmtree(copy)
    assert main(["train", f"run_dir={run}", "schedule.total=125"]) == 0
    assert [episode.number for episode in held(run)][:3] == [0, 1, 2]


def test_they_are_imitated_like_those_of_an_expert(data: Path, tmp_path: Path) -> None:
    words = ["agent.bc_coef=1", "schedule.learn.every=50"]
    assert main(["train", *SHORT, f"demos={data}", f"run_dir={tmp_path / 'run'}", *words]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demos=HERE/nowhere"], "demos must be a whole number (got "),
        (["demos=many"], "demos must be a whole number (got "),
        (["demos=4", "demos_from=SET"], "holds 3 episodes in 1 data sets, demos=4"),
        (["demos=SET", "protocol.image=64", "tokenizer.image=64"], "its frames are 32x32, protocol.image=64"),
        (["demos=SET", "task.name=reach-discrete"], "it has 2 actions, the task 5"),
        (["demos=VIDEOS"], "its rewards are unknown"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    words: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, videos = stored(tmp_path / "in", image=np.zeros((5, 32, 32, 3), np.uint8)), tmp_path / "videos"
    assert main(["data", "convert", f"from={raw}", f"to={videos}", "format=published_npz"]) == 0
    capsys.readouterr()
    places = {"HERE": tmp_path, "SET": data, "VIDEOS": videos}
    typed = [word.replace(name, str(place)) for word in words for name, place in places.items() if name in word]
    typed += [word for word in words if not any(name in word for name in places)]
    assert main(["train", *SHORT, f"run_dir={tmp_path / 'run'}", *typed]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
