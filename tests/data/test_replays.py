"""The replays of other agents, made by the tests in exactly the layout that each writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache
from tests.data.test_foreign import convert, episode, explained, led_into, stored

NONE = "0" * 22
"""How DreamerV3 calls the chunk after the last one of a worker."""


def moved(number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a block that each action moves left or right, and the actions, row i from frame i to i + 1."""
    action = np.zeros((length - 1, 2), np.float32)
    action[:, 0], action[:, 1] = np.random.default_rng(number).choice([-1, 1], length - 1), number
    frames = np.full((length, 64, 64, 3), 40 + number, np.uint8)
    for frame, x in zip(frames, 32 + 2 * np.cumsum([0, *action[:, 0]]).astype(int), strict=True):
        frame[28:36, x : x + 8] = 250
    return frames, action


def opened(folder: Path) -> DataSet:
    return DataSet(folder, cache=EpisodeCache(0))


# -- one file an episode -----------------------------------------------------------------------------------------------

FRAMES, ACTIONS = moved(0, 12)
REWARD = np.arange(12, dtype=np.float32)
LAST = np.arange(12) == 11


def dreamerv2() -> dict[str, Any]:
    """danijar/dreamerv2, `<time>-<id>-<steps>.npz` in train_episodes: a row came with its frame, row 0 is zero."""
    flags = {"is_first": np.arange(12) == 0, "is_last": LAST, "is_terminal": LAST}
    return {"image": FRAMES, "action": led_into(ACTIONS), "reward": REWARD, **flags}


def dreamerv3_torch() -> dict[str, Any]:
    """NM512/dreamerv3-torch, `<time>-<id>-<steps>.npz` in train_eps: the same, with discount and logprob."""
    flags = {"is_first": np.arange(12) == 0, "is_terminal": np.zeros(12, bool)}
    discount, logprob = 1 - LAST.astype(np.float32), np.zeros(12, np.float32)
    return {"is_first": flags["is_first"], "is_terminal": flags["is_terminal"], "image": FRAMES, "reward": REWARD} | {
        "discount": discount,
        "action": led_into(ACTIONS),
        "logprob": logprob,
    }


@pytest.mark.parametrize(("made", "ended"), [(dreamerv2(), True), (dreamerv3_torch(), False)], ids=["2", "3-torch"])
def test_an_episode_of_dreamer_in_its_own_file(
    made: dict[str, Any], ended: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stored(tmp_path / "in", **made)
    assert convert(source, tmp_path / "out", "format=published_npz") == 2
    assert "action_row= is missing" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "format=published_npz", "action_row=into", "reward=reward") == 0
    found = episode(tmp_path / "out")
    assert (found.pixels == FRAMES.transpose(0, 3, 1, 2)).all() and (found.action == ACTIONS).all()
    assert explained(found) and (found.reward == REWARD[1:]).all() and bool(found.terminated[-1]) is ended


def tdmpc2() -> TensorDict:
    """nicklashansen/tdmpc2 from pixels: three stacked frames, and rows that came with them, row 0 NaN."""
    single = FRAMES.transpose(0, 3, 1, 2)
    padded = np.concatenate([single[:1].repeat(2, axis=0), single])
    stack = np.concatenate([padded[place : place + 12] for place in range(3)], axis=1)
    reward = REWARD.copy()
    reward[0] = np.nan
    arrays = {"obs": stack, "action": led_into(ACTIONS, np.nan), "reward": reward}
    return TensorDict({name: torch.from_numpy(array) for name, array in arrays.items()}, batch_size=(12,))


def test_an_episode_of_tdmpc2_as_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stored(tmp_path / "in", **{name: value.numpy() for name, value in tdmpc2().items()})
    assert convert(source, tmp_path / "out", "format=drqv2", "key=obs") == 0
    found = episode(tmp_path / "out")
    assert (found.pixels == FRAMES.transpose(0, 3, 1, 2)).all() and (found.action == ACTIONS).all()
    assert explained(found) and (found.reward == REWARD[1:]).all() and found.truncated[-1]
    assert convert(source, tmp_path / "b", "format=drqv2") == 3
    assert "it has no key observation; it has action, obs, reward" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["published_npz", "drqv2", "dreamerv3"])
