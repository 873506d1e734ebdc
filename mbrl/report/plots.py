"""The kinds of panels on a report's page, for one run or for several in the same plot.

Knows no column by name (panels.py does) and no place on the page (page.py does).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

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

    def draw(self, axis: Any, records: Sequence[Record]) -> None:
        """Draws the runs, at least one of which has something; one alone gets a colour for each line."""


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

    def draw(self, axis: Any, records: Sequence[Record]) -> None:
        """Draws every line of every run, what the gate demands of them, and a legend."""
        right = None
        handles = []
        for place, line in enumerate(self.resolved(records)):
            if line.right and right is None:
                right = axis.twinx()
                right.set_ylabel(self.right_unit)
                right.grid(visible=False)
            last = []
            for number, record in enumerate(records):
                steps, values = record.points(line.column)
                if not steps:
                    continue
                colour = COLOURS[place if len(records) == 1 else number]
                stroke = "-" if len(records) == 1 else STROKES[place % len(STROKES)]
                marker = "." if len(steps) <= FEW else ""
                (right if line.right and right else axis).plot(
                    steps, values, color=colour, ls=stroke, marker=marker, ms=5, lw=1.6
                )
                last += last_of(record, line)
            label = line.label + (f" ({', '.join(last)})" if last else "")
            handles.append(entry(label, place, alone=len(records) == 1))
        handles += self._gates(axis, records)
        self._limits(axis, records)
        legend(axis, handles)

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

    def _limits(self, axis: Any, records: Sequence[Record]) -> None:
        """Cuts off what lies below the floor, and says so; says too where values are no numbers."""
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
        remark(axis, notes)


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

    def draw(self, axis: Any, records: Sequence[Record]) -> None:
        """Draws the runs; the thin line is training, the dashed one the random policy."""
        alone = len(records) == 1
        for number, record in enumerate(records):
            colour = COLOURS[number]
            steps, values = record.points(self.training)
            axis.plot(steps, values, color=ORANGE if alone else colour, lw=1.1, alpha=0.9 if alone else 0.45)
            if record.random and self.column in record.random:
                axis.axhline(record.random[self.column], color=BLACK if alone else colour, ls="--", lw=1.0)
            rows = [row for row in record.greedy if self.column in row]
            bounds = [interval(row, self.column) for row in rows]
            errors = list(zip(*bounds, strict=True)) if rows else None
            x, y = [row["env_step"] for row in rows], [row[self.column] for row in rows]
            dot = 5 + min(8, 2 * (len(records) - 1 - number))  # a run that lies under another one is still seen
            axis.errorbar(x, y, yerr=errors, color=colour, marker="o", ms=dot, lw=1.8, capsize=3, elinewidth=1.2)
            if record.final and self.column in record.final:
                at = record.final["weights_step"], record.final[self.column]
                axis.plot(*at, color=colour, marker="*", ms=dot + 7, mec=BLACK, mew=0.6, zorder=5)
        if self.column == "success":
            axis.set_ylim(-0.04, 1.04)
        main, thin = (BLUE, ORANGE) if alone else (GREY, GREY)
        greedy = Line2D([], [], color=main, marker="o", ms=5, lw=1.8, label="greedy, 95 %")
        final = Line2D([], [], color=main, marker="*", ms=11, lw=0, label="final score, other starts")
        random = Line2D([], [], color=BLACK if alone else GREY, ls="--", lw=1.0, label="random policy")
        episodes = Line2D([], [], color=thin, lw=1.1, label="training episodes")
        legend(axis, [greedy, final, random, episodes])


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

    def draw(self, axis: Any, records: Sequence[Record]) -> None:
        """Stacks the shares."""
        if len(records) == 1:
            steps, spent = self.seconds(records[0])
            totals = [sum(column) or 1.0 for column in zip(*spent.values(), strict=True)]
            shares = [[100 * s / t for s, t in zip(values, totals, strict=True)] for values in spent.values()]
            padded = [[values[0], *values] for values in shares]  # each share holds from the row before
            whole = sum(map(sum, spent.values()))
            labels = [f"{phase} {100 * sum(values) / whole:.0f}" for phase, values in spent.items()]
            colours = [COLOURS[PHASES.index(phase)] for phase in spent]
            areas = axis.stackplot([0.0, *steps], padded, step="pre", colors=colours, labels=labels, alpha=OPAQUE, lw=0)
            handles = list(areas)
        else:
            for number, record in enumerate(records):
                self._bar(axis, number, record)
            taken = [phase for phase in PHASES if any(phase in self.seconds(record)[1] for record in records)]
            handles = [Patch(color=COLOURS[PHASES.index(phase)], alpha=OPAQUE, label=phase) for phase in taken]
            axis.set_yticks(range(len(records)), [letter(number) for number in range(len(records))], fontweight="bold")
            for number, tick in enumerate(axis.get_yticklabels()):
                tick.set_color(COLOURS[number])
            axis.invert_yaxis()
            axis.grid(visible=False, axis="y")
            axis.set(xlabel="minutes", ylabel="")
        legend(axis, handles, narrow=True)

    def _bar(self, axis: Any, number: int, record: Record) -> None:
        """One run as a bar, as long as the run took."""
        begin = 0.0
        for phase, values in self.seconds(record)[1].items():
            minutes, colour = sum(values) / 60, COLOURS[PHASES.index(phase)]
            axis.barh([number], [minutes], left=[begin], height=0.6, color=colour, alpha=OPAQUE)
            begin += minutes


def letter(number: int) -> str:
    """What a run is called on a page with several: A, B, C, ..."""
    return chr(ord("A") + number)


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
    look: Any = {"color": COLOURS[place]} if alone else {"color": GREY, "ls": STROKES[place % len(STROKES)]}
    return Line2D([], [], lw=1.6, label=label, **look)


def legend(axis: Any, handles: list[Any], *, narrow: bool = False) -> None:
    """The legend, between title and plot: it never hides a curve."""
    axis.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.985), ncols=len(handles) or 1, frameon=False,
        borderaxespad=0.1, fontsize=8.8 if narrow else 9.5, handlelength=0.7 if narrow else 1.5,
        handletextpad=0.3 if narrow else 0.5, columnspacing=0.6 if narrow else 1.1,
    )  # fmt: skip


def remark(axis: Any, notes: Sequence[str]) -> None:
    """Small print in a panel's lower right corner."""
    if notes:
        said = "\n".join(notes)
        axis.text(0.99, 0.02, said, transform=axis.transAxes, ha="right", va="bottom", fontsize=9, color=RED)
