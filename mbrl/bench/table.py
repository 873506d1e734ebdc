"""How far a benchmark is, for a person: a table that is kept up to date on a terminal, a line per change elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from mbrl.bench.plan import Cell, Pace, State, failure_of, state_of
from mbrl.files import DamagedFile
from mbrl.progress import clock_time
from mbrl.report.record import read_table
from mbrl.rundir.folder import read_config

REFRESH_S = 1.0
MOST_FAILURES = 8
"""So many failures are listed on a terminal; status lists them all."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: env steps, of how many, and the seconds left at its pace since the prefill; None before."""

    env_steps: float
    total: float
    left_s: float | None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f", {clock_time(self.left_s)} left"
        return f"{self.env_steps:.0f} of {self.total:.0f} env steps{left}"


def progress_of(cell: Cell) -> Progress | None:
    """How far a cell's run is; None before its first row."""
    try:
        rows = read_table(cell.run / "metrics.csv")
        schedule = read_config(cell.run)["schedule"]
        total, prefill = float(schedule["total"]), float(schedule["prefill"])
    except (OSError, ValueError, DamagedFile):  # it is just beginning, or a line is being written: asked again soon
        return None
    if not rows or not rows[-1]["env_step"]:
        return None
    steps, spent = rows[-1]["env_step"], rows[-1].get("wall_s", 0.0)
    # the prefill learns nothing and takes seconds: its pace says nothing of the rest
    began = max((row for row in rows if row["env_step"] <= prefill), key=lambda row: row["env_step"], default=None)
    before, taken = (began["env_step"], began.get("wall_s", 0.0)) if began else (0.0, 0.0)
    left_s = max(0.0, total - steps) * (spent - taken) / (steps - before) if steps > before else None
    return Progress(steps, total, left_s)


def states_of(cells: Sequence[Cell]) -> dict[Cell, State]:
    """The state of every cell now."""
    return {cell: state_of(cell) for cell in cells}


def counted(states: Mapping[Cell, State]) -> str:
    """`12 done, 2 running, 15 queued of 30 runs`."""
    counts = {state: sum(found is state for found in states.values()) for state in State}
    order = (State.DONE, State.RUNNING, State.FAILED, State.STOPPED, State.QUEUED)
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    return f"{', '.join(parts)} of {len(states)} run{'s' * (len(states) > 1)}"


def left(states: Mapping[Cell, State], slots: int, pace: Pace) -> str:
    """How long the rest takes on so many slots, as far as ended runs of the same kind tell."""
    todo = [cell for cell, state in states.items() if state not in (State.DONE, State.FAILED)]
    if not todo:
        return ""
    pace.learn(cell for cell, state in states.items() if state is State.DONE)
    expected = [pace.seconds(cell) for cell in todo]
    known = [seconds for seconds in expected if seconds is not None]
    if not known:
        return "time left unknown until a run has ended"
    more = len(todo) - len(known)
    unknown = f" and {more} run{'s' * (more > 1)} of unknown length" if more else ""
    return f"at most {clock_time(sum(known) / min(slots, len(known)))} left{unknown}"


def rows(states: Mapping[Cell, State]) -> Iterator[tuple[str, str, str]]:
    """State, name and what there is to say of every cell."""
    for cell, state in states.items():
        said = failure_of(cell) if state is State.FAILED else ""
        if state in (State.RUNNING, State.STOPPED):
            said = str(progress_of(cell) or "beginning")
        yield state, cell.name, said


def lines(states: Mapping[Cell, State]) -> list[str]:
    """`rows` as a table."""
    wide = max((len(cell.name) for cell in states), default=0)
    return [f"  {state:8}{name.ljust(wide)}  {said}".rstrip() for state, name, said in rows(states)]


class Screen:
    """Tells a person what a queue does (a `Watcher`): a table that is drawn over itself, or plain lines."""

    def __init__(self, cells: Sequence[Cell], *, slots: int, stream: TextIO) -> None:
        self._states, self._slots, self._stream = states_of(cells), slots, stream
        self._live = stream.isatty()
        self._drawn, self._next, self._pace = 0, 0.0, Pace()
        self.say(
            "; ".join(filter(None, (counted(self._states), f"{slots} at once", left(self._states, slots, self._pace))))
        )

    def moved(self, cell: Cell, state: State, line: str) -> None:
        """Takes note; without a terminal writes a line."""
        self._states[cell] = state
        if self._live:
            self._next = 0.0
        else:
            text = f"{state}: {cell.name}{f', {line}' if line else ''}; {counted(self._states)}"
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def say(self, line: str) -> None:
        """A line that stays, in place of the table, which is drawn again below."""
        self._erase()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def look(self, running: Sequence[Cell]) -> None:
        """On a terminal draws the table anew once a second."""
        if self._live and time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_S
            self._states = states_of(list(self._states))  # what other queues do is seen too
            self._draw()

    def close(self) -> None:
        """The table as it is at the end."""
        if self._live:
            self._states = states_of(list(self._states))
            self._draw()

    def _draw(self) -> None:
        """The table, over what was drawn before."""
        failed = [cell for cell, state in self._states.items() if state is State.FAILED][-MOST_FAILURES:]
        running = [cell for cell, state in self._states.items() if state is State.RUNNING]
        shown = {cell: self._states[cell] for cell in (*running, *failed)}
        heading = "; ".join(filter(None, (counted(self._states), left(self._states, self._slots, self._pace))))
        columns = shutil.get_terminal_size().columns - 1
        text = [line[:columns] for line in (heading, *lines(shown))]
        self._erase()
        self._stream.write("".join(f"{line}\n" for line in text))
        self._stream.flush()
        self._drawn = len(text)

    def _erase(self) -> None:
        """Up over what was drawn, and clear to the end of the screen."""
        self._stream.write(f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "")
        self._drawn = 0
