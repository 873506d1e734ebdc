"""A polite stop: SIGTERM, Ctrl-C or a scheduler's SIGUSR ask the run to save and leave; a second one leaves at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SAVED_PLEASE_REQUEUE = 75
GOING_ON = ("train", "pretrain", "bench", "scale")
"""Verbs that go on where they stopped when the same command is given again."""
SAME_S = 0.5
"""A second signal within so many seconds is the first one once more: torchrun hands on what a terminal sent to all."""


def leave_early(words: Sequence[str]) -> None:
    """Until a `Stop` listens a signal ends the process with exit code 75: nothing was begun, so nothing is lost.

    Importing torch takes seconds; a scheduler that warns just then shall start the run again, not count it as failed.

    Args:
        words: the command line. Verbs that do not go on, and Ctrl-C, stay as Python has them.
    """
    if next((word for word in words if not word.startswith("-")), "") in GOING_ON:
        for number in SIGNALS:
            if number != signal.SIGINT:
                signal.signal(number, lambda number, frame: os._exit(SAVED_PLEASE_REQUEUE))


class Stop:
    """Truthy once a signal has arrived. The handler only takes note; the loop looks between two updates."""

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        """Of the signal that came first."""
        self._since = 0.0

    def listen(self) -> None:
        """Installs the handlers (main thread only)."""
        for number in SIGNALS:
            signal.signal(number, self._take_note)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self.number, self._since = True, number, time.monotonic()
        elif time.monotonic() - self._since > SAME_S:
            os._exit(128 + number)

    def __bool__(self) -> bool:
        return self.requested
