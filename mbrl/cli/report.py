"""Draw one page of plots about a run: where it fails.

usage: mbrl report run=DIR[,DIR...] [out=PATH.png]

  mbrl report run=runs/mine                      writes runs/mine/report.png
  mbrl report run=runs/a,runs/b out=compare.png  several runs in the same panels (without out=: runs/report.png)

Reads config.yaml, metrics.csv, eval.csv and, at the end of a run, result.json; a run may still go on. A panel says what
was not measured. Files are compared with what the newest checkpoint was saved with; how many rows are later than that,
so that nothing vouches for them, is said. Runs that differ in their seeds only are drawn as one: their mean with its
95 % interval over them. Runs of different protocols are not drawn together: their scores are not comparable.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import Word, expanded, paths_in, place, words
from mbrl.program import command, program

CONFIG = "config.yaml"
MOST_FOLDERS = 500
"""So many are looked into for runs, where a folder is none."""

KEYS = {
    "run": Word(f"the folder of a run, as `{program()} train` printed it, or several with commas between", needed=True),
    "out": place("out", "a file that ends in .png", file=True),
}


def run(args: list[str]) -> int:
    """Writes the page and says where it is."""
    asked = words("mbrl report", args, KEYS)
    folders = list(found(asked["run"]))
    beside = folders[0] if len(folders) == 1 else Path(os.path.commonpath([path.absolute().parent for path in folders]))
    out: Path = asked["out"] or beside / "report.png"
    if out.suffix.lower() != ".png" or out.is_dir():
        raise BadInput(f"out must be {KEYS['out'].what} (got {out}); for example out=report.png")

    from mbrl.files import write_atomically
    from mbrl.report.page import page
    from mbrl.report.record import read_record

    records = [read_record(folder) for folder in folders]
    content = page(records)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    for record in records:
        for name, count in record.unsaved.items():
            print(f"note: {record.folder / name}: no checkpoint vouches for the last {count} row{'s'[: count > 1]}")
    print(f"written to {out}")
    return DONE


def found(value: str) -> Iterator[Path]:
    """The folders that `run=` names, in its order. Raises: BadInput for one that is none, or is named twice."""
    seen: set[Path] = set()
    for name in paths_in(value) or [value]:
        folder = expanded(name)
        if not name or not folder.is_dir():
            raise BadInput(f"run={name} is not a folder; give the folder of a run, as `{program()} train` printed it")
        if folder.resolve() in seen:
            raise BadInput(f"run={value} names {name} twice; leave one out")
        if not (folder / CONFIG).is_file() and (way := instead(folder)):
            raise BadInput(f"run={name} is not the folder of a run: it has no {CONFIG}; {way}")
        seen.add(folder.resolve())
        yield folder


def instead(folder: Path) -> str:
    """What to give instead of a folder that holds runs, or copies of what runs wrote; empty where neither is there."""
    places = list(islice(folders_in(folder), MOST_FOLDERS))
    if runs := [place for place in places if (place / CONFIG).is_file()]:
        return f"give one of the runs in it, or several: `{command('report', run=runs[0])}`"
    if any(next(place.glob("*-metrics.csv"), None) for place in places):
        return (
            "its files are copies out of run folders, of which `python -m benchmarks.tables` makes the tables of the "
            "documents; a page needs a whole run, as runs/latest"
        )
    return ""


def folders_in(folder: Path) -> Iterator[Path]:
    """The folder and those in it, the nearest first; no links."""
    waiting = deque([folder])
    while waiting:
        yield (place := waiting.popleft())
        with suppress(OSError):  # not ours to read
            waiting += sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink())
