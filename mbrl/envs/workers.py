"""Where rows live: in this process, or in worker processes that answer the same messages with the same bits.

A worker is started afresh (a forked one would share its parent's OpenGL context), knows numpy and its world only, and
ends with its parent, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, Protocol

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.row import Row, rows_of
from mbrl.envs.simulator import EnvDataError, Task
from worldmodel.answers import said

Order = tuple[Any, ...]
"""A verb of `Row`, and what it is given."""
PATIENCE = 5.0
"""Seconds that a worker has to free its world before it is killed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal or a scheduler sends to a whole group of processes: the parent decides what it means."""


class Home(Protocol):
    """Rows that can be asked."""

    def ask(self, orders: Mapping[int, Order]) -> dict[int, Any]:
        """What rows answer to their orders, by number. Raises: EnvDataError, the one of the first row that has any."""
        ...

    def close(self) -> None:
        """Frees the rows; may be called twice."""
        ...


class Here:
    """Rows in this process."""

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self.rows = rows

    def ask(self, orders: Mapping[int, Order]) -> dict[int, Any]:
        """See `Home`."""
        return {number: getattr(self.rows[number], verb)(*given) for number, (verb, *given) in orders.items()}

    def close(self) -> None:
        """See `Home`."""
        for row in self.rows.values():
            row.close()


class Workers:
    """Rows in worker processes, neighbours together."""

    def __init__(self, task: Task, protocol: ProtocolConfig, *, rows: int, workers: int, snapshots: bool) -> None:
        """Raises: whatever `rows_of` raises; EnvDataError if a worker dies."""
        self._task = task.name
        spawn = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection, list[int]]] = []
        for place in range(workers):
            numbers = [row for row in range(rows) if row * workers // rows == place]
            ours, theirs = spawn.Pipe()
            given = (theirs, os.getpid(), task, protocol, numbers, snapshots)
            process = spawn.Process(target=work, args=given, name=f"rows-{numbers[0]}", daemon=True)
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a worker that still starts is deaf to them too
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()  # so that its death is heard
            self._workers.append((process, ours, numbers))
        # before multiprocessing itself ends its daemons, which do not listen
        self._end = Finalize(self, end, args=(list(self._workers),), exitpriority=10)
        for worker in self._workers:
            if (error := self._heard(*worker)) is not None:
                self.close()
                raise error

    def ask(self, orders: Mapping[int, Order]) -> dict[int, Any]:
        """See `Home`; all workers work at the same time."""
        asked = []
        for process, pipe, numbers in self._workers:
            if mine := {number: orders[number] for number in numbers if number in orders}:
                try:
                    pipe.send(mine)
                except OSError:
                    self._lost(process, numbers)
                asked.append((process, pipe, numbers))
        answers: dict[int, Any] = {}
        for worker in asked:
            answers |= self._heard(*worker)
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _heard(self, process: Any, pipe: Connection, numbers: Sequence[int]) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            return self._lost(process, numbers)

    def _lost(self, process: Any, numbers: Sequence[int]) -> None:
        process.join(PATIENCE)
        code = process.exitcode
        how = f"was killed by signal {-code} (out of memory?)" if code is not None and code < 0 else f"left with {code}"
        self.close()
        raise EnvDataError(f"the worker process of row {', '.join(map(str, numbers))} of {self._task} {how}")

    def close(self) -> None:
        """See `Home`."""
        self._end()


def end(workers: Sequence[tuple[Any, Connection, Sequence[int]]]) -> None:
    """Lets workers go, and waits until they are gone."""
    for _, pipe, _ in workers:
        pipe.close()
    last = time.monotonic() + PATIENCE
    for process, _, _ in workers:
        process.join(max(0.0, last - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def belong_to(parent: int) -> None:
    """Of a worker process: deaf to what is meant for the parent, and gone when the parent is (killed)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(
    pipe: Connection, parent: int, task: Task, protocol: ProtocolConfig, numbers: Sequence[int], snapshots: bool
) -> None:
    """A worker: builds its rows, says so with None, and answers orders until nobody listens."""
    belong_to(parent)
    try:
        home = Here(rows_of(task, protocol, numbers=numbers, snapshots=snapshots))
    except Exception as error:  # the parent raises it
        pipe.send(portable(error))
        return
    pipe.send(None)
    try:
        while True:
            orders = pipe.recv()
            answers: dict[int, Any] = {}
            for number, order in orders.items():
                try:
                    answers |= home.ask({number: order})
                except EnvDataError as error:
                    answers[number] = portable(error)
            pipe.send(answers)
    except (EOFError, OSError):
        home.close()


def portable(error: Exception) -> Exception:
    """An error that survives the way to the parent; where it came from is told with --debug."""
    try:
        same = error.args == (str(error),)
    except Exception:  # a user's class may do anything in `__str__`
        same = False
    if not same:  # made of other things than its words: it could not be made again there
        error = EnvDataError(f"{type(error).__name__}: {said(error)}")
    error.add_note("".join(traceback.format_exception(error)))
    return error
