"""The page itself: title, the grid of panels, the lines that go through all of them. Knows no column of a panel."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mbrl.report.panels import PANELS
from mbrl.report.plots import COLOURS, GREY, Panel, interval, letter
from mbrl.report.record import Record, Row, check_comparable, differences, target_name

WIDTH, PANEL_HEIGHT, DPI = 16.0, 4.1, 100
"""Inches, inches, dots per inch: 1600 pixels wide."""
COLUMNS = 3
MOST_RUNS = len(COLOURS)
LEFT, LINE, BANNER = 0.02, 0.27, 0.5
"""Where the title begins (share of the width), inches that one of its lines takes, and the bar over it."""
LETTERS, MOST_KEYS = 178, 8
"""Letters of the title that fit on one line; configuration keys that differ between runs and are told."""
STYLE: Any = {
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


def draw(records: Sequence[Record]) -> Figure:
    """The page about one run, or about several of the same protocol.

    Raises: ValueError for runs of different protocols, for more runs than there are colours, and for none.
    """
    if not 1 <= len(records) <= MOST_RUNS:
        raise ValueError(f"one page holds 1 to {MOST_RUNS} runs (got {len(records)}); take several pages")
    check_comparable(records)
    lines = heading(records)
    rows = math.ceil(len(PANELS) / COLUMNS)
    above = 0.75 + LINE * len(lines) + (BANNER if any(record.oracle for record in records) else 0.0) + 0.45
    height = above + rows * PANEL_HEIGHT + 0.45
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        edges = {"left": 0.05, "right": 0.96, "top": 1 - above / height, "bottom": 0.95 / height}
        axes = figure.subplots(rows, COLUMNS, gridspec_kw={**edges, "wspace": 0.27, "hspace": 0.42})
        until = max(row["env_step"] for record in records for row in (*record.training, *record.scores))
        for panel, axis in zip(PANELS, axes.flat, strict=True):
            draw_panel(axis, panel, records, until=until)
        write_heading(figure, lines, records)
        write_footing(figure, records)
    return figure


def draw_panel(axis: Any, panel: Panel, records: Sequence[Record], *, until: float) -> None:
    """One panel, or the words that it was not measured."""
    axis.set_title(panel.title, loc="left", pad=25)
    axis.set_ylabel(panel.unit)
    missing = [letter(number) for number, record in enumerate(records) if not panel.has(record)]
    if len(missing) < len(records):
        panel.draw(axis, records)
    else:
        said = "not measured in this run" if len(records) == 1 else "not measured in these runs"
        axis.text(0.5, 0.5, said, transform=axis.transAxes, ha="center", va="center", color=GREY, fontsize=13)
        axis.set(yticks=[], ylabel="", xticks=[])
        axis.spines[:].set_visible(False)
        axis.set_facecolor("#F7F7F7")
    if missing and len(missing) < len(records):
        said = f"not measured in {', '.join(missing)}"
        below = {"xy": (1, 0), "xycoords": "axes fraction", "xytext": (0, -24), "textcoords": "offset points"}
        axis.annotate(said, **below, ha="right", va="top", color=GREY, fontsize=10)
    if len(missing) < len(records) and panel.over_steps(len(records)):
        axis.set(xlim=(0, until * 1.03), xlabel="env steps")
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(thousands))
        mark_moments(axis, records)


def mark_moments(axis: Any, records: Sequence[Record]) -> None:
    """Vertical lines at the end of the prefill and where the actor starts; grey where all runs agree."""
    for stroke, moments in (
        (PREFILL, [record.prefill for record in records]),
        (ACTOR, [record.actor_start for record in records]),
    ):
        agreed = len(set(moments)) == 1
        for number, moment in enumerate(moments[:1] if agreed else moments):
            if moment is not None:
                axis.axvline(moment, color=DARK if agreed else COLOURS[number], ls=stroke, lw=1.3, zorder=1)


def thousands(value: float, _place: int) -> str:
    """`2500` -> `2.5k`."""
    return f"{value / 1000:g}k" if value else "0"


def heading(records: Sequence[Record]) -> list[str]:
    """The lines at the top: what was run, how it went, and, for several runs, what makes them differ."""
    first = records[0]
    protocol = f"protocol {protocol_name(first)}"
    if len(records) == 1:
        return [
            f"{task_name(first)}, {protocol}, seed {first.config['seed']}",
            *wrapped(f"{method(first)}; {circumstances(first)}"),
            *wrapped(verdict(first)),
        ]
    tasks = {task_name(record) for record in records}
    lines = [f"{len(records)} runs: {' and '.join(sorted(tasks))}, {protocol}"]
    for number, record in enumerate(records):
        task = f"{task_name(record)}, " if len(tasks) > 1 else ""
        text = f"{letter(number)}  {record.folder.name}: {task}{method(record)}, seed {record.config['seed']}"
        lines += wrapped(f"{text}, {record.wall_s / 60:.1f} min; {verdict(record, briefly=True)}", indent="     ")
    keys = [f"{key} = {' | '.join(map(shortened, values))}" for key, values in differences(records).items()]
    differing = [text.replace(" ", "\u00a0") for text in keys[:MOST_KEYS]]  # lines break between keys only
    if len(keys) > MOST_KEYS:
        differing.append(f"and {len(keys) - MOST_KEYS} more keys of config.yaml")
    return [*lines, *(wrapped(f"differ in: {';   '.join(differing)}", indent="     ") if keys else [])]


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines that fit the page."""
    return textwrap.wrap(text, width=LETTERS, subsequent_indent=indent)


