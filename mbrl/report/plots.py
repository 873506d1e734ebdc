"""The kinds of panels on a report's page, for one run or for several in the same plot.

Knows no column by name (panels.py does) and no place on the page (page.py does).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mbrl.report.groups import Curve, Group, mean_of
from mbrl.report.record import Record, Row
from mbrl.run.progress import PHASES
from mbrl.rundir.result import half_interval

BLUE, ORANGE, GREEN, PURPLE, RED, SKY, OCHRE, BLACK = COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#000000",
)  # fmt: skip
"""Colours that colour-blind readers can tell apart too; of the lines of one run, or of several runs."""
STROKES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Where colours mean runs, strokes mean lines."""
GREY = "#777777"
OPAQUE = 0.85
FEW = 40
"""Up to so many points are drawn as dots too: a lone one would not be seen as a line."""
SHARED = 3
"""A legend tells last values of up to so many runs."""
MOST_NAMES = 40
"""So many bars are named at most."""


@dataclass(frozen=True)
class Drawn:
    """What is to be said beside a panel's plot: its legend, and small print."""

    handles: Sequence[Any]
    notes: Sequence[str] = ()


class Panel(Protocol):
    """One small plot."""

    @property
    def title(self) -> str:
        """Over the panel."""

    @property
    def unit(self) -> str:
        """Of y."""

    def has(self, record: Record) -> bool:
        """Whether the run measured any of it."""

    def over_steps(self, runs: int) -> bool:
        """Whether x is env steps where so many runs are drawn."""

    def draw(self, axis: Any, groups: Sequence[Group]) -> Drawn:
        """Draws the runs, at least one of which has something; one group alone gets a colour for each line."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One column as a line.

    Attributes:
        column: its name; `*` stands for anything, and then every column of that form is a line.
        label: in the legend.
        last: columns whose last value the legend tells, the first that is there: (column, text with {}).
        right: on an axis of its own, at the right.
    """

    column: str
    label: str
    last: tuple[tuple[str, str], ...] = ()
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Columns over env steps.

    Attributes:
        gate: the threshold of the actor's gate that is drawn, by its name there.
        floor: what lies lower is cut off, and the panel says so.
        ceiling: the upper end.
        right_unit: of the axis at the right.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    gate: str = ""
    floor: float | None = None
    ceiling: float | None = None
    right_unit: str = ""

    def has(self, record: Record) -> bool:
        """Whether any of the columns is filled anywhere."""
        return any(record.columns(line.column) for line in self.lines)

    def over_steps(self, runs: int) -> bool:
        """Always."""
        return True

    def draw(self, axis: Any, groups: Sequence[Group]) -> Drawn:
        """Draws every line of every run, what the gate demands of them, and the mean of several seeds."""
        right = None
        alone = len(groups) == 1
        records = [run for group in groups for run in group.runs]
        handles = []
        for place, line in enumerate(self.resolved(records)):
            if line.right and right is None:
                right = axis.twinx()
                right.set_ylabel(self.right_unit)
                right.grid(visible=False)
            for number, group in enumerate(groups):
                curves = group.curves(line.column)
                colour, stroke = colour_of(place if alone else number), "-" if alone else STROKES[place % len(STROKES)]
                draw_curves(right if line.right and right else axis, curves, color=colour, ls=stroke)
            last = [text for run in records for text in last_of(run, line)] if len(records) <= SHARED else []
            label = line.label + (f" ({', '.join(last)})" if last else "")
            handles.append(entry(label, place, alone=alone))
        handles += self._gates(axis, records)
        return Drawn(handles, self._limits(axis, records))

    def resolved(self, records: Sequence[Record]) -> Iterator[Line]:
        """The lines that any of the runs has, those with a `*` once for each column."""
        for line in self.lines:
            head, _, tail = line.column.partition("*")
            columns = {name for record in records for name in record.columns(line.column)}
            for column in sorted(columns, key=lambda name: (len(name), name)):  # 10 comes after 5
                middle = column.removeprefix(head).removesuffix(tail)
                last = tuple((pattern.replace("*", middle), text) for pattern, text in line.last)
                yield replace(line, column=column, label=line.label.replace("*", middle.replace("_", " ")), last=last)

    def _gates(self, axis: Any, records: Sequence[Record]) -> list[Any]:
        """A horizontal line for what the gate demands."""
        wanted = sorted({record.gate[self.gate] for record in records if self.gate in record.gate})
        label = f"gate: {', '.join(f'{value:g}' for value in wanted)}"
        return [axis.axhline(value, color=RED, ls=(0, (4, 3)), lw=1.2, label=label) for value in wanted][:1]

    def _limits(self, axis: Any, records: Sequence[Record]) -> list[str]:
        """Cuts off what lies below the floor, and says so; says too how many values are no numbers."""
        columns = [line.column for line in self.resolved(records) if not line.right]
        values = [y for record in records for column in columns for y in record.points(column)[1]]
        finite = [y for y in values if math.isfinite(y)]
        notes = []
        if self.ceiling is not None:
            axis.set_ylim(top=self.ceiling)
        if self.floor is not None and finite:
            axis.set_ylim(bottom=max(self.floor, min(0.0, min(finite)) - 0.05))
            if min(finite) < self.floor:
                notes.append(f"lowest: {min(finite):.3g}, below what is drawn")
        if len(finite) < len(values):
            notes.append(f"{len(values) - len(finite)} values are no finite numbers")
        return notes


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Interim evaluations with their 95 % intervals, the final score, the random policy, and the episodes of training.

    Attributes:
        column: of eval.csv.
        training: column of metrics.csv.
    """

    title: str
    unit: str
    column: str
    training: str

    def has(self, record: Record) -> bool:
        """Whether there is an evaluation or an episode."""
        return bool(record.columns(self.column) or record.columns(self.training))

    def over_steps(self, runs: int) -> bool:
        """Always."""
        return True

    def draw(self, axis: Any, groups: Sequence[Group]) -> Drawn:
        """Draws the runs; the thin line is training, the dashed one the random policy."""
        alone = len(groups) == 1
        for number, group in enumerate(groups):
            colour = colour_of(number)
            if curves := group.curves(self.training):
                steps, values = middle_of(curves)
                axis.plot(steps, values, color=ORANGE if alone else colour, lw=1.1, alpha=0.9 if alone else 0.45)
            random = [run.random[self.column] for run in group.runs if run.random and self.column in run.random]
            if random:
                axis.axhline(float(np.mean(random)), color=BLACK if alone else colour, ls="--", lw=1.0)
            over = len(groups) - 1 - number if len(groups) <= len(COLOURS) else 0
            self._draw_greedy(
                axis, group, colour, dot=5 + min(8, 2 * over)
            )  # one that lies under another is still seen
        if self.column == "success":
            axis.set_ylim(-0.04, 1.04)
        main, thin = (BLUE, ORANGE) if alone else (GREY, GREY)
        seeds = max(len(group.runs) for group in groups) > 1
        greedy = Line2D([], [], color=main, marker="o", ms=5, lw=1.8, label=f"greedy, {'mean of seeds, ' * seeds}95 %")
        final = Line2D([], [], color=main, marker="*", ms=11, lw=0, label="final score, other starts")
        random_line = Line2D([], [], color=BLACK if alone else GREY, ls="--", lw=1.0, label="random policy")
        episodes = Line2D([], [], color=thin, lw=1.1, label="training episodes")
        return Drawn([greedy, final, random_line, episodes])

    def _draw_greedy(self, axis: Any, group: Group, colour: Any, *, dot: float) -> None:
        """One run with the intervals over its episodes, several as their mean with the interval over them."""
        rows = [[row for row in run.greedy if self.column in row] for run in group.runs]
        look: Any = {"color": colour, "marker": "o", "ms": dot, "lw": 1.8, "capsize": 3, "elinewidth": 1.2}
        curves: list[Curve] = [([r["env_step"] for r in own], [r[self.column] for r in own]) for own in rows if own]
        if len(curves) > 1:
            for curve in curves:
                axis.plot(*curve, color=colour, lw=0.7, alpha=0.4)
            mean = mean_of(curves)
            axis.errorbar(mean.steps, mean.values, yerr=[mean.values - mean.low, mean.high - mean.values], **look)
        elif curves:
            bounds = [interval(row, self.column) for own in rows for row in own]
            axis.errorbar(*curves[0], yerr=list(zip(*bounds, strict=True)), **look)
        for run in group.runs:
            if run.final and self.column in run.final:
                at = run.final["weights_step"], run.final[self.column]
                axis.plot(*at, color=colour, marker="*", ms=dot + 7, mec=BLACK, mew=0.6, zorder=5)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Shares of the time by phase: over env steps for one run, of the whole run where there are several."""

    title: str
    unit: str

    def has(self, record: Record) -> bool:
        """Whether any phase took time."""
        return bool(self.seconds(record)[1])

    def over_steps(self, runs: int) -> bool:
        """Only for one run."""
        return runs == 1

    def seconds(self, record: Record) -> tuple[list[float], dict[str, list[float]]]:
        """Env steps at which rows end, and the seconds of each phase up to them; rows of one env step are summed."""
        steps = sorted({row["env_step"] for row in record.training})
        places = {step: place for place, step in enumerate(steps)}
        spent = {phase: [0.0] * len(steps) for phase in PHASES if record.columns(f"time/{phase}_s")}
        for row in record.training:
            for phase, values in spent.items():
                values[places[row["env_step"]]] += max(0.0, row.get(f"time/{phase}_s", 0.0))
        return steps, {phase: values for phase, values in spent.items() if sum(values) > 0}

    def draw(self, axis: Any, groups: Sequence[Group]) -> Drawn:
        """Stacks the shares."""
        records = [run for group in groups for run in group.runs]
        if len(records) == 1:
            return Drawn(self._draw_shares(axis, records[0]))
        alone = len(groups) == 1
        bars = [(run,) for run in records] if alone else [group.runs for group in groups]
        for number, runs in enumerate(bars):
            self._bar(axis, number, runs)
        names = [str(run.config["seed"]) for run in records] if alone else [letter(n) for n in range(len(groups))]
        every = math.ceil(len(names) / MOST_NAMES)
        axis.set_yticks(range(0, len(names), every), names[::every], fontweight="bold")
        for number, tick in enumerate(axis.get_yticklabels()):
            tick.set_fontsize(min(10.5, 10.5 * 16 / len(names[::every])))
            tick.set_color(BLACK if alone else colour_of(number * every))
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set(xlabel="minutes", ylabel="seed" if alone else "")
        taken = [phase for phase in PHASES if any(phase in self.seconds(record)[1] for record in records)]
        return Drawn([Patch(color=COLOURS[PHASES.index(phase)], alpha=OPAQUE, label=phase) for phase in taken])

    def _draw_shares(self, axis: Any, record: Record) -> list[Any]:
        """The shares of one run over its env steps."""
        steps, spent = self.seconds(record)
        totals = [sum(column) or 1.0 for column in zip(*spent.values(), strict=True)]
        shares = [[100 * s / t for s, t in zip(values, totals, strict=True)] for values in spent.values()]
        padded = [[values[0], *values] for values in shares]  # each share holds from the row before
        whole = sum(map(sum, spent.values()))
        labels = [f"{phase} {100 * sum(values) / whole:.0f}" for phase, values in spent.items()]
        colours = [COLOURS[PHASES.index(phase)] for phase in spent]
        return list(
            axis.stackplot([0.0, *steps], padded, step="pre", colors=colours, labels=labels, alpha=OPAQUE, lw=0)
        )

    def _bar(self, axis: Any, number: int, runs: Sequence[Record]) -> None:
        """Runs as one bar, as long as they took in the mean."""
        begin = 0.0
        spent = [self.seconds(run)[1] for run in runs]
        for phase in PHASES:
            minutes = sum(sum(one.get(phase, ())) for one in spent) / len(runs) / 60
            colour = COLOURS[PHASES.index(phase)]
            axis.barh([number], [minutes], left=[begin], height=0.6, color=colour, alpha=OPAQUE)
            begin += minutes


