"""The figure of `mbrl scale`: costs and scores over size; a dot for each run, a line of means."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mbrl.bench.scale import Sized, short, size_field
from mbrl.report.page import STYLE
from mbrl.report.plots import BLUE, GREEN, ORANGE

PANELS: Sequence[tuple[str, tuple[tuple[str, str, str], ...]]] = (
    ("final score, and mean of the second half", (("score", "final", BLUE), ("second_half", "second half", ORANGE))),
    ("env steps to a share of the score", (("steps_50", "50 %", ORANGE), ("steps_80", "80 %", BLUE))),
    ("cross-entropy of a held-out code, nats", (("cross_entropy", "", GREEN),)),
    ("held-out reward error after 5 frames", (("reward_error", "", GREEN),)),
    ("audit: correlation of returns within a start", (("ranking", "", GREEN),)),
    ("audit: R2 of returns", (("return_r2", "", GREEN),)),
    ("minutes of a run", (("wall_s", "", BLUE),)),
    ("counted operations", (("update_gflop", "GFLOP an update", BLUE), ("frame_mflop", "MFLOP a frame", ORANGE))),
)
"""Title, and the fields of `Sized` with label and colour."""
WRAPPED = 215
"""Letters of a line over the panels."""


def figure(rows: Sequence[Sized], *, title: str, follows: str) -> bytes:
    """As a PNG."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=(18, 8.4), dpi=100)
        lines = textwrap.wrap(follows, WRAPPED)
        page.text(0.02, 0.965, title, fontsize=15, fontweight="bold")
        page.text(0.02, 0.95, "\n".join(lines), fontsize=10.5, va="top", parse_math=False)
        grid = page.add_gridspec(2, 4, left=0.04, right=0.98, bottom=0.08, top=0.88 - 0.02 * len(lines), hspace=0.42)
        for place, (name, fields) in enumerate(PANELS):
            panel(page.add_subplot(grid[divmod(place, 4)]), name, fields, rows)
        page.savefig(stream, format="png")
    return stream.getvalue()


def panel(axis: Any, name: str, fields: Sequence[tuple[str, str, str]], rows: Sequence[Sized]) -> None:
    """One plot over size."""
    size_of = size_field(rows)
    sizes = sorted({getattr(row, size_of) for row in rows})
    scale = 1 / 60 if fields[0][0] == "wall_s" else 1.0
    for field, label, colour in fields:
        found = [(getattr(row, size_of), getattr(row, field) * scale) for row in rows]
        found = [(size, value) for size, value in found if not math.isnan(value)]
        if not found:
            continue
        axis.plot(*zip(*found, strict=True), "o", color=colour, alpha=0.55, markersize=5)
        there = sorted({x for x, _ in found})
        means = [(size, np.mean([y for x, y in found if x == size])) for size in there]
        axis.plot(*zip(*means, strict=True), "-", color=colour, linewidth=1.8, label=label)
    axis.set_title(name, loc="left", fontsize=11.5)
    axis.set_xscale("log")
    axis.set_xlabel("parameters of the world model" if size_of == "parameters" else "codes of an imagined frame")
    axis.set_xticks(sizes, [short(size) for size in sizes])
    axis.xaxis.set_minor_formatter(NullFormatter())
    if name == "counted operations":
        axis.set_yscale("log")
    elif name.startswith("final score"):
        axis.set_ylim(-0.03, 1.05)
    elif name.startswith("audit"):
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.05)
    else:
        axis.set_ylim(bottom=0)
    if any(label for _, label, _ in fields) and axis.lines:
        axis.legend(frameon=False, fontsize=9.5)
    if not axis.lines:
        axis.text(0.5, 0.5, "none measured", transform=axis.transAxes, ha="center", color="#777777")
