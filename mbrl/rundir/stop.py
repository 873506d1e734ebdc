"""A polite stop: SIGTERM, Ctrl-C or a scheduler's SIGUSR ask the run to save and leave; a second one leaves at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SAVED_PLEASE_REQUEUE = 75
SAME_S = 0.5
"""A second signal within so many seconds is the first one once more: torchrun hands on what a terminal sent to all."""


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
