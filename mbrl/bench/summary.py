"""Tables of runs: scores by task and method, over tasks, and between methods. Refuses what cannot be averaged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mbrl.bench.results import Run, check_same_method, check_terms
from mbrl.rundir.result import success_interval
from mbrl.statistics import AGGREGATES, aggregate, paired, probability_of_improvement, steps_to_threshold

Row = dict[str, str]
THRESHOLDS = (0.5, 0.8)
"""Success rates whose first env steps are told."""
MAY_DIFFER = ("obs", "demos", "rehearsal")
"""What rows of one table may differ in: it is told in each row; a row itself is of one kind."""


def by_task(runs: Sequence[Run], score: str) -> list[Row]:
    """A row for each task and method: its seeds' final scores. Raises: ValueError."""
    check_rows(runs)
    rows = []
    for (task, method), own in groups(runs).items():
        values = finals(own, score)
        random = [value for run in own if (value := run.value(score, "random")) is not None]
        row = {"task": task, "method": method, **given(own), "seeds": str(len(own))}
        row["random"] = f"{np.mean(random):.2f}" if random else ""
        row[score] = str(aggregate([values], "mean")) if len(own) > 1 else of_one(own[0], score)
        row["lowest"], row["highest"] = f"{values.min():.2f}", f"{values.max():.2f}"
        if score != "reward":
            curves = [run.curve(score) for run in own]
            for bar in THRESHOLDS:
                reached = steps_to_threshold(curves, bar) if all(steps for steps, _ in curves) else ""
                row[f"env steps to {bar}"] = str(reached)
        rows.append(row)
    return rows


def by_method(runs: Sequence[Run], score: str) -> list[Row]:
    """A row for each method, over the tasks that all methods have. Raises: ValueError."""
    if score == "reward":
        raise ValueError("rewards of several tasks are not averaged; take show=tasks, or score=success")
    check_rows(runs, over_tasks=True)
    tasks, found = common(runs)
    rows = []
    for method, own in found.items():
        scores = [finals(own[task], score) for task in tasks]
        row = {"method": method, **given(own[tasks[0]])}
        row |= {"tasks": str(len(tasks)), "runs": str(sum(map(len, scores)))}
        rows.append(row | {name: str(aggregate(scores, name)) for name in AGGREGATES})
    return rows


def pairs(runs: Sequence[Run], score: str) -> list[Row]:
    """A row for every two methods, on the tasks that all have; all terms must be the same. Raises: ValueError."""
    check_terms(runs)
    check_same_method(runs, over_tasks=True)
    tasks, found = common(runs)
    if len(found) < 2:
        raise ValueError(f"show=pairs needs at least two methods (got {', '.join(found)})")
    rows = []
    for (one, mine), (two, theirs) in itertools.combinations(found.items(), 2):
        better = probability_of_improvement(
            [finals(mine[task], score) for task in tasks], [finals(theirs[task], score) for task in tasks]
        )
        row = {"methods": f"{one} against {two}", "tasks": str(len(tasks)), "P(better)": str(better)}
        same = [sorted({run.seed for run in mine[t]} & {run.seed for run in theirs[t]}) for t in tasks]
        if all(same) and (score != "reward" or len(tasks) == 1):  # rewards of several tasks are not averaged
            twins = [
                [finals([run for seed in seeds for run in own[t] if run.seed == seed], score) for own in (mine, theirs)]
                for t, seeds in zip(tasks, same, strict=True)
            ]
            test = paired([a for a, _ in twins], [b for _, b in twins])
            row |= {"same seeds": str(sum(map(len, same))), "difference": str(test.difference)}
            row |= {"p": f"{test.p:.3g}", "wins/ties/losses": f"{test.wins}/{test.ties}/{test.losses}"}
        rows.append(row)
    return rows


def check_rows(runs: Sequence[Run], *, over_tasks: bool = False) -> None:
    """That the runs may stand in one table or figure, and that a row (a line) averages runs of one kind.

    Args:
        over_tasks: a row is of a method, over its tasks; else of a task and a method.
    Raises: ValueError with the two values that differ.
    """
    check_terms(runs, but=MAY_DIFFER)
    check_same_method(runs, over_tasks=over_tasks)
    rows: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        rows.setdefault((run.method,) if over_tasks else (run.task, run.method), []).append(run)
    for own in rows.values():
        check_terms(own)


def of_one(run: Run, score: str) -> str:
    """The final score of a lone run; a success rate with Wilson's interval, which is over its episodes, not seeds."""
    final = next(point for point in run.points if point.kind == "final")
    value = getattr(final, score)
    if score == "reward" or not final.episodes:
        return f"{value:.2f}"
    low, high = success_interval(round(value * final.episodes), round(final.episodes))
    return f"{value:.2f} [{low:.2f}, {high:.2f}] of {final.episodes:.0f} episodes"


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs of every task and method, in the order of their seeds."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.task, run.method, run.seed)):
        found.setdefault((run.task, run.method), []).append(run)
    return found


def common(runs: Sequence[Run]) -> tuple[list[str], dict[str, dict[str, list[Run]]]]:
    """The tasks that every method has, and of every method the runs of each. Raises: ValueError if there are none."""
    found: dict[str, dict[str, list[Run]]] = {}
    for (task, method), own in groups(runs).items():
        found.setdefault(method, {})[task] = own
    tasks = sorted(set.intersection(*(set(tasks) for tasks in found.values())))
    if not tasks:
        raise ValueError(f"there is no task that all methods have ({', '.join(found)}); choose some with method=")
    return tasks, found


def finals(runs: Sequence[Run], score: str) -> np.ndarray:
    """Final scores. Raises: ValueError naming a run that has none of this kind."""
    values = []
    for run in runs:
        if (value := run.value(score)) is None:
            raise ValueError(f"{run.source} has no {score}; take score=reward")
        values.append(value)
    return np.array(values)


def given(runs: Sequence[Run]) -> Row:
    """What a method was given, which differs between methods."""
    terms = runs[0].terms
    return {"obs": terms.obs, "demos": f"{terms.demos}{'+rehearsal' if terms.rehearsal else ''}"}


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns of a table, but those that are empty everywhere."""
    return [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]


def text(rows: Sequence[Row]) -> Iterator[str]:
    """A table for a screen."""
    names = columns(rows)
    wide = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names}
    for row in ({name: name for name in names}, *rows):
        yield "  ".join(row.get(name, "").ljust(wide[name]) for name in names).rstrip()
