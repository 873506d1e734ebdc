"""Statistics against cases that are computed by hand, and against a bootstrap of a few lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mbrl.statistics import (
    Scores,
    aggregate,
    iqm,
    on_grid,
    paired,
    performance_profile,
    probability_of_improvement,
    steps_to_threshold,
)

SCORES = [np.array([0.1, 0.5, 0.9, 0.7]), np.array([0.0, 0.2, 1.0, 1.0])]


def test_the_aggregates_by_hand() -> None:
    # all eight sorted: 0 .1 | .2 .5 .7 .9 | 1 1; the middle half has the mean 2.3 / 4
    assert aggregate(SCORES, "iqm").value == pytest.approx(0.575)
    assert aggregate(SCORES, "mean").value == pytest.approx((0.55 + 0.55) / 2)
    assert aggregate([*SCORES, np.array([0.8])], "median").value == pytest.approx(0.55)
    assert aggregate([np.array([1.0]), np.array([0.0, 0.0, 0.0])], "mean").value == 0.5  # tasks weigh the same


def test_the_interval_is_that_of_a_stratified_bootstrap_of_a_few_lines() -> None:
    rng = np.random.default_rng(5)
    scores = [rng.uniform(size=5) for _ in range(6)]
    draws = [task[rng.integers(5, size=(200_000, 5))] for task in scores]  # within each task
    low, high = np.quantile(stats.trim_mean(np.concatenate(draws, axis=1), 0.25, axis=1), [0.025, 0.975])
    found = aggregate(scores, "iqm")
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    assert found == aggregate(scores, "iqm")  # seeded
    unstratified = np.concatenate(scores)[rng.integers(30, size=(20_000, 30))]
    assert found.high - found.low < np.ptp(np.quantile(stats.trim_mean(unstratified, 0.25, axis=1), [0.025, 0.975]))


def test_the_numbers_are_those_of_rliable() -> None:
    """Its outputs, made once (rliable.json says by what); scores there are runs x tasks."""
    theirs = json.loads((Path(__file__).parent / "bench" / "rliable.json").read_text())
    scores = {name: list(np.array(matrix).T) for name, matrix in theirs["scores"].items()}
    for name in ("iqm", "mean", "median"):
        for method, (value, low, high) in theirs[name].items():
            found = aggregate(scores[method], name)
            assert found.value == pytest.approx(value, abs=1e-6)
            assert (found.low, found.high) == pytest.approx((low, high), abs=0.011)  # two draws of resamples
    value, low, high = theirs["probability_of_improvement"]
    better = probability_of_improvement(scores["ours"], scores["theirs"])
    assert better.value == pytest.approx(value, abs=1e-6)
    assert (better.low, better.high) == pytest.approx((low, high), abs=0.02)
    profile = performance_profile(scores["ours"], theirs["thresholds"])
    assert profile.tolist() == pytest.approx(theirs["profile"], abs=1e-6)


def test_equal_runs_have_an_interval_of_no_width_and_a_lone_run_none() -> None:
    found = aggregate([np.ones(3), np.ones(2)])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    lone = aggregate([np.array([0.25]), np.array([0.5, 0.5])], "mean")
    assert lone.value == 0.375
    assert math.isnan(lone.low)
    assert str(lone) == "0.38"


def test_the_probability_of_improvement_counts_pairs() -> None:
    mine, theirs = [np.array([1.0, 0.5])], [np.array([0.5, 0.0, 0.0])]
    assert probability_of_improvement(mine, theirs).value == pytest.approx(5.5 / 6)  # one tie of six pairs
    assert probability_of_improvement(theirs, mine).value == pytest.approx(0.5 / 6)
    two = probability_of_improvement([*mine, np.zeros(2)], [*theirs, np.ones(2)])
    assert two.value == pytest.approx((5.5 / 6 + 0) / 2)
    assert two.low <= two.value <= two.high
    u = stats.mannwhitneyu(mine[0], theirs[0]).statistic
    assert probability_of_improvement(mine, theirs).value == pytest.approx(u / 6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_method_neither_beats_itself_nor_leaves_the_range_of_its_runs(tasks: list[list[float]]) -> None:
    scores: Scores = [np.array(task) for task in tasks]
    assert probability_of_improvement(scores, scores, resamples=50).value == pytest.approx(0.5)
    assert min(map(min, tasks)) - 1e-9 <= float(iqm(*scores)) <= max(map(max, tasks)) + 1e-9
    profile = performance_profile(scores, np.linspace(-1, 1, 9).tolist())
    assert profile[0] == 1
    assert profile[-1] == 0
    assert (np.diff(profile) <= 1e-12).all()


def test_a_profile_by_hand() -> None:
    assert performance_profile(SCORES, [0.0, 0.5, 0.95]).tolist() == [0.875, 0.5, 0.25]


def test_steps_to_a_threshold_with_censored_runs() -> None:
    steps = [0, 10, 20, 30]
    curves = [(steps, [0, 0.9, 0.1, 0.9]), (steps, [0, 0.1, 0.8, 1.0]), (steps[:2], [0, 0.1]), (steps, [0, 0, 0, 0.79])]
    found = steps_to_threshold(curves, 0.8)
    assert (found.steps, found.censored) == ((10, 20), (10, 30))
    # Kaplan-Meier: at 10 one of four (3/4 are left), one is censored there; at 20 one of two (3/8 are left)
    assert found.median == 20
    assert str(found) == "2 of 4, 20 in the median"
    assert steps_to_threshold(curves[2:], 0.8).median is None
    assert steps_to_threshold([curves[0], curves[3], curves[3]], 0.8).median is None  # 2/3 never do
    with pytest.raises(ValueError, match="at least one evaluation"):
        steps_to_threshold([([], [])], 0.8)


def test_a_paired_comparison_sees_what_an_unpaired_one_does_not() -> None:
    base = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    found = paired([base + 0.05, base + 0.05], [base, base])
    assert found.difference.value == pytest.approx(0.05)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.05, 0.05))
    assert found.p == pytest.approx(2 / 2**10)  # of all flips of ten signs only two are as far out
    assert (found.wins, found.ties, found.losses) == (10, 0, 0)
    assert probability_of_improvement([base + 0.05], [base]).value == pytest.approx(15 / 25)
    same = paired([base], [base])
    assert (same.difference.value, same.p, same.ties) == (0, 1, 5)
    alone = paired([np.array([0.9])], [np.array([0.4])])
    assert (alone.difference.value, alone.p, alone.wins) == (0.5, 1, 1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="the same seeds in both"):
        paired([np.ones(2)], [np.ones(3)])
    with pytest.raises(ValueError, match="the same tasks"):
        probability_of_improvement([np.ones(2)], [np.ones(2), np.ones(2)])
    with pytest.raises(ValueError, match="at least one run"):
        aggregate([np.ones(2), np.array([])])
    with pytest.raises(ValueError, match="finite"):
        aggregate([np.array([1.0, math.nan])])


def test_curves_are_read_at_the_last_evaluation_and_never_carried_on() -> None:
    found = on_grid([([0, 10], [0.0, 0.5]), ([5], [1.0])], [0, 5, 9, 10, 20])
    assert np.array_equal(
        found, [[0.0, 0.0, 0.0, 0.5, math.nan], [math.nan, 1.0, math.nan, math.nan, math.nan]], equal_nan=True
    )
