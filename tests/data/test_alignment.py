"""Which frame a row belongs to, and where an episode ends: asked for where a file does not show it, and always said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.data.convert.clip import filler
from tests.data.test_foreign import ACTIONS_M, FRAMES_M, LENGTH, convert, demonstration, episode, explained, led_into
from tests.data.test_foreign import stored as npz_of

ZERO = np.zeros_like(ACTIONS_M[:1])
TAKEN = np.concatenate([ACTIONS_M, ZERO])
"""Row i was taken in frame i."""


def stacked(**arrays: Any) -> dict[str, Any]:
    """The moving block as DrQ-v2 stores it; `arrays` replace or add members, None leaves one out."""
    single = FRAMES_M.transpose(0, 3, 1, 2)
    padded = np.concatenate([single[:1].repeat(2, axis=0), single])
    members = {
        "observation": np.concatenate([padded[place : place + LENGTH] for place in range(3)], axis=1),
        "action": led_into(ACTIONS_M),
        "reward": np.arange(LENGTH, dtype=np.float32)[:, None],
        "discount": np.ones((LENGTH, 1), np.float32),
    }
    return {name: array for name, array in (members | arrays).items() if array is not None}


def refused(folder: Path, to: Path, code: int, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What was said of a conversion that ends so: one line of error, and what stands in the table."""
    assert convert(folder, to, *words) == code
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if " s left" not in line]
    assert len(said) == 1 and said[0].startswith("error: ")
    return captured.out + said[0]


# -- DrQ-v2 ------------------------------------------------------------------------------------------------------------

NO_FILLER: dict[str, np.ndarray] = {
    "the first is an action, the last zeros": TAKEN,
    "the first is an action, the last too": np.concatenate([ACTIONS_M, ACTIONS_M[:1]]),
    "reals of 64 bits": TAKEN.astype(np.float64),
    "whole numbers": TAKEN.astype(np.int32),
    "the last is NaN": np.concatenate([ACTIONS_M, ZERO * np.nan]),
    "the first is zeros, the last NaN": np.concatenate([ZERO, ACTIONS_M[1:], ZERO * np.nan]),
}


