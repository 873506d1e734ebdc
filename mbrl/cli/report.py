"""`mbrl report run=<dir>`: one page of plots about a run, or about several of the same protocol, as a PNG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.program import program

KEYS = {"run": "a run folder, or several with commas between", "out": "a file that ends in .png"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be drawn.

    Attributes:
        folders: the runs.
        out: the picture.
    """

    folders: tuple[Path, ...]
    out: Path


def run(args: list[str]) -> int:
    """Writes the page and says where it is."""
    asked = understand(args)

    from mbrl.files import write_atomically
    from mbrl.report.page import page
    from mbrl.report.record import read_record

    content = page([read_record(folder) for folder in asked.folders])
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(asked.out, content)
    print(f"written to {asked.out}")
    return DONE


def understand(args: list[str]) -> Asked:
    """Reads `run=DIR[,DIR...] out=PATH`. Raises: BadInput naming key, value and the mend."""
    given: dict[str, str] = {}
    for word in args:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise BadInput(f"{word} is not understood{did_you_mean(key, KEYS)}; write run=DIR, perhaps out=PATH.png")
        given[key] = value
    if "run" not in given:
        raise BadInput(f"run=DIR is missing: the folder of a run, as `{program()} train` printed it")
    folders = tuple(found(given["run"]))
    default = folders[0] / "report.png" if len(folders) == 1 else Path("report.png")
    out = Path(given["out"]).expanduser() if "out" in given else default
    if out.suffix.lower() != ".png" or out.is_dir():
        raise BadInput(f"out must be {KEYS['out']} (got {given.get('out', out)}); for example out=report.png")
    return Asked(folders=folders, out=out)


def found(value: str) -> Iterator[Path]:
    """The folders that `run=` names, in its order. Raises: BadInput for one that is none, or is named twice."""
    whole = Path(value).expanduser()
    seen: set[Path] = set()
    for name in [value] if whole.is_dir() else value.split(","):
        folder = Path(name).expanduser()
        if not name or not folder.is_dir():
            raise BadInput(f"run={name} is not a folder; give the folder of a run, as `{program()} train` printed it")
        if folder.resolve() in seen:
            raise BadInput(f"run={value} names {name} twice; leave one out")
        seen.add(folder.resolve())
        yield folder
