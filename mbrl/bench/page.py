"""The report of a benchmark: one HTML file that needs nothing beside it, for a mail, a dark room or a telephone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from mbrl.bench.figures import curves, efficiency, profiles
from mbrl.bench.plan import Cell, State, failure_of
from mbrl.bench.published import Published
from mbrl.bench.results import Run
from mbrl.bench.summary import Row, by_method, by_task, columns, pairs
from mbrl.bench.table import counted, progress_of, states_of

DAMAGED = "damaged"
"""What stands for the state of a run that is done and cannot be read."""
MOST_VIDEO = 2**20
"""Bytes of a video that goes into the page."""
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>TITLE</title><style>
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;white-space:nowrap}
td,th{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid #8884}
svg,img{max-width:100%;height:auto}.failed,.refused{color:#d55e00}code{font-size:.85rem;overflow-wrap:anywhere}
figure{display:inline-block;margin:0 1rem 1rem 0;max-width:100%}figcaption{font-size:.9rem}
</style></head><body>"""


def page(
    title: str,
    cells: Sequence[Cell],
    runs: Sequence[Run],
    published: Sequence[Published],
    score: str,
    *,
    damaged: Mapping[Path, str],
) -> str:
    """The page about a benchmark that is done or goes on.

    Args:
        runs: the results of its cells.
        published: what papers report, of which the tasks of this benchmark are shown.
        damaged: run folders of cells that are done and whose results cannot be read, with the reason.
    """
    states = states_of(cells)
    parts = [HEAD.replace("TITLE", escape(title)), f"<h1>{escape(title)}</h1>"]
    tasks, methods = sorted({cell.task for cell in cells}), sorted({cell.method for cell in cells})
    seeds = len({cell.seed for cell in cells})
    question = f"How well do {', '.join(methods)} learn {', '.join(tasks)}?"
    lost = f"; damaged and in no table: {len(damaged)}" if damaged else ""
    parts.append(f"<p>{escape(question)} {seeds} seed{'s' * (seeds != 1)} each. {escape(counted(states))}{lost}.</p>")
    if runs:
        parts += figures(runs, score)
        parts += videos(cells, runs, score)
        parts += card(runs)
    parts.append(
        section("Every run that was planned", table([of_cell(cell, states[cell], runs, damaged) for cell in cells]))
    )
    firsts = {cell.method: cell for cell in reversed(cells)}
    lines = "".join(f"<p><code>mbrl train {escape(' '.join(firsts[method].words))}</code></p>" for method in methods)
    parts.append(section("To repeat it: the first run of each method, the others with their task.name and seed", lines))
    parts += reported(published, {task.removesuffix("-v3") for task in tasks})
    return "\n".join([*parts, "</body></html>\n"])


def figures(runs: Sequence[Run], score: str) -> Iterator[str]:
    """Tables and figures; where runs may not be averaged, the line that says which and why stands in their place."""
    made: list[tuple[str, Callable[[], str]]] = [
        ("Over tasks: final scores, 95 % intervals", lambda: table(by_method(runs, score))),
        ("Method against method", lambda: table(pairs(runs, score))),
        ("By task", lambda: table(by_task(runs, score))),
        ("Curves: interim evaluations; thin: seeds, thick: their mean", lambda: curves(runs, score)),
    ]
    if score != "reward":
        made += [
            ("Sample efficiency", lambda: efficiency(runs, score)),
            ("Profile of the final scores", lambda: profiles(runs, score)),
        ]
    for title, make in made:
        try:
            content = make()
        except ValueError as error:
            content = f'<p class="refused">{escape(str(error))}</p>'
        yield section(title, content)


def section(title: str, content: str) -> str:
    """A part of the page; what is wider than the screen scrolls by itself."""
    return f'<h2>{escape(title)}</h2><div class="wide">{content}</div>'


def table(rows: Sequence[Row]) -> str:
    """A table."""
    names = columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for row in rows:
        marked = ' class="failed"' if row.get("state") in (State.FAILED, DAMAGED) else ""
        cells = "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in names)
        lines.append(f"<tr{marked}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def of_cell(cell: Cell, state: State, runs: Sequence[Run], damaged: Mapping[Path, str]) -> Row:
    """What became of a cell."""
    run = next((run for run in runs if Path(run.source) == cell.run), None)
    row = {"task": cell.task, "method": cell.method, "seed": str(cell.seed), "state": str(state)}
    if run is not None:
        final = next(point for point in run.points if point.kind == "final")
        for name in ("success", "success_last", "reward"):
            value = getattr(final, name)
            row[name] = "" if value is None else f"{value:.2f}"
        row |= {"env steps": f"{final.step:.0f}", "weights of": str(run.more["weights_step"])}
        row["hours"] = f"{(final.wall_s or 0) / 3600:.2f}"
    if cell.run in damaged:
        row |= {"state": DAMAGED, "what was said": damaged[cell.run]}
    elif state is State.FAILED:
        row["what was said"] = failure_of(cell)
    elif state in (State.RUNNING, State.STOPPED):
        row["what was said"] = str(progress_of(cell) or "")
    return row


def videos(cells: Sequence[Cell], runs: Sequence[Run], score: str) -> Iterator[str]:
    """The last evaluation video of the best and of the worst run of each method."""
    shown = []
    for method in sorted({run.method for run in runs}):
        own = [run for run in runs if run.method == method and run.value(score) is not None]
        own.sort(key=lambda run: (run.value(score) or 0.0, -run.seed))
        for word, run in dict([("worst", own[0]), ("best", own[-1])] if own else []).items():
            video = max(Path(run.source).glob("videos/eval-*.gif"), default=None)
            if video is not None and video.stat().st_size <= MOST_VIDEO:
                said = f"{method}, {word}: {run.task}, seed {run.seed}, {run.value(score):.2f}"
                data = base64.b64encode(video.read_bytes()).decode()
                image = f'<img alt="{escape(said)}" src="data:image/gif;base64,{data}">'
                shown.append(f"<figure>{image}<figcaption>{escape(said)}</figcaption></figure>")
    if shown:
        yield section("Videos of the last evaluation", "".join(shown))


def card(runs: Sequence[Run]) -> Iterator[str]:
    """What one must know to compare with this."""
    hours = sum(point.wall_s or 0.0 for run in runs for point in run.points if point.kind == "final") / 3600
    facts = {
        "protocol": {f"{run.terms.protocol} ({run.terms.protocol_sha256[:12]})" for run in runs},
        "success": {f"{run.terms.success_rule or 'none'} decision" for run in runs},
        "observations": {run.terms.obs for run in runs},
        "demonstrations": {str(run.terms.demos) for run in runs},
        "physics": {run.terms.physics or "its own" for run in runs},
        "machine": {str(run.more["device"]) for run in runs},
        "commit": {str(run.more["commit"]) or "unknown" for run in runs},
        "hours of all ended runs": {f"{hours:.1f}"},
    }
    rows = [{"what": name, "is": ", ".join(sorted(values))} for name, values in facts.items()]
    yield section("Run card", table(rows))


def reported(published: Sequence[Published], tasks: set[str]) -> Iterator[str]:
    """What papers report on these tasks."""
    for one in published:
        if rows := one.table(tasks):
            title = f"Reported by others, under another protocol: {one.source}"
            yield section(title, f"<p>{escape(one.terms())}</p>{table(rows)}")
