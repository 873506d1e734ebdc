"""List the results of finished runs, export them as a tidy CSV, and average what may be averaged.

usage: mbrl results from=DIR[,DIR|FILE.csv ...] [show=runs] [score=success] [to=FILE.csv]
                    [task=A,B] [method=A,B] [protocol=A] [seed=0,1]
       mbrl results import=FILE[,FILE ...] protocol=NAME success_rule=any|last|none to=FILE.csv
                    [task=NAME] [method=NAME] [seed=0] [obs=pixels] [demos=0]
       mbrl results show=published [task=A,B] [method=A,B]

  mbrl results from=results/mine                          every finished run below the folder
  mbrl results from=results/mine show=tasks               by task and method: mean over seeds, 95 % interval
  mbrl results from=results/mine show=methods             over tasks: IQM, mean, median, with intervals
  mbrl results from=results/mine show=pairs               method against method: probability of improvement, same seeds
  mbrl results from=results/mine to=mine.csv              one row for each evaluation, for pandas or R
  mbrl results import=mw-hammer.csv protocol=tdmpc2-state success_rule=last obs=state method=tdmpc2 to=theirs.csv
  mbrl results from=results/mine,theirs.csv               files that were imported are read like folders
  mbrl results show=published task=hammer                 what papers report, each with its source and protocol

score= success (by the protocol's rule), success_last, or reward (the return). Never averaged: runs of different
protocols, success rules, numbers of demonstrations or versions of the physics; the line says of which two. A run
whose files are damaged is named and left out (exit code 3). import= reads TD-MPC2's CSVs, DreamerV3's JSON and JSON
lines, and any CSV with step, seed and success or reward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DAMAGED, DONE, BadInput
from mbrl.cli.words import Word, choice, listed, paths_in, place, whole, words
from mbrl.files import DamagedFile

SHOWN = ("runs", "tasks", "methods", "pairs", "published")
KEYS = {
    "from": Word("folders with finished runs, or tidy CSVs, with commas between", paths_in, example="results/mine"),
    "import": Word("files of other programs, with commas between", paths_in, example="mw-hammer.csv"),
    "to": place("to", "a file that ends in .csv", file=True),
    "show": choice(*SHOWN),
    "score": choice("success", "success_last", "reward"),
    "task": Word("names of tasks", listed),
    "method": Word("names of methods", listed),
    "protocol": Word("names of protocols", listed),
    "seed": Word("whole numbers, with commas between", lambda text: [int(one) for one in listed(text)], example="0,1"),
    "success_rule": choice("any", "last", "none"),
    "obs": choice("pixels", "pixels+proprio", "state"),
    "demos": whole(None, least=0),
}
ONLY_IMPORT = ("success_rule", "obs", "demos")
ONLY_FROM = ("show", "score")


@dataclass(frozen=True)
class Filters:
    """Which runs are meant; None: all."""

    task: list[str] | None
    method: list[str] | None
    protocol: list[str] | None
    seed: list[int] | None

    def keep(self, runs: Sequence[Any]) -> list[Any]:
        """The runs that are meant. Raises: BadInput where none is left."""
        kept = [
            run
            for run in runs
            if (self.task is None or run.task in self.task)
            and (self.method is None or run.method in self.method)
            and (self.protocol is None or run.terms.protocol in self.protocol)
            and (self.seed is None or run.seed in self.seed)
        ]
        if runs and not kept:
            raise BadInput(f"no run of {len(runs)} is left; there are {self.said(runs)}")
        return kept

    def said(self, runs: Sequence[Any]) -> str:
        """What could be chosen."""
        there = {
            "task": {run.task for run in runs},
            "method": {run.method for run in runs},
            "protocol": {run.terms.protocol for run in runs},
        }
        return "; ".join(f"{key}={','.join(sorted(names))}" for key, names in there.items())


def run(args: list[str]) -> int:
    """Shows, exports or imports."""
    asked = words("mbrl results", args, KEYS)
    to: Path | None = asked["to"]
    if to is not None and (to.suffix.lower() != ".csv" or to.is_dir()):
        raise BadInput(f"to must be {KEYS['to'].what} (got {to}); for example to=results.csv")
    filters = Filters(asked["task"], asked["method"], asked["protocol"], asked["seed"])
    if asked["import"]:
        return bring_in(asked, to)
    if given := next((key for key in ONLY_IMPORT if asked[key] is not None), None):
        raise BadInput(f"{given}= is for import=FILE, whose files do not say it themselves")
    if asked["show"] == "published":
        return show_published(filters)
    if not asked["from"]:
        raise BadInput(f"from= is missing: {KEYS['from'].what} (or import=, or show=published)")
    found, damaged = collected(asked["from"])
    for reason in damaged:
        print(f"damaged, left out: {reason}", file=sys.stderr)
    runs = filters.keep(found)
    for line in shown(runs, asked["show"] or "runs", asked["score"] or "success"):
        print(line)
    for line in lacking(asked["from"]):
        print(line)
    if to is not None:
        export(runs, to)
    return DAMAGED if damaged else DONE


def lacking(names: Sequence[str]) -> Iterator[str]:
    """What benchmarks have planned and not finished: nobody shall overlook runs that failed."""
    from mbrl.bench.plan import State, read_plan
    from mbrl.bench.table import counted, states_of

    for name in names:
        states = states_of(read_plan(Path(name).expanduser()))
        if any(state is not State.DONE for state in states.values()):
            yield f"{name} is not finished: {counted(states)}"


def collected(names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The runs of folders and tidy CSVs, and why others are none.

    Raises: BadInput where there are none; DamagedFile for a CSV, and where no run can be read.
    """
    from mbrl.bench.results import finished_in, read_csv, read_runs

    runs: list[Any] = []
    damaged: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if not path.exists():
            raise BadInput(f"from={name} is not there; give {KEYS['from'].what}")
        read, broken = read_runs(finished_in(path)) if path.is_dir() else (read_csv(path), {})
        runs, damaged = [*runs, *read], [*damaged, *broken.values()]
    if damaged and not runs:
        raise DamagedFile("; ".join(damaged))
    if not runs:
        raise BadInput(f"from={','.join(names)} holds no finished run: there is no result.json below it")
    return runs, damaged


