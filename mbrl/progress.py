"""How far long work is: what, how much of it is done, the time left; in the same words on a screen and in a log.

Whoever works calls `tell(done, total)` as often as it likes, and `told(what)` sees to it that a person hears of it now
and then: by lines of the run's log where there is one, else on stderr, where a terminal has one line, written anew.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

log = logging.getLogger("mbrl")

Tell = Callable[[int, int], None]
"""Takes what is done, and of how much; 0 where nobody knows."""
TOLD_S, REDRAWN_S = 15.0, 0.5
"""Seconds from one line to the next in a log or a file, and from one look of a terminal's line to the next."""
WIDEST = 79


def told(what: str) -> Told:
    """What is to be called with (done, total). What takes less than `TOLD_S` is not spoken of, but on a terminal."""
    if log.isEnabledFor(logging.INFO):
        return Told(what, lambda far, _ended: log.info("  %s", far), every=TOLD_S)
    if sys.stderr.isatty():
        return Told(what, TerminalLine(sys.stderr), every=REDRAWN_S)
    return Told(what, write_line, every=TOLD_S)


def quiet(done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class HowFar:
    """How much of what is done, after so many seconds; a total of 0 is not known."""

    done: int
    total: int
    what: str
    spent: float

    def __str__(self) -> str:
        """`120 of 600 updates of tokenizer, 2m05s left`; without a total, or at the end, the time that was spent."""
        return self.within(sys.maxsize)

    def within(self, columns: int) -> str:
        """The same in so many letters: numbers and time, and as much of their name as there is room for."""
        if self.total and self.done < self.total:
            numbers = f"{self.done} of {self.total}"
            time_left = f", {clock_time(self.spent / self.done * (self.total - self.done))} left"
        else:
            numbers = f"{self.done} of {self.total}" if self.total else f"{self.done}"
            time_left = f" in {clock_time(self.spent)}"
        what = f" {self.what}"[: max(0, columns - len(numbers) - len(time_left))].rstrip()
        return f"{numbers}{what}{time_left}"[:columns]


class Told:
    """Says now and then how far work is; at its end only if something was said before.

    Args:
        what: of what the numbers are, in the plural.
        say: takes how far it is, and whether that is the end.
        every: seconds from one word to the next.
    """

    def __init__(self, what: str, say: Callable[[HowFar, bool], None], *, every: float) -> None:
        self.what, self.say, self.every = what, say, every
        self._begun = self._last = time.monotonic()
        self._spoken = False

    def __call__(self, done: int, total: int) -> None:
        """Takes how far it is now."""
        now = time.monotonic()
        ended = done >= total > 0
        if self._spoken if ended else done > 0 and now - self._last >= self.every:
            self._last, self._spoken = now, not ended
            self.say(HowFar(done, total, self.what, now - self._begun), ended)


def write_line(far: HowFar, _ended: bool) -> None:
    """A line of a file."""
    sys.stderr.write(f"{far}\n")
    sys.stderr.flush()


class TerminalLine:
    """One line of a terminal, written anew; never wider than the terminal, where it would become many."""

    open: TerminalLine | None = None
    """The one that the cursor stands in."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, far: HowFar, ended: bool) -> None:
        """Writes over what was there."""
        wide = max(1, min(WIDEST, columns_of(self.stream) - 1))
        self.stream.write(f"\r{far.within(wide).ljust(wide)}")
        TerminalLine.open = self
        if ended:
            leave_line()
        self.stream.flush()


def leave_line() -> None:
    """Before anything else is printed: ends the line that the cursor stands in."""
    if (line := TerminalLine.open) is not None:
        TerminalLine.open = None
        line.stream.write("\n")
        line.stream.flush()


def columns_of(stream: TextIO) -> int:
    """How wide a terminal is; one that does not know has 80 columns."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def clock_time(seconds: float) -> str:
    """`95.0` -> `1m35s`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