def draw_curves(axis: Any, curves: Sequence[Curve], *, color: Any, ls: Any) -> None:
    """One curve as a line, several as thin ones with their mean and its 95 % interval over them."""
    if len(curves) > 1:
        for steps, values in curves:
            axis.plot(steps, values, color=color, ls=ls, lw=0.6, alpha=0.35)
        mean = mean_of(curves)
        axis.fill_between(mean.steps, mean.low, mean.high, color=color, alpha=0.15, lw=0)
        curves = [(mean.steps.tolist(), mean.values.tolist())]
    for steps, values in curves:
        marker = "." if len(steps) <= FEW else ""
        axis.plot(steps, values, color=color, ls=ls, marker=marker, ms=5, lw=1.6)


def middle_of(curves: Sequence[Curve]) -> Curve:
    """The only curve, or the mean of several."""
    if len(curves) == 1:
        return curves[0]
    mean = mean_of(curves)
    return mean.steps.tolist(), mean.values.tolist()


def colour_of(number: int) -> Any:
    """One of `COLOURS`, and beyond them hues by the golden angle, in turns dark and bright: no two are the same."""
    if number < len(COLOURS):
        return COLOURS[number]
    return colorsys.hls_to_rgb(number * 0.618034 % 1.0, (0.35, 0.6)[number % 2], 0.7)


