"""Runs that differ in nothing but their seeds, as one: what a page with several seeds draws a mean of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mbrl.report.record import NOT_TELLING, Record
from mbrl.rundir.folder import leaves
from mbrl.statistics import band, on_grid

Curve = tuple[Sequence[float], Sequence[float]]
"""Env steps and values."""
MOST_PLACES = 400
"""A mean is drawn at so many env steps at most."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with a seed of its own."""

    runs: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """A run that has all that they share."""
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """`seed 3`, `seeds 0, 1, 2`."""
        found = [str(run.config["seed"]) for run in self.runs]
        return f"seed{'s' * (len(found) > 1)} {', '.join(found)}"

    def curves(self, column: str) -> list[Curve]:
        """The filled cells of a column, for each run that has any."""
        return [curve for run in self.runs if (curve := run.points(column))[0]]


@dataclass(frozen=True)
class Mean:
    """The mean of several curves with its 95 % interval over them, where all of them are measured."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_of(curves: Sequence[Curve]) -> Mean:
    """At every env step of any of the curves, or evenly many of them; a value holds until the next one."""
    grid = np.array(sorted({step for steps, _ in curves for step in steps}))
    if len(grid) > MOST_PLACES:
        grid = grid[np.linspace(0, len(grid) - 1, MOST_PLACES).round().astype(int)]
    values_RG = on_grid(curves, grid.tolist())
    there = np.isfinite(values_RG).all(axis=0)
    grid, values_RG = grid[there], values_RG[:, there]
    return Mean(grid, values_RG.mean(axis=0), *band(values_RG))


def grouped(records: Sequence[Record]) -> list[Group]:
    """The runs in their order, those together that differ in their seeds only; a seed comes once in a group."""
    found: dict[object, list[Record]] = {}
    for record in records:
        same = tuple(telling(record))
        number = 0
        while any(run.config["seed"] == record.config["seed"] for run in found.get((same, number), ())):
            number += 1
        found.setdefault((same, number), []).append(record)
    return [Group(tuple(runs)) for runs in found.values()]


def telling(record: Record) -> Iterator[tuple[str, str]]:
    """What makes runs differ: their task, and all of the configuration that can change what was learned."""
    for key, value in leaves(record.config):
        if key.startswith("task.") or not any(key.startswith(name) for name in NOT_TELLING):
            yield key, str(value)