def shown(runs: Sequence[Any], what: str, score: str) -> list[str]:
    """The table that is asked for."""
    from mbrl.bench import summary

    if what == "runs":
        return [*summary.text([listing(run) for run in runs]), f"{len(runs)} run{'s' * (len(runs) != 1)}"]
    tables = {"tasks": summary.by_task, "methods": summary.by_method, "pairs": summary.pairs}
    return list(summary.text(tables[what](runs, score)))


def listing(run: Any) -> dict[str, str]:
    """A run as a row of the list."""
    final = next((point for point in run.points if point.kind == "final"), None)
    row = {"task": run.task, "method": run.method, "seed": str(run.seed)}
    row |= {"protocol": run.terms.protocol, "obs": run.terms.obs, "demos": str(run.terms.demos)}
    for name in ("success", "success_last", "reward"):
        value = final and getattr(final, name)
        row[name] = "" if value is None else f"{value:.2f}"
    return row | {"env steps": f"{final.step:.0f}" if final else "", "from": run.source}


def export(runs: Sequence[Any], to: Path) -> None:
    """Writes the tidy CSV."""
    from mbrl.bench.results import write_csv
    from mbrl.files import write_atomically

    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, write_csv(runs))
    print(f"{len(runs)} run{'s' * (len(runs) != 1)} written to {to}")


def bring_in(asked: dict[str, Any], to: Path | None) -> int:
    """Foreign files as one tidy CSV."""
    from mbrl.bench.imported import Told, read_foreign
    from mbrl.bench.results import Terms

    if lost := next((key for key in (*ONLY_FROM, "from") if asked[key] is not None), None):
        raise BadInput(f"{lost}= is not for import=FILE, which only writes to=FILE.csv; then from=FILE.csv reads it")
    for key in ("protocol", "success_rule", "to"):
        if not asked[key]:
            raise BadInput(f"{key}= is missing: the files do not say it, and no score is comparable without")
    for key in ("protocol", "task", "method", "seed"):
        if asked[key] is not None and len(asked[key]) != 1:
            raise BadInput(f"{key} must be one with import=FILE (got {','.join(map(str, asked[key])) or 'nothing'})")
    terms = Terms(
        protocol=asked["protocol"][0],
        protocol_sha256="",
        success_rule="" if asked["success_rule"] == "none" else asked["success_rule"],
        obs=asked["obs"] or "pixels",
        demos=asked["demos"] or 0,
        rehearsal=False,
        physics="",
    )
    one = {key: asked[key][0] if asked[key] else None for key in ("task", "method", "seed")}
    told = Told(terms=terms, task=one["task"], method=one["method"], seed=one["seed"] or 0)
    runs: list[Any] = []
    for name in asked["import"]:
        path = Path(name).expanduser()
        if not path.is_file():
            raise BadInput(f"import={name} is not a file; give {KEYS['import'].what}")
        if to is not None and to.exists() and to.samefile(path):
            raise BadInput(f"to={to} is the file that is imported, which stays as it is; give another one")
        runs += read_foreign(path, told)
    assert to is not None
    export(runs, to)
    return DONE


def show_published(filters: Filters) -> int:
    """What papers report; `task=` with or without its version."""
    from mbrl.bench.published import read_published
    from mbrl.bench.summary import text
    from mbrl.cli.compose import packaged_configs

    tasks = None if filters.task is None else {name.removesuffix("-v3").removesuffix("-v2") for name in filters.task}
    published = read_published(packaged_configs() / "published")
    found = {name: rows for name, one in published.items() if (rows := one.table(tasks, filters.method))}
    if not found:
        scores = [score for one in published.values() for score in one.scores()]
        there = {"task": {score.task for score in scores}, "method": {score.method for score in scores}}
        said = "; ".join(f"{key}={','.join(sorted(names))}" for key, names in there.items())
        raise BadInput(f"nothing is published here on these tasks by these methods; there are {said}")
    for name, rows in found.items():
        print(f"{name}: {published[name].source}\n  {published[name].terms()}")
        print("\n".join(f"  {line}" for line in text(rows)))
    return DONE