def letter(number: int) -> str:
    """What a run is called on a page with several: A, B, C, ... Z, AA, AB, ..."""
    before, place = divmod(number, 26)
    return (letter(before - 1) if before else "") + chr(ord("A") + place)


def interval(row: Row, column: str) -> tuple[float, float]:
    """How far the 95 % interval of a score reaches down and up; (0, 0) where the row does not say."""
    if {f"{column}_low", f"{column}_high"} <= row.keys():
        return max(0.0, row[column] - row[f"{column}_low"]), max(0.0, row[f"{column}_high"] - row[column])
    half = half_interval(row.get(f"{column}_std", 0.0), row.get("episodes", 1.0))
    return half, half


def last_of(record: Record, line: Line) -> list[str]:
    """The last value of the first column that the legend is to tell and the run has; else nothing."""
    found = [(record.points(column)[1], text) for column, text in line.last]
    return [text.format(f"{values[-1]:.2g}") for values, text in found if values][:1]


def entry(label: str, place: int, *, alone: bool) -> Any:
    """A legend entry: the line's colour where there is one run, its stroke where colours mean runs."""
    look: Any = {"color": colour_of(place)} if alone else {"color": GREY, "ls": STROKES[place % len(STROKES)]}
    return Line2D([], [], lw=1.6, label=label, **look)
