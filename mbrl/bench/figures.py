"""Figures of a benchmark as SVG text that is readable on a light and on a dark page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mbrl.bench.results import Run
from mbrl.bench.summary import check_rows, common, finals, groups
from mbrl.report.page import thousands
from mbrl.report.plots import COLOURS
from mbrl.statistics import aggregate, on_grid, performance_profile

MIDDLE = "#808080"
"""Grey that can be read on white and on black."""
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), MIDDLE),
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": MIDDLE,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "font.size": 11,
    "svg.hashsalt": "mbrl",  # the same page twice is the same file
}
RESAMPLES = 2000


def colours(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each method, black left out: it cannot be seen on a dark page."""
    visible = COLOURS[:-1]
    methods = sorted({run.method for run in runs})
    return {method: visible[place % len(visible)] for place, method in enumerate(methods)}


def svg(figure: Figure) -> str:
    """The figure as an element for a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def curves(runs: Sequence[Run], score: str) -> str:
    """A figure for each task, side by side where there is room: seeds as thin lines, the mean of those there thick.

    Raises: ValueError where they may not be averaged or drawn beside each other.
    """
    check_rows(runs)
    by_task = {task: [run for run in runs if run.task == task] for task in sorted({run.task for run in runs})}
    return "".join(curve_of(task, own, colours(runs), score) for task, own in by_task.items())


def curve_of(task: str, runs: Sequence[Run], colour: Mapping[str, str], score: str) -> str:
    """The curves of one task."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axis = figure.subplots()
        for (_, method), own in groups(runs).items():
            drawn = [curve for run in own if (curve := run.curve(score))[0]]
            for steps, values in drawn:
                axis.plot(steps, values, color=colour[method], lw=0.8, alpha=0.45)
            if drawn:
                grid = sorted({step for steps, _ in drawn for step in steps})
                means = on_grid(drawn, grid).mean(axis=0)  # nan, and so no line, where a seed is missing
                axis.plot(grid, means, color=colour[method], lw=2.2, marker=".", label=f"{method} ({len(drawn)})")
        finish(axis, task, score)
        return svg(figure)


def efficiency(runs: Sequence[Run], score: str) -> str:
    """IQM over the tasks that all methods have, with its interval, where every run has been evaluated.

    Raises: ValueError as `profiles`.
    """
    check_rows(runs, over_tasks=True)
    tasks, found = common(runs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.subplots()
        for method, own in found.items():
            drawn = {task: [run.curve(score) for run in own[task]] for task in tasks}
            if not all(steps for found_curves in drawn.values() for steps, _ in found_curves):
                continue
            grid = sorted({step for found_curves in drawn.values() for steps, _ in found_curves for step in steps})
            values = {task: on_grid(found_curves, grid) for task, found_curves in drawn.items()}
            whole = [i for i in range(len(grid)) if all(np.isfinite(one[:, i]).all() for one in values.values())]
            points = [aggregate([one[:, i] for one in values.values()], resamples=RESAMPLES) for i in whole]
            steps = [grid[i] for i in whole]
            colour = colours(runs)[method]
            axis.plot(steps, [point.value for point in points], color=colour, lw=2.2, marker=".", label=method)
            bounds = ([point.low for point in points], [point.high for point in points])
            axis.fill_between(steps, *bounds, color=colour, alpha=0.2, lw=0)
        finish(axis, f"IQM over {len(tasks)} task{'s' * (len(tasks) > 1)}, 95 % interval", score)
        return svg(figure)


def profiles(runs: Sequence[Run], score: str) -> str:
    """Share of the runs above each score, over the tasks that all methods have.

    Raises: ValueError where they may not be averaged.
    """
    check_rows(runs, over_tasks=True)
    tasks, found = common(runs)
    bars = np.linspace(0, 1, 101).tolist()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.subplots()
        for method, own in found.items():
            share = performance_profile([finals(own[task], score) for task in tasks], bars)
            axis.plot(bars, share, color=colours(runs)[method], lw=2.2, label=method)
        axis.set(xlabel=f"final {said(score)}", ylabel="share of runs above it", ylim=(-0.03, 1.03))
        axis.set_title("performance profile", loc="left")
        axis.legend(frameon=False)
        return svg(figure)


def finish(axis: Any, title: str, score: str) -> None:
    """Labels of a panel over env steps."""
    axis.set_title(title, loc="left")
    axis.set(xlabel="env steps", ylabel=said(score))
    axis.xaxis.set_major_formatter(thousands)
    if score != "reward":
        axis.set_ylim(-0.03, 1.03)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9)


NAMES: Mapping[str, str] = {
    "success": "success rate",
    "success_last": "success rate at the last decision",
    "reward": "return",
}


def said(score: str) -> str:
    """A score as an axis names it."""
    return NAMES[score]
