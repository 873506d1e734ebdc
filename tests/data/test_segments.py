from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl.data.segments import adapted, frame_step, goal, plain, sampled, select, shuffle

CASES = st.fixed_dictionaries(
    {"frames": st.integers(2, 90), "length": st.integers(3, 17), "step": st.integers(1, 9), "seed": st.integers(0, 999)}
)


def fits(case: dict[str, int], span: int) -> bool:
    return span <= case["frames"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=CASES, extra=st.integers(0, 9), context=st.integers(1, 2))
def test_no_way_of_sampling_ever_leaves_the_episode(case: dict[str, int], extra: int, context: int) -> None:
    for how in ("plain", "select", "shuffle", "goal"):
        random = np.random.default_rng(case["seed"])
        found = sampled(
            random,
            how,
            frames=case["frames"],
            length=case["length"],
            context=context,
            step=case["step"],
            horizon=case["length"] + extra,
        )
        assert found.shape == (case["length"],) and found.dtype == np.int64
        assert found.min() >= 0 and found.max() < case["frames"], how


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=CASES)
def test_plain_goes_on_in_equal_steps_and_repeats_the_last_frame_where_there_are_no_more(case: dict[str, int]) -> None:
    found = plain(np.random.default_rng(case["seed"]), frames=case["frames"], length=case["length"], step=case["step"])
    steps = np.diff(found)
    if fits(case, case["length"]):
        expected = case["step"] if case["step"] * case["length"] <= case["frames"] else case["frames"] // case["length"]
        assert (steps == expected).all()
    else:
        assert found[0] == 0
        assert found.tolist() == [min(i, case["frames"] - 1) for i in range(case["length"])]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=CASES, extra=st.integers(0, 9), context=st.integers(1, 2))
def test_selected_frames_are_distinct_and_in_the_order_of_time_behind_a_strided_context(
    case: dict[str, int], extra: int, context: int
) -> None:
    horizon = case["length"] + extra
    found = select(
        np.random.default_rng(case["seed"]),
        frames=case["frames"],
        length=case["length"],
        context=context,
        step=case["step"],
        horizon=horizon,
    )
    step = adapted(case["step"], frames=case["frames"], span=horizon)
    if fits(case, horizon):
        assert (np.diff(found) > 0).all()
        assert (np.diff(found[:context]) == step).all()
        assert found[-1] < found[0] + step * horizon
        assert found[context] >= found[0] + step * context
    else:
        assert (np.diff(found) >= 0).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=CASES, extra=st.integers(0, 9))
def test_shuffled_frames_are_distinct_places_of_one_strided_window(case: dict[str, int], extra: int) -> None:
    horizon = case["length"] + extra
    found = shuffle(
        np.random.default_rng(case["seed"]),
        frames=case["frames"],
        length=case["length"],
        step=case["step"],
        horizon=horizon,
    )
    if fits(case, horizon):
        step = adapted(case["step"], frames=case["frames"], span=horizon)
        assert len(set(found.tolist())) == case["length"]
        assert len(set((found % step).tolist())) == 1
        assert found.max() - found.min() <= step * (horizon - 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=CASES)
def test_a_goal_is_the_last_frame_put_in_front(case: dict[str, int]) -> None:
    found = goal(np.random.default_rng(case["seed"]), frames=case["frames"], length=case["length"], step=case["step"])
    assert found[0] == found[-1]
    again = plain(
        np.random.default_rng(case["seed"]), frames=case["frames"], length=case["length"] - 1, step=case["step"]
    )
    assert found[1:].tolist() == again.tolist()


def test_every_start_from_the_first_to_the_last_is_reached_about_equally_often() -> None:
    random = np.random.default_rng(3)
    starts = [int(plain(random, frames=31, length=7, step=3)[0]) for _ in range(4400)]
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11  # 31 - 21 + 1
    assert counts.min() > 320 and counts.max() < 480  # 400 expected, 4 deviations


def test_select_reaches_both_ends_of_its_window_and_of_the_episode() -> None:
    random = np.random.default_rng(4)
    found = [select(random, frames=20, length=5, context=2, step=1, horizon=16) for _ in range(600)]
    assert {int(row[0]) for row in found} == set(range(5))
    assert max(int(row[-1]) for row in found) == 19
    assert {int(row[2] - row[0]) for row in found} >= set(range(2, 13))
    assert {int(row[-1] - row[0]) for row in found} >= set(range(6, 16))


def test_shuffle_puts_every_place_in_front_sometimes() -> None:
    random = np.random.default_rng(5)
    firsts = [int(shuffle(random, frames=6, length=4, step=1, horizon=6)[0]) for _ in range(300)]
    assert set(firsts) == set(range(6))


def test_the_steps_of_the_paper_s_table() -> None:
    assert [frame_step(rate, 1) for rate in (3, 10, 5, 1, 20, 30, 2, 12.5, 15)] == [1, 3, 2, 1, 7, 10, 1, 4, 5]
    assert frame_step(4.5, 1) == 2 and frame_step(7.5, 1) == 2  # half to even


@pytest.mark.parametrize(
    ("how", "length", "horizon", "words"),
    [
        ("plain", 1, 0, "at least 2 frames with sampling=plain"),
        ("select", 8, 7, "horizon must be 0 or >= 8"),
        ("shuffle", 8, 7, "horizon must be 0 or >= 8"),
    ],
)
def test_what_cannot_be_sampled_is_refused(how, length: int, horizon: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampled(np.random.default_rng(0), how, frames=30, length=length, context=2, step=1, horizon=horizon)