def shortened(value: str) -> str:
    """A value that does not fill the page."""
    return value if len(value) <= 40 else value[:37] + "..."


def task_name(record: Record) -> str:
    """The task."""
    return str(record.config["task"]["name"])


def protocol_name(record: Record) -> str:
    """The protocol, with what was changed in it."""
    protocol = record.config.get("protocol", {})
    changed = protocol.get("deviations") or []
    return str(protocol.get("name", "unknown")) + (f" but {', '.join(map(str, changed))}" if changed else "")


def method(record: Record) -> str:
    """Agent, world model, and what it was given; nobody shall overlook that the model is the simulator."""
    config = record.config
    model, size = config.get("worldmodel", {}), config.get("transformer", {})
    text = f" ({size['layers']} layers of {size['hidden']})" if {"layers", "hidden"} <= size.keys() else ""
    name = "ORACLE (the simulator itself)" if record.oracle else f"{target_name(model)}{text}"
    more = " with proprioception" if model.get("proprio") else ""
    demos = f", {config['demos']} demonstrations" if config.get("demos") else ""
    return f"agent {target_name(config.get('agent', {}))}, world model {name}{more}{demos}"


def circumstances(record: Record) -> str:
    """Machine, time and code, as far as they are known."""
    info = record.info
    threads = info.get("threads")
    parts = [
        str(info.get("device", "")),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
        f"{record.wall_s / 60:.1f} min",
        f"commit {info['commit'][:7]}{'-dirty' if info['commit'].endswith('-dirty') else ''}"
        if info.get("commit")
        else "",
    ]
    return ", ".join(part for part in parts if part)


def verdict(record: Record, *, briefly: bool = False) -> str:
    """The final score, or the newest interim one, and the random policy's."""
    if record.final:
        row = record.final
        at = f"of the weights of step {row['weights_step']:.0f}"
        text = f"final score {at}: {score(row)}, {row.get('episodes', 0):.0f} greedy episodes"
    elif record.greedy:
        row = record.greedy[-1]
        at = f"step {row['env_step']:.0f}"
        text = f"newest interim score, {at}: {score(row)}, {row.get('episodes', 0):.0f} greedy episodes"
    else:
        return "no greedy evaluation yet"
    if briefly:
        return f"{'final' if record.final else 'not finished'}, {at}: {score(row)}"
    return f"{text}; random policy: {score(record.random)}" if record.random else text


def score(row: Row) -> str:
    """`success 0.85 [0.64, 0.95], return 1200 ± 31`, which no line break parts."""
    success = f"success {row['success']:.2f}" if "success" in row else "success unknown"
    if {"success_low", "success_high"} <= row.keys():
        success += f" [{row['success_low']:.2f}, {row['success_high']:.2f}]"
    down, _ = interval(row, "return")
    return f"{success}, return {row['return']:.0f}\u00a0±\u00a0{down:.0f}" if "return" in row else success


def write_heading(figure: Figure, lines: Sequence[str], records: Sequence[Record]) -> None:
    """The title; a run's line begins in the run's colour, and an oracle world model gets a red bar over the page."""
    height = figure.get_figheight()
    y = height - 0.25
    if any(record.oracle for record in records):
        figure.patches.append(
            Rectangle((0, (height - BANNER) / height), 1, BANNER / height, transform=figure.transFigure, color=ALARM)
        )
        which = [letter(number) for number, record in enumerate(records) if record.oracle]
        where = "" if len(records) == 1 else f" IN {', '.join(which)}"
        said = f"PERFECT WORLD MODEL{where}: imagination is the simulator itself. For diagnosis only, never a result."
        middle = 1 - BANNER / 2 / height
        figure.text(0.5, middle, said, ha="center", va="center", color="white", weight="bold", size=15)
        y -= BANNER
    figure.text(LEFT, y / height, lines[0], size=18, weight="bold", va="top")
    y -= 0.42
    colours = {f"{letter(number)}  ": COLOURS[number] for number in range(len(records))} if len(records) > 1 else {}
    for line in lines[1:]:
        if line[:3] in colours:
            figure.text(LEFT, y / height, line[0], size=12.5, weight="bold", va="top", color=colours[line[:3]])
            figure.text(LEFT + 0.014, y / height, line[3:], size=12.5, va="top")
        else:
            figure.text(LEFT + (0.014 if line.startswith(" ") else 0), y / height, line.strip(), size=12.5, va="top")
        y -= LINE


def write_footing(figure: Figure, records: Sequence[Record]) -> None:
    """What the vertical lines mean."""
    moments = [
        Line2D([], [], color=DARK, ls=PREFILL, lw=1.3, label="end of the prefill"),
        Line2D([], [], color=DARK, ls=ACTOR, lw=1.3, label="first row in which the actor learned"),
    ]
    if not any(record.actor_start is not None for record in records):
        moments[1].set_label("first row in which the actor learned: none so far")
    figure.legend(handles=moments, loc="lower center", ncols=2, frameon=False, fontsize=11.5, bbox_to_anchor=(0.5, 0))
