"""The page itself: title, the grid of panels, the lines that go through all of them. Knows no column of a panel.

Everything that is written is measured before it is placed: rows of panels are as high as their legends and small print
need, so nothing touches anything else however many runs there are and whatever they are called.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from mbrl.report.groups import Group, grouped
from mbrl.report.heading import heading
from mbrl.report.letters import Letters
from mbrl.report.panels import PANELS
from mbrl.report.plots import GREY, RED, Drawn, Panel, colour_of, letter
from mbrl.report.record import Record, check_comparable

WIDTH, DPI = 16.0, 100
"""Inches, dots per inch: 1600 pixels wide."""
COLUMNS = 3
AXIS_LEFT, AXIS_STEP, AXIS_WIDTH, AXIS_HEIGHT = 0.95, 5.15, 4.05, 2.75
"""Inches: where the first plot of a row begins, from there to the next one, and their size."""
TITLE, LABELS = 0.36, 0.58
"""Inches over a legend for the panel's title, and below a plot for its ticks and the name of its axis."""
LEFT = 0.02
"""Where the heading begins: share of the width."""
TITLE_LINE, LINE, BANNER, FOOTING, EDGE = 0.42, 0.27, 0.5, 0.45, 0.2
"""Inches: lines of the heading, the bar over it, the page's last line, and what is left free."""
HEADLINE, HEADING, LEGEND, SMALL = 18, 12.5, 9.5, 9
"""Points of letters."""
GAP, BETWEEN = 10, 4.0
"""Pixels between a group's letter and its paragraph, and between the numbers of a plot and the next plot's."""
STYLE: Any = {
    "text.parse_math": False,  # a name with two dollars is a name
    "font.size": 11,
    "axes.titlesize": 13.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
}
DARK, ALARM = "#444444", "#C00000"
PREFILL, ACTOR = (0, (1, 2)), (0, (5, 2))
"""Strokes of the vertical lines: the end of the prefill, the first row of the actor."""