def test_a_pickle_is_not_opened_and_the_line_says_what_to_do(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    torch.save(tdmpc2(), tmp_path / "in" / "chunk_0.pt")
    assert convert(tmp_path / "in", tmp_path / "out", f"format={kind}") == 2
    said = capsys.readouterr().err
    assert "holds pickles (chunk_0.pt), which may run code" in said and "numpy.savez" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


# -- chunks of DreamerV3 -----------------------------------------------------------------------------------------------


def stream(episodes: list[tuple[np.ndarray, np.ndarray]], *, ended: bool = True) -> dict[str, np.ndarray]:
    """The steps of one worker, as danijar/dreamerv3's driver gives them to its replay."""
    parts = []
    for number, (frames, action) in enumerate(episodes):
        place = np.arange(len(frames))
        parts.append(
            {
                "image": frames,
                "reward": place.astype(np.float32),
                "is_first": place == 0,
                "is_last": (place == len(frames) - 1) & (ended or number < len(episodes) - 1),
                "is_terminal": (place == len(frames) - 1) & (number % 2 == 0) & ended,
                "action": np.concatenate([action, np.zeros_like(action[:1])]),  # masked where an episode ends
                "stepid": np.zeros((len(frames), 20), np.uint8),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def chunked(folder: Path, steps: dict[str, np.ndarray], worker: str, *, size: int = 10) -> list[Path]:
    """The chunks of one worker on disk."""
    folder.mkdir(exist_ok=True)
    total = len(steps["is_first"])
    begins = range(0, total, size)
    paths = []
    for place, begin in enumerate(begins):
        rows = {name: array[begin : begin + size] for name, array in steps.items()}
        follows = f"{worker}{place + 1:021d}" if begin + size < total else NONE
        length = len(rows["is_first"])
        name = f"20260101T0000{place:02d}F{worker.encode().hex()}-{worker}{place:021d}-{follows}-{length}.npz"
        np.savez_compressed(folder / name, **rows)
        paths.append(folder / name)
    return paths


EPISODES = [moved(number, length) for number, length in enumerate((12, 7, 5, 16, 2))]


@pytest.mark.parametrize("size", [3, 10, 1024])
def test_episodes_are_taken_out_of_chunks_wherever_they_begin_and_end(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunked(tmp_path / "in", stream(EPISODES), "a", size=size)
    chunked(tmp_path / "in", stream(EPISODES[::-1]), "b", size=size)
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3") == 0
    data = opened(tmp_path / "out")
    assert len(data) == 10
    for place, (frames, action) in enumerate([*EPISODES, *EPISODES[::-1]]):
        found = data.episode(place)
        assert (found.pixels == frames.transpose(0, 3, 1, 2)).all() and (found.action == action).all()
        assert explained(found) and found.reward.tolist() == list(range(1, len(frames)))
        assert bool(found.terminated[-1]) is (place % 5 % 2 == 0)
    assert "10 items  not read: stepid" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("time", ["20250101T000000F000000", "20270101T000000F000000", "a"])
def test_two_chunks_of_one_name_are_both_named_and_none_is_dropped(
    time: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = chunked(tmp_path / "in", stream(EPISODES), "a", size=1024)
    name = path.name.split("-", 1)[1]
    (path.parent / f"{time}-{name}").write_bytes(path.read_bytes())
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert path.name in line and f"{time}-{name}" in line and "take one of them away" in line
    assert not (tmp_path / "out").exists()


def test_what_has_no_begin_or_no_end_is_said_and_a_single_step_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = chunked(tmp_path / "in", stream([*EPISODES[:3], moved(7, 17)], ended=False), "a")  # 41 steps
    paths[0].unlink()  # an old chunk, which the replay has thrown away
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3", "action=none") == 0
    told = capsys.readouterr().out
    assert "#0  not read: action, stepid; it begins in the middle of an episode" in told
    assert "not read: action, stepid; it ends in the middle of an episode" in told
    data = opened(tmp_path / "out")
    assert [len(data.episode(place).pixels) for place in range(len(data))] == [2, 7, 5, 17]
    chunked(tmp_path / "one", stream([moved(0, 12), (FRAMES[:1], ACTIONS[:0])], ended=False), "a", size=12)
    assert convert(tmp_path / "one", tmp_path / "b", "format=dreamerv3") == 0
    assert len(opened(tmp_path / "b")) == 1


def test_a_chunk_of_several_episodes_is_no_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chunked(tmp_path / "in", stream(EPISODES), "a", size=1024)
    assert convert(tmp_path / "in", tmp_path / "out", "format=published_npz", "action_row=from") == 3
    told = capsys.readouterr().out
    assert "it holds several episodes (is_first marks row 12 too); chunks of DreamerV3's replay are format=drea" in told
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name != "run.lock"]


def changed(path: Path, **arrays: Any) -> None:
    """Replaces arrays of a file; None leaves one out."""
    with np.load(path) as file:
        members = {name: file[name] for name in file} | arrays
    np.savez(path, **{name: array for name, array in members.items() if array is not None})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no is_first": ({"is_first": None}, "it has no key is_first"),
    "fewer marks than its name says": (
        {"is_first": np.zeros(9, bool)},
        "is_first and is_last must be [10], as its name",
    ),
    "fewer frames": ({"image": np.zeros((4, 64, 64, 3), np.uint8)}, "image has fewer rows than is_first"),
    "frames of another size": ({"image": np.zeros((10, 8, 8, 3), np.uint8)}, "has other arrays than the chunk before"),
    "no actions": ({"action": None}, "has other arrays than the chunk before"),
    "objects": ({"image": np.array([{}] * 10, dtype=object)}, "cannot be read (Object arrays"),
    "an action that is no number": ({"action": np.full((10, 2), np.nan, np.float32)}, "action must be finite"),
    "rewards as text": ({"reward": np.array(["much"] * 10)}, "reward must be an array of numbers (got <U4 [10])"),
    "ends as records": ({"is_terminal": np.zeros(10, [("x", "f4")])}, "is_terminal must be an array of numbers"),
    "ends as dates": (
        {"is_terminal": np.zeros(10, "M8[s]")},
        "must be an array of numbers (got datetime64",
    ),
    "marks that are complex": (
        {"is_first": np.zeros(10, complex)},
        "must be an array of numbers (got complex",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_chunk_that_is_not_right_is_a_row_and_what_does_not_lie_in_it_is_kept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = WRONG[name]
    paths = chunked(tmp_path / "in", stream([moved(0, 10), moved(1, 15), moved(2, 5)]), "a")
    changed(paths[2], **change)
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3") == 3
    captured = capsys.readouterr()
    assert words in captured.out and "Traceback" not in captured.err
    assert sum(line.startswith("error: ") for line in captured.err.splitlines()) == 1
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3", "damaged=skip") == 0
    assert (opened(tmp_path / "out").episode(0).pixels == moved(0, 10)[0].transpose(0, 3, 1, 2)).all()


def test_names_that_lead_in_a_circle_or_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = chunked(tmp_path / "in", stream([moved(0, 10), moved(1, 10)]), "a")
    paths[1].rename(tmp_path / "in" / paths[1].name.replace(NONE, f"a{0:021d}"))
    assert convert(tmp_path / "in", tmp_path / "out", "format=dreamerv3") == 0
    assert len(opened(tmp_path / "out")) == 2
    (tmp_path / "in" / "mine.npz").write_bytes(b"")
    assert convert(tmp_path / "in", tmp_path / "b", "format=dreamerv3") == 2
    assert "mine.npz is not called as DreamerV3 does it" in capsys.readouterr().err
