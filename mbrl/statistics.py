"""Statistics of scores over tasks and seeds, as Agarwal et al. ask for them (NeurIPS 2021, arXiv 2108.13264).

The scores of a method are one array for each task, with one number per run (seed); tasks may have different numbers of
runs. Intervals are 95 % percentile bootstraps, stratified: runs are drawn anew within each task, tasks stay as they are
(section 4.1 there). Everything drawn comes from a generator with a fixed seed: equal scores give equal intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]
"""One array [runs] for each task."""
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which is (nan, nan) where a task has fewer than two runs."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{spread}"


def iqm(*tasks: np.ndarray, axis: int = -1) -> Any:
    """Interquartile mean: the mean of the middle half of all runs of all tasks together (section 4.3).

    >>> float(iqm(np.array([0.0, 1.0]), np.array([2.0, 9.0])))
    1.5
    """
    return stats.trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)


def mean(*tasks: np.ndarray, axis: int = -1) -> Any:
    """The mean over tasks of the mean over runs: every task weighs the same.

    >>> float(mean(np.array([0.0, 1.0]), np.array([2.0])))
    1.25
    """
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)


def median(*tasks: np.ndarray, axis: int = -1) -> Any:
    """The median over tasks of the mean over runs.

    >>> float(median(np.array([0.0, 1.0]), np.array([2.0]), np.array([9.0])))
    2.0
    """
    return np.median([task.mean(axis=axis) for task in tasks], axis=0)


AGGREGATES: Mapping[str, Callable[..., Any]] = {"iqm": iqm, "mean": mean, "median": median}


def estimate(
    samples: Scores, statistic: Callable[..., Any], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate:
    """`statistic(*samples, axis=-1)` with its stratified bootstrap interval: every sample is drawn anew by itself."""
    value = float(statistic(*samples, axis=-1))
    if min(len(sample) for sample in samples) < 2:
        return Estimate(value, math.nan, math.nan)
    found = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def aggregate(scores: Scores, name: str = "iqm", **how: Any) -> Estimate:
    """An aggregate of `AGGREGATES` with its interval. Raises: ValueError for an empty task or none."""
    check_scores(scores)
    return estimate(scores, AGGREGATES[name], **how)


def probability_of_improvement(scores: Scores, others: Scores, **how: Any) -> Estimate:
    """How probable it is that a run of the first method beats one of the second on a task drawn at random.

    The mean over tasks of P(X > Y) + P(X = Y) / 2, which is the Mann-Whitney U over the number of pairs (section 4.3).
    """
    check_pair(scores, others)

    def improvement(*samples: np.ndarray, axis: int = -1) -> Any:
        mine, theirs = samples[: len(scores)], samples[len(scores) :]
        pairs = (x[..., :, None] - y[..., None, :] for x, y in zip(mine, theirs, strict=True))
        return np.mean([(np.sign(pair) / 2 + 0.5).mean(axis=(-2, -1)) for pair in pairs], axis=0)

    return estimate([*scores, *others], improvement, **how)


def performance_profile(scores: Scores, thresholds: Sequence[float]) -> np.ndarray:
    """Share of the runs whose score is above each threshold, the mean over tasks (section 4.2). [thresholds]

    >>> performance_profile([np.array([0.0, 1.0]), np.array([0.5, 0.5])], [0.0, 0.5, 1.0]).tolist()
    [0.75, 0.25, 0.0]
    """
    check_scores(scores)
    bar_T = np.asarray(thresholds, float)
    return np.mean([(task[:, None] > bar_T).mean(axis=0) for task in scores], axis=0)


@dataclass(frozen=True)
class Reached:
    """When runs reach a threshold.

    Attributes:
        steps: env steps of the runs that did.
        censored: env steps at which the others were last looked at, without having reached it.
        median: Kaplan-Meier estimate of the env steps until half of the runs have; None where fewer than half do.
    """

    steps: tuple[float, ...]
    censored: tuple[float, ...]
    median: float | None

    def __str__(self) -> str:
        n = len(self.steps) + len(self.censored)
        typical = "more than were run" if self.median is None else f"{self.median:.0f} in the median"
        return f"{len(self.steps)} of {n}, {typical}"


def steps_to_threshold(curves: Sequence[tuple[Sequence[float], Sequence[float]]], threshold: float) -> Reached:
    """Env steps of the first evaluation of each run that is at least `threshold`.

    A run that never is, is censored at its last evaluation: what it would have needed is more, and not known.

    Args:
        curves: of each run env steps, ascending, and scores.
    """
    reached: list[float] = []
    censored: list[float] = []
    for steps, values in curves:
        if not steps:
            raise ValueError("a curve must hold at least one evaluation")
        at = next((step for step, value in zip(steps, values, strict=True) if value >= threshold), None)
        (censored if at is None else reached).append(float(steps[-1] if at is None else at))
    middle = None
    if reached:
        survival = stats.ecdf(stats.CensoredData(uncensored=reached, right=censored)).sf
        half = survival.quantiles[survival.probabilities <= 0.5]
        middle = float(half[0]) if len(half) else None
    return Reached(tuple(sorted(reached)), tuple(sorted(censored)), middle)


@dataclass(frozen=True)
class Paired:
    """Two methods on the same tasks and seeds.

    Attributes:
        difference: mean over tasks of the mean over seeds of first minus second.
        p: of the sign-flip test that the differences are symmetric around 0, two-sided (Fisher 1935): over all flips
            of up to 13 pairs, over 10 000 random ones of more. One pair can tell nothing: 1.
        wins, ties, losses: of pairs.
    """

    difference: Estimate
    p: float
    wins: int
    ties: int
    losses: int


def paired(scores: Scores, others: Scores, **how: Any) -> Paired:
    """Compares run by run: place i of a task is the same seed in both.

    Raises: ValueError where a task has not the same number of runs in both.
    """
    check_pair(scores, others)
    for task, (mine, theirs) in enumerate(zip(scores, others, strict=True)):
        if len(mine) != len(theirs):
            raise ValueError(f"task {task} must have the same seeds in both (got {len(mine)} and {len(theirs)} runs)")
    differences = [x - y for x, y in zip(scores, others, strict=True)]
    flat = np.concatenate(differences)
    weights = np.concatenate([np.full(len(one), 1 / len(one) / len(differences)) for one in differences])

    def weighted(values: np.ndarray, axis: int = -1) -> Any:
        return np.sum(values * weights, axis=axis)

    p = 1.0
    if len(flat) > 1:
        test = stats.permutation_test(
            (flat,),
            weighted,
            permutation_type="samples",
            n_resamples=RESAMPLES,
            vectorized=True,
            rng=np.random.default_rng(SEED),
        )
        p = float(test.pvalue)
    counts = [int(np.sum(np.sign(flat) == sign)) for sign in (1, 0, -1)]
    return Paired(estimate(differences, mean, **how), p, *counts)


def on_grid(curves: Sequence[tuple[Sequence[float], Sequence[float]]], grid: Sequence[float]) -> np.ndarray:
    """Scores of every run at the env steps of `grid`: those of the last evaluation until then; nan before the first.

    What lies behind the end of a run is nan too: nothing is carried on. [runs, grid]

    >>> on_grid([([0, 10], [0.0, 0.5])], [0, 5, 10, 11]).tolist()
    [[0.0, 0.0, 0.5, nan]]
    """
    values_RG = np.full((len(curves), len(grid)), math.nan)
    for row, (steps, values) in enumerate(curves):
        place = np.searchsorted(np.asarray(steps, float), grid, side="right") - 1
        inside = (place >= 0) & (np.asarray(grid, float) <= steps[-1])
        values_RG[row, inside] = np.asarray(values, float)[place[inside]]
    return values_RG


def band(values_RG: np.ndarray, *, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of the 95 % percentile bootstrap interval of the mean over runs, at each place. [G], [G]

    The runs are drawn anew as wholes, so that the ends belong together along a curve.

    >>> [end.tolist() for end in band(np.array([[0.0, 1.0], [1.0, 1.0]]))]
    [[0.0, 1.0], [1.0, 1.0]]
    """
    runs = len(values_RG)
    drawn_NR = np.random.default_rng(SEED).integers(runs, size=(resamples, runs))
    ends = np.percentile(values_RG[drawn_NR].mean(axis=1), [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)
    return ends[0], ends[1]


def check_scores(scores: Scores) -> None:
    """Raises: ValueError where there is no task, a task without runs, or a score that is no number."""
    if not scores or min(len(task) for task in scores) == 0:
        raise ValueError(f"every task must have at least one run (got {[len(task) for task in scores]})")
    if not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores must be finite numbers")


def check_pair(scores: Scores, others: Scores) -> None:
    """Raises: ValueError where two methods do not have the same number of tasks."""
    check_scores(scores)
    check_scores(others)
    if len(scores) != len(others):
        raise ValueError(f"both methods must have the same tasks (got {len(scores)} and {len(others)})")
