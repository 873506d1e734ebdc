"""Runs the cells of a benchmark on one machine, some at once, each in a process of its own, until none is left to do.

A cell is worked on under its lock, which its process inherits: where this process is killed the run goes on and keeps
the cell, so nobody starts it a second time, and takes a slot of the next queue. Several queues may work on one folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mbrl.bench.plan import OUTPUT, Cell, State, failure_of, settled, write_failure
from mbrl.io.lock import RunInUse, RunLock, orphaned
from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE

PAUSE_S = 0.02
"""Between two looks at the children."""
ELSEWHERE_S = 1.0
"""After so long a cell that another process holds is tried again."""
TAIL = 8192
"""Bytes of an output in which its last line is looked for."""


def train_command(cell: Cell) -> list[str]:
    """The process of a cell."""
    return [sys.executable, "-m", "mbrl", "train", *cell.words, f"run_dir={cell.run.absolute()}"]


def environment(cell: Cell, gpu: int | None) -> dict[str, str]:
    """What the process of a cell sees: as many threads as its words say, and its GPU as the only one."""
    threads = next((word.partition("=")[2] for word in cell.words if word.startswith("compute.threads=")), "1")
    more = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    return {**os.environ, **more, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})}


class Watcher(Protocol):
    """Who is told how far a queue is."""

    def moved(self, cell: Cell, state: State, line: str) -> None:
        """A cell has another state; `line`: why it failed, else empty."""

    def look(self, running: Sequence[Cell]) -> None:
        """Some time has passed."""

    def say(self, line: str) -> None:
        """Something that is of no single cell."""


@dataclass(frozen=True)
class Child:
    """A running cell; `since`: where what this process printed begins in the cell's output."""

    cell: Cell
    lock: RunLock
    process: subprocess.Popen[bytes]
    slot: int
    since: int


class Queue:
    """Starts what is not finished and has not failed, `slots` at once, and takes down how each ends.

    Args:
        stop: truthy once all shall save and leave.
        watcher: is told of every change.
        command: the process of a cell.
        gpus: devices that the slots share out among them.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        slots: int,
        stop: Any,
        watcher: Watcher,
        command: Callable[[Cell], Sequence[str]] = train_command,
        gpus: Sequence[int] = (),
    ) -> None:
        self._waiting = dict.fromkeys(cells, 0.0)  # cell -> not to be tried before
        self._free, self._stop, self._watcher, self._command, self._gpus = [*range(slots)], stop, watcher, command, gpus
        self._children: list[Child] = []
        self._orphans = {cell for cell in cells if orphaned(cell.folder)}
        self._asked_to_stop = False

    def work(self) -> bool:
        """Returns when no cell is left to do here or anywhere, or after a requested stop; whether it was the former."""
        try:
            if self._orphans:
                self._watcher.say(f"still running, of a queue that was killed, each in a slot: {len(self._orphans)}")
            while self._children or (self._waiting and not self._stop):
                self._take_leave()
                if self._stop:
                    self._ask_to_stop()
                else:
                    self._start()
                self._watcher.look([child.cell for child in self._children])
                time.sleep(PAUSE_S)
        finally:
            self._ask_to_stop()  # nothing runs here any more, but after an error
        return not self._waiting

    def _start(self) -> None:
        """Fills the free slots."""
        now = time.monotonic()
        for cell in [cell for cell, since in self._waiting.items() if since <= now]:
            if not self._free:
                return
            if cell not in self._orphans and len(self._free) <= len(self._orphans):
                continue
            try:
                lock = RunLock(cell.folder)
            except RunInUse:
                self._waiting[cell] = now + ELSEWHERE_S
                continue
            self._orphans.discard(cell)
            del self._waiting[cell]
            if (state := settled(cell)) in (State.DONE, State.FAILED):  # here or by another queue
                lock.close()
                self._watcher.moved(cell, state, failure_of(cell) if state is State.FAILED else "")
                continue
            slot = self._free.pop(0)
            self._children.append(self._begin(cell, lock, slot))
            self._watcher.moved(cell, State.RUNNING, "")

    def _begin(self, cell: Cell, lock: RunLock, slot: int) -> Child:
        """Starts the process: in a session of its own, so that Ctrl-C reaches it once only, through us."""
        with (cell.folder / OUTPUT).open("ab") as output:
            since = output.tell()
            process = subprocess.Popen(
                self._command(cell),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(cell, self._gpus[slot % len(self._gpus)] if self._gpus else None),
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
            return Child(cell, lock, process, slot, since)

    def _take_leave(self) -> None:
        """Takes down how each ended child ended, and only then lets its cell go."""
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            self._free.append(child.slot)
            cell, line = child.cell, ""
            state, code = settled(cell), child.process.returncode
            again = code == SAVED_PLEASE_REQUEUE or (self._asked_to_stop and code == -signal.SIGTERM)
            if state is not State.DONE and not again:
                state = State.FAILED
                write_failure(cell, code, why(child, code))
                line = failure_of(cell)
            child.lock.close()
            if state not in (State.DONE, State.FAILED):
                self._waiting[cell] = 0.0  # behind all others
            self._watcher.moved(cell, state, line)

    def _ask_to_stop(self) -> None:
        """Asks every child once to save and leave."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            if self._children:
                self._watcher.say(f"stopping: {len(self._children)} to save and leave")
            for child in self._children:
                child.process.terminate()


def why(child: Child, code: int) -> str:
    """The last line of a child that says why it ended so."""
    if code == 0:
        return "ended without a result"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with (child.cell.folder / OUTPUT).open("rb") as output:
        output.seek(max(child.since, output.seek(0, os.SEEK_END) - TAIL))
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["without a word"])[-1].strip()