def page(records: Sequence[Record]) -> bytes:
    """`draw` as a PNG."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(records).savefig(stream, format="png")
    return stream.getvalue()


def draw(records: Sequence[Record], panels: Sequence[Panel] = PANELS) -> Figure:
    """The page about runs of the same protocol; those that differ in their seeds only are drawn as one.

    Raises: ValueError for runs of different protocols, and for none.
    """
    if not records:
        raise ValueError("a page is about at least one run (got none)")
    check_comparable(records)
    groups = grouped(records)
    paragraphs = heading(groups)
    letters = Letters.of([*paragraphs, *(name for record in records for name in record.columns("*"))], dpi=DPI)
    with matplotlib.rc_context(STYLE | {"font.family": list(letters.families)}):
        figure = Figure(figsize=(WIDTH, 10.0), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        until = max(row["env_step"] for record in records for row in (*record.training, *record.scores))
        placed = []
        for panel in panels:
            axis = figure.add_axes((0, 0, AXIS_WIDTH / WIDTH, AXIS_HEIGHT / 10.0))
            drawn = draw_panel(axis, panel, groups, until=until)
            placed.append((axis, *write_beside(axis, panel, drawn, letters)))
        lines = heading_lines(groups, paragraphs, letters)
        banner = BANNER * any(record.oracle for record in records)
        place_panels(figure, placed, above=EDGE + sum(line.height for line in lines) + banner + EDGE)
        write_heading(figure, lines, groups)
        write_footing(figure, records)
    return figure


def draw_panel(axis: Any, panel: Panel, groups: Sequence[Group], *, until: float) -> Drawn:
    """One panel, or the words that it was not measured."""
    axis.set_ylabel(panel.unit)
    missing = [letter(number) for number, group in enumerate(groups) if not any(panel.has(run) for run in group.runs)]
    runs = sum(len(group.runs) for group in groups)
    if len(missing) == len(groups):
        said = "not measured in this run" if runs == 1 else "not measured in these runs"
        axis.text(0.5, 0.5, said, transform=axis.transAxes, ha="center", va="center", color=GREY, fontsize=13)
        axis.set(yticks=[], ylabel="", xticks=[])
        axis.spines[:].set_visible(False)
        axis.set_facecolor("#F7F7F7")
        return Drawn([])
    drawn = panel.draw(axis, groups)
    if panel.over_steps(runs):
        axis.set(xlim=(0, until * 1.03), xlabel="env steps")
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(thousands))
        mark_moments(axis, groups)
    return Drawn(drawn.handles, [*drawn.notes, *([f"not measured in {', '.join(missing)}"] if missing else [])])


def write_beside(axis: Any, panel: Panel, drawn: Drawn, letters: Letters) -> tuple[float, float]:
    """Legend and title over the plot, small print below it; the inches that the legend and the small print take."""
    above = 0.0
    if drawn.handles:
        legend = fitting_legend(axis, drawn.handles, letters)
        above = legend.get_window_extent(axis.figure.canvas.get_renderer()).height / DPI
    axis.set_title(panel.title, loc="left", pad=72 * (above + 0.06))
    lines = [line for note in drawn.notes for line in letters.wrapped(note, SMALL, most=AXIS_WIDTH * DPI)]
    if not lines:
        return above, 0.0
    said = "\n".join(lines)
    where = {"xy": (0, 0), "xycoords": "axes fraction", "xytext": (0, -72 * LABELS), "textcoords": "offset points"}
    colour = RED if len(drawn.notes) > 1 or not said.startswith("not measured") else GREY
    text = axis.annotate(said, **where, ha="left", va="top", color=colour, fontsize=SMALL, annotation_clip=False)
    return above, text.get_window_extent(axis.figure.canvas.get_renderer()).height / DPI + 0.05


def fitting_legend(axis: Any, handles: Sequence[Any], letters: Letters) -> Any:
    """The legend, between title and plot, where it hides no curve: as many columns as fit over the plot."""
    most = AXIS_WIDTH * DPI
    for handle in handles:
        handle.set_label(letters.shortened(handle.get_label(), LEGEND, most=most - 40))
    for columns in range(len(handles), 0, -1):
        legend = axis.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.995), ncols=columns, frameon=False,
            borderaxespad=0.1, borderpad=0.2, fontsize=LEGEND, handlelength=1.3, handletextpad=0.4, columnspacing=0.9,
            labelspacing=0.25,
        )  # fmt: skip
        if legend.get_window_extent(axis.figure.canvas.get_renderer()).width <= most + 10:
            break
    return legend


def place_panels(figure: Figure, placed: Sequence[tuple[Any, float, float]], *, above: float) -> None:
    """Puts the panels in rows, each as high as its highest legend and its longest small print; sizes the page."""
    rows = [placed[first : first + COLUMNS] for first in range(0, len(placed), COLUMNS)]
    top = above
    bottoms = []
    for row in rows:
        bottoms.append(top + TITLE + max(legend for _, legend, _ in row) + AXIS_HEIGHT)
        top = bottoms[-1] + LABELS + max(notes for _, _, notes in row)
    height = top + FOOTING
    figure.set_size_inches(WIDTH, height)
    for row, bottom in zip(rows, bottoms, strict=True):
        for column, (axis, _, _) in enumerate(row):
            left = AXIS_LEFT + column * AXIS_STEP
            axis.set_position((left / WIDTH, 1 - bottom / height, AXIS_WIDTH / WIDTH, AXIS_HEIGHT / height))
        make_room([axis for axis, _, _ in row])


def make_room(row: Sequence[Any]) -> None:
    """Makes the plots narrower whose numbers beside them would leave the page or reach the plot at their left."""
    figure = row[0].figure
    renderer, page = figure.canvas.get_renderer(), figure.bbox.width
    free = BETWEEN  # pixels from the left
    for axis in row:
        for one in axis.get_shared_x_axes().get_siblings(axis):
            if isinstance(one.yaxis.get_major_formatter(), ScalarFormatter):
                one.yaxis.set_major_formatter(FuncFormatter(compact))
        beside = [one.yaxis.get_tightbbox(renderer) for one in axis.get_shared_x_axes().get_siblings(axis)]
        boxes = [axis.get_window_extent(renderer), *(box for box in beside if box is not None)]
        low, high = min(box.x0 for box in boxes), max(box.x1 for box in boxes)
        x, y, width, tall = axis.get_position().bounds
        left, right = max(0.0, free - low) / page, max(0.0, high + BETWEEN - page) / page
        axis.set_position((x + left, y, width - left - right, tall))
        free = high + BETWEEN


def mark_moments(axis: Any, groups: Sequence[Group]) -> None:
    """Vertical lines at the end of the prefill and where the actor starts; grey where all runs agree."""
    for stroke, moments in (
        (PREFILL, [[run.prefill for run in group.runs] for group in groups]),
        (ACTOR, [[run.actor_start for run in group.runs] for group in groups]),
    ):
        agreed = len({moment for own in moments for moment in own}) == 1
        for number, own in enumerate(moments[:1] if agreed else moments):
            colour = DARK if agreed or len(groups) == 1 else colour_of(number)
            for moment in dict.fromkeys(own):
                if moment is not None:
                    axis.axvline(moment, color=colour, ls=stroke, lw=1.3, zorder=1)


def thousands(value: float, _place: int) -> str:
    """`2500` -> `2.5k`."""
    return f"{value / 1000:g}k" if value else "0"


def compact(value: float, _place: int) -> str:
    """`-1200000.0` -> `-1.2e6`: each number is whole, since a factor over the plot would stand in its legend."""
    return f"{value:g}".replace("e+0", "e").replace("e-0", "e-").replace("-", "\u2212")


@dataclass(frozen=True)
class Line:
    """A line of the heading: its text, where it begins (share of the width), its points, and what stands before it."""

    text: str
    left: float
    size: float
    mark: str = ""
    colour: Any = "black"

    @property
    def height(self) -> float:
        """Inches."""
        return TITLE_LINE if self.size == HEADLINE else LINE


def heading_lines(groups: Sequence[Group], paragraphs: Sequence[str], letters: Letters) -> list[Line]:
    """The heading on lines that fit the page; the letter of a group stands before its first line."""
    lines = []
    widest = max(letters.width(letter(number), HEADING, "bold") for number in range(len(groups)))
    inside = LEFT + (widest + GAP) / (WIDTH * DPI)
    for place, text in enumerate(paragraphs):
        size, weight = (HEADING, "normal") if place else (HEADLINE, "bold")
        left = inside if len(groups) > 1 and place else LEFT
        mark, colour = "", "black"
        if len(groups) > 1 and 0 < place <= len(groups):
            mark, colour = letter(place - 1), colour_of(place - 1)
            text = text.removeprefix(f"{mark}  ")
        for line in letters.wrapped(text, size, most=(1 - LEFT - left) * WIDTH * DPI, weight=weight):
            lines.append(Line(line, left, size, mark, colour))
            mark = ""
    return lines


def write_heading(figure: Figure, lines: Sequence[Line], groups: Sequence[Group]) -> None:
    """The heading; an oracle world model gets a red bar over the page."""
    height = figure.get_figheight()
    y = height - EDGE
    oracles = [any(run.oracle for run in group.runs) for group in groups]
    if any(oracles):
        figure.patches.append(
            Rectangle((0, (height - BANNER) / height), 1, BANNER / height, transform=figure.transFigure, color=ALARM)
        )
        which = [letter(number) for number, oracle in enumerate(oracles) if oracle]
        where = "" if len(groups) == 1 else f" IN {', '.join(which)}" if len(which) < len(groups) else " IN ALL"
        said = f"PERFECT WORLD MODEL{where}: imagination is the simulator itself. For diagnosis only, never a result."
        middle = 1 - BANNER / 2 / height
        figure.text(0.5, middle, said, ha="center", va="center", color="white", weight="bold", size=15)
        y -= BANNER
    for line in lines:
        weight = "bold" if line.size == HEADLINE else "normal"
        figure.text(line.left, y / height, line.text, size=line.size, weight=weight, va="top")
        if line.mark:
            figure.text(LEFT, y / height, line.mark, size=line.size, weight="bold", va="top", color=line.colour)
        y -= line.height


def write_footing(figure: Figure, records: Sequence[Record]) -> None:
    """What the vertical lines mean."""
    moments = [
        Line2D([], [], color=DARK, ls=PREFILL, lw=1.3, label="end of the prefill"),
        Line2D([], [], color=DARK, ls=ACTOR, lw=1.3, label="first row in which the actor learned"),
    ]
    if not any(record.actor_start is not None for record in records):
        moments[1].set_label("first row in which the actor learned: none so far")
    figure.legend(handles=moments, loc="lower center", ncols=2, frameon=False, fontsize=11.5, bbox_to_anchor=(0.5, 0))
