"""What a benchmark consists of: one cell for each task, method and seed; and what has become of each cell.

bench.json                        the plan: every cell with the words of its run; nothing about how far they are
<task>/<method>/seed-<n>/         a cell
    run/                          its run folder, as `mbrl train` writes it; with result.json the cell is done
    run.lock                      held by whoever works on the cell, and by the run itself
    failed.json                   how the run ended, if neither well nor by a requested stop
    output.log                    all that its processes printed

The state of a cell is read from its folder each time: there is nothing else that could contradict it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mbrl.files import DamagedFile
from mbrl.io.lock import RunInUse, RunLock, in_use
from mbrl.rundir.folder import holds_run, read_info
from mbrl.rundir.result import RESULT, read_result
from mbrl.rundir.schema import check_schema, write_json

PLAN, FAILED, OUTPUT = "bench.json", "failed.json", "output.log"
SCHEMA: Mapping[str, Any] = {"schema": 1, "cells": [{"task": str, "method": str, "seed": int, "words": [str]}]}
FAILURE: Mapping[str, Any] = {"schema": 1, "code": int, "line": str}
PATIENCE_S = 10.0
"""So long another process may hold the plan; it takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        method: agent, sizes and whatever else tells the runs of a task apart, but the seed.
        words: of `mbrl train`, all but `run_dir`.
        folder: where the cell lies.
    """

    task: str
    method: str
    seed: int
    words: tuple[str, ...]
    folder: Path

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "run"

    @property
    def name(self) -> str:
        """What a person calls it, which is also its place below the benchmark's folder."""
        return f"{self.task}/{self.method}/seed-{self.seed}"


class State(StrEnum):
    """What has become of a cell."""

    QUEUED = "queued"
    STOPPED = "stopped"
    """Begun; the next start goes on."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


def settled(cell: Cell) -> State:
    """The state of a cell that nobody works on."""
    if (cell.run / RESULT).is_file():
        return State.DONE
    if (cell.folder / FAILED).is_file():
        return State.FAILED
    return State.STOPPED if holds_run(cell.run) else State.QUEUED


def state_of(cell: Cell) -> State:
    """The state of a cell now."""
    held = in_use(cell.folder)  # asked first: where nobody holds it the files do not change
    found = settled(cell)
    return State.RUNNING if held and found is not State.DONE else found


def failure_of(cell: Cell) -> str:
    """Why a cell failed, on one line; where that cannot be read, why not."""
    try:
        failure = read_info(cell.folder, FAILED)
        check_schema(failure, FAILURE)
    except (DamagedFile, ValueError) as error:
        return f"{cell.folder / FAILED} cannot be read: {error}"
    return f"exit code {failure['code']}: {failure['line']}"


def write_failure(cell: Cell, code: int, line: str) -> None:
    """Records how a run ended. For whoever holds the cell."""
    write_json(cell.folder / FAILED, {"schema": FAILURE["schema"], "code": code, "line": line})


def method_name(words: Sequence[str]) -> str:
    """What is special about a method as part of a path; a chosen variant goes by its name, a value with its key.

    >>> method_name(["agent=dreamer_cpu", "experiment=[demos,proprio]", "agent.horizon=5"])
    'dreamer_cpu-demos+proprio-agent.horizon_5'
    >>> method_name([])
    'default'
    """
    said = [word.partition("=")[2] if "." not in word.partition("=")[0] else word.replace("=", "_") for word in words]
    parts = (re.sub(r"[^\w.+-]", "", text.replace(",", "+")) for text in said)
    return "-".join(part for part in parts if part) or "default"


def read_plan(to: Path) -> list[Cell]:
    """The cells of a benchmark; none where there is no plan. Raises: DamagedFile."""
    plan = read_info(to, PLAN)
    try:
        if plan:
            check_schema(plan, SCHEMA)
        cells = [cell_in(to, **one) for one in plan.get("cells", ())]
    except ValueError as error:
        raise DamagedFile(f"{to / PLAN}: {error}") from error
    return cells


def cell_in(to: Path, *, task: str, method: str, seed: int, words: Sequence[str]) -> Cell:
    """A cell at its place below `to`. Raises: ValueError for a name that would lead elsewhere."""
    for name in (task, method):
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"{name} cannot be the name of a folder")
    return Cell(task=task, method=method, seed=seed, words=tuple(words), folder=to / task / method / f"seed-{seed}")


def joined(planned: Iterable[Cell], asked: Iterable[Cell]) -> list[Cell]:
    """The planned cells and the new ones among `asked`.

    Raises: ValueError for a cell that is planned with other words: one method would mean two things.
    """
    cells = {cell.folder: cell for cell in planned}
    for cell in asked:
        old = cells.setdefault(cell.folder, cell)
        if differing := sorted(set(old.words) ^ set(cell.words)):
            mine = [word for word in differing if word in cell.words]
            theirs = [word for word in differing if word in old.words]
            raise ValueError(
                f"{cell.name} is planned {said(theirs)} and asked for {said(mine)}; give the same words, "
                "or another folder with to="
            )
    return list(cells.values())


def said(words: Sequence[str]) -> str:
    """`with a=1 b=2`, or `without more words`."""
    return f"with {' '.join(words)}" if words else "without more words"


def extend_plan(to: Path, asked: Sequence[Cell]) -> list[Cell]:
    """Adds cells to the plan on disk; all of it. Raises: ValueError; RunInUse where another process keeps the plan."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with RunLock(to):
                planned = read_plan(to)
                cells = joined(planned, asked)
                if len(cells) > len(planned):
                    plain = [{name: getattr(cell, name) for name in SCHEMA["cells"][0]} for cell in cells]
                    write_json(to / PLAN, json.loads(json.dumps({"schema": SCHEMA["schema"], "cells": plain})))
                return cells
        except RunInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def retried(cell: Cell) -> bool:
    """Lets a failed cell be started again, from its last checkpoint; whether it was a failed one."""
    with RunLock(cell.folder):
        if settled(cell) is not State.FAILED:
            return False
        (cell.folder / FAILED).unlink()
        return True


def cleaned(cell: Cell) -> bool:
    """Deletes the run of a failed cell, so that it begins anew; whether it was a failed one."""
    with RunLock(cell.folder):
        if settled(cell) is not State.FAILED:
            return False
        if cell.run.exists():
            shutil.rmtree(cell.run)
        (cell.folder / OUTPUT).unlink(missing_ok=True)
        (cell.folder / FAILED).unlink()  # last: a kill on the way leaves a failed cell
        return True


class Pace:
    """How long a run takes, by those that have ended: of the same task and method, else of the same method."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        self._read: set[Cell] = set()

    def learn(self, done: Iterable[Cell]) -> Pace:
        """Takes in the results of cells that are done, each once; returns itself.

        A damaged one says nothing of how long a run takes; reports and tables name it.
        """
        for cell in [cell for cell in done if cell not in self._read]:
            with suppress(DamagedFile):
                if result := read_result(cell.run):
                    self._read.add(cell)
                    for kind in ((cell.task, cell.method), (cell.method,)):
                        self._seconds.setdefault(kind, []).append(result["wall_s"])
        return self

    def seconds(self, cell: Cell) -> float | None:
        """Expected seconds of work of a whole run; None where no such run has ended."""
        found = self._seconds.get((cell.task, cell.method)) or self._seconds.get((cell.method,))
        return sum(found) / len(found) if found else None