@pytest.mark.parametrize("name", NO_FILLER)
def test_rows_that_do_not_begin_with_a_filler_are_asked_about(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz_of(tmp_path / "in", **stacked(action=NO_FILLER[name]))
    said = refused(source, tmp_path / "out", 2, capsys, "format=drqv2")
    assert "action_row= is missing: action has as many rows as there are frames, and " in said
    said = refused(source, tmp_path / "out", 2, capsys, "format=drqv2", "action_row=from")
    assert "reward_row= is missing: reward has as many rows" in said
    words = ("format=drqv2", "action_row=from", "reward_row=from")
    assert convert(source, tmp_path / "out", *words) == 0, "nothing is in the way"
    found = episode(tmp_path / "out")
    assert (found.action == NO_FILLER[name][:-1]).all() and found.reward.tolist() == list(range(LENGTH - 1))
    assert explained(found) is not name.startswith("the first is zeros")


def test_whoever_says_it_gets_what_was_said_whatever_the_rows_look_like(tmp_path: Path) -> None:
    action = np.concatenate([ACTIONS_M[:1], ACTIONS_M])
    source = npz_of(tmp_path / "in", **stacked(action=action, reward=np.full((LENGTH, 1), 0.5)))
    assert convert(source, tmp_path / "out", "format=drqv2", "action_row=into", "reward_row=into") == 0
    assert explained(episode(tmp_path / "out"))


@pytest.mark.parametrize("filler", [0.0, np.nan, 1e-9, 1e-5])
def test_a_filler_in_the_first_row_is_dropped_and_said(
    filler: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz_of(tmp_path / "in", **stacked(action=led_into(ACTIONS_M, filler)))
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    assert explained(episode(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "action_row=into assumed: row i of action led into frame i, the first is left out" in said
    assert "reward_row=into assumed: row i of reward came with frame i, the first is left out" in said


@pytest.mark.parametrize("reward", [np.arange(1, LENGTH + 1), np.full((LENGTH, 1), -1.0), -np.arange(LENGTH) - 0.5])
def test_rewards_that_do_not_begin_with_a_filler_are_asked_about(
    reward: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz_of(tmp_path / "in", **stacked(reward=reward))
    assert "reward_row= is missing" in refused(source, tmp_path / "out", 2, capsys, "format=drqv2")
    assert convert(source, tmp_path / "out", "format=drqv2", "reward_row=from") == 0
    assert (episode(tmp_path / "out").reward == reward.reshape(-1)[:-1]).all() and explained(episode(tmp_path / "out"))
    npz = npz_of(tmp_path / "npz", image=FRAMES_M, action=led_into(ACTIONS_M), reward=reward)
    words = ("format=published_npz", "action_row=into", "reward=reward")
    assert "reward_row= is missing" in refused(npz, tmp_path / "b", 2, capsys, *words)


@pytest.mark.parametrize("rests", [slice(None), slice(-1, None), slice(-3, None), slice(0, 4)])
def test_an_arm_that_rests_needs_no_word(rests: slice, tmp_path: Path) -> None:
    action = ACTIONS_M.copy()
    action[rests] = 0
    source = npz_of(tmp_path / "in", **stacked(action=led_into(action), reward=np.zeros(LENGTH)))
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    assert (episode(tmp_path / "out").action == action).all()


def test_a_row_less_than_frames_is_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = npz_of(tmp_path / "in", **stacked(action=ACTIONS_M, reward=np.ones(LENGTH - 1), discount=None))
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    assert explained(episode(tmp_path / "out")) and "assumed" not in capsys.readouterr().out


@pytest.mark.parametrize("short", [{"action": ACTIONS_M}, {"reward": np.ones(LENGTH - 1)}])
def test_a_row_less_in_one_of_both_is_refused(
    short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz_of(tmp_path / "in", **stacked(discount=None, **short))
    assert "must have equally many rows" in refused(source, tmp_path / "out", 3, capsys, "format=drqv2")


def test_names_that_drqv2_does_not_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"state": np.zeros((LENGTH, 7)), "success": np.ones((LENGTH, 1)), "is_first": np.arange(LENGTH) == 0}
    source = npz_of(tmp_path / "in", **stacked(**more))
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    assert "not read: state, success\n" in capsys.readouterr().out


# -- where an episode begins and ends ----------------------------------------------------------------------------------

SEVENTH, LAST = np.arange(LENGTH) == 7, np.arange(LENGTH) == LENGTH - 1
MARKS: dict[str, tuple[dict[str, Any], str]] = {
    "discount": ({"discount": 1.0 - SEVENTH}, "discount is 0 in row 7"),
    "discount, a column": ({"discount": (1.0 - SEVENTH)[:, None]}, "discount is 0 in row 7"),
    "discount, a row less": (
        {"discount": 1.0 - SEVENTH[1:], "action": ACTIONS_M, "reward": np.ones(LENGTH - 1)},
        "discount is 0 in row 6",
    ),
    "discount, a row less than rewards": ({"discount": np.ones(LENGTH - 1)}, f"discount must have {LENGTH} rows, as"),
    "is_first": ({"is_first": SEVENTH}, "it holds several episodes (is_first marks row 7 too)"),
    "is_first, a column": ({"is_first": SEVENTH[:, None]}, "it holds several episodes (is_first marks row 7 too)"),
    "is_last": ({"is_last": SEVENTH | LAST}, "it holds several episodes (is_last marks row 7 too)"),
    "is_terminal": ({"is_terminal": SEVENTH}, "is_terminal marks row 7"),
    "a short discount": ({"discount": np.ones(LENGTH - 3)}, f"discount must have {LENGTH - 1} or {LENGTH} rows"),
    "a short is_first": ({"is_first": SEVENTH[:-1]}, f"is_first must have {LENGTH} rows, as there are {LENGTH} frames"),
    "a wide is_terminal": ({"is_terminal": np.zeros((LENGTH, 2))}, "is_terminal must have one number a row"),
    "a discount that is none": ({"discount": np.full(LENGTH, np.nan)}, "discount must be finite"),
    "is_first as text": ({"is_first": np.array(["yes"] * LENGTH)}, "is_first must be an array of numbers"),
}


@pytest.mark.parametrize("kind", ["drqv2", "published_npz"])
@pytest.mark.parametrize("name", MARKS)
def test_an_episode_that_ends_before_its_last_frame_is_refused(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, said = MARKS[name]
    made = stacked(**arrays) if kind == "drqv2" else {"image": FRAMES_M, **stacked(observation=None, **arrays)}
    words = [f"format={kind}", *(["action_row=into", "reward=reward"] if kind == "published_npz" else [])]
    assert said in refused(npz_of(tmp_path / "in", **made), tmp_path / "out", 3, capsys, *words)


A_ROW_LESS = {"discount": 1.0 - LAST[1:], "action": ACTIONS_M, "reward": np.ones(LENGTH - 1)}


@pytest.mark.parametrize("ending", [{"discount": 1.0 - LAST}, {"is_terminal": LAST}, A_ROW_LESS])
def test_an_end_in_the_last_row_is_the_task_s(ending: dict[str, Any], tmp_path: Path) -> None:
    source = npz_of(tmp_path / "in", **stacked(**ending))
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    assert bool(episode(tmp_path / "out").terminated[-1])


# -- episodes under a key of the set -----------------------------------------------------------------------------------

HALF = np.concatenate([ACTIONS_M[:, :1] > 0, ACTIONS_M[:, :1] <= 0], axis=1)
"""Left or right, as two switches."""
FIRST_ROWS: dict[str, tuple[np.ndarray, str]] = {
    "switches": (np.concatenate([np.zeros((1, 2), bool), HALF]), "the first row is zero"),
    "1e-9": (led_into(ACTIONS_M, 1e-9), "the first row is nearly zero"),
    "-1e-6": (led_into(ACTIONS_M, -1e-6), "the first row is nearly zero"),
    "1e-9 beside 1e-3": (led_into(ACTIONS_M, 1e-6) * 1e-3, "the first row is nearly zero"),
    "1e-5 as 16 bits": (led_into(ACTIONS_M, 1e-5).astype(np.float16), "the first row is nearly zero"),
    "partly NaN": (np.concatenate([[[np.nan, 0]], ACTIONS_M]), "the first row is NaN"),
    "steps of 100": (led_into(ACTIONS_M, 0.01) * 100, ""),
    "a gentle first step": (np.concatenate([ACTIONS_M[:1] * 0.01, ACTIONS_M[1:], ZERO]), ""),
    "rests now and then": (TAKEN * (np.arange(LENGTH) % 5 == 0)[:, None], ""),
}


@pytest.mark.parametrize("name", FIRST_ROWS)
def test_a_first_row_that_is_as_good_as_nothing_is_asked_about(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action, said = FIRST_ROWS[name]
    source = npz_of(tmp_path / "in", image=FRAMES_M, action=action)
    if said:
        assert f"and {said};" in refused(source, tmp_path / "out", 2, capsys, "format=published_npz")
        assert convert(source, tmp_path / "out", "format=published_npz", "action_row=into") == 0
        assert "action_row=into: row i of action led into frame i, the first is left out" in capsys.readouterr().out
        assert (episode(tmp_path / "out").action == action[1:].astype(np.float32)).all()
    else:
        assert convert(source, tmp_path / "out", "format=published_npz") == 0
        assert (episode(tmp_path / "out").action == action[:-1].astype(np.float32)).all()


@pytest.mark.parametrize("count", [1, 3])
def test_what_was_assumed_is_said_once_for_all(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = npz_of(tmp_path / "in", image=FRAMES_M, action=TAKEN)
    for place in range(1, count):
        np.savez(source / f"ep{place}.npz", image=FRAMES_M, action=TAKEN)
    assert convert(source, tmp_path / "out", "format=published_npz") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "action_row" in line)
    assert line.split("  ")[1] == ("ep.npz" if count == 1 else "3 items")
    assert line.endswith("action_row=from assumed: row i of action was taken in frame i, the last is left out")


def test_published_demonstrations_need_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(npz_of(tmp_path / "in", **demonstration()), tmp_path / "out", "format=drqv2") == 0
    assert "not read" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float16, np.float64])
def test_what_a_filler_is_does_not_depend_on_the_type(dtype: Any) -> None:
    rows = np.array([[0, 0], [1, 0], [1, 1], [0, 0]]).astype(dtype)
    assert [filler(rows, place) for place in (0, 1, -1)] == ["zero", "", "zero"]
    assert filler(rows[:, :0], 0) == "zero", "actions without numbers"
    assert filler(np.array([[-128], [1], [1]], np.int8), 0) == "", "whose absolute value is no int8"
