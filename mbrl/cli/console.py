"""Where a run says what it does: the screen and console.log. A reader that leaves or a full disk does not stop it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path


class Screen(logging.StreamHandler):
    """Says what a run says for as long as somebody reads it (`mbrl train | head`); the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Says nothing more where nothing can be said."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        logging.getLogger("mbrl").removeHandler(self)


class LogFile(logging.FileHandler):
    """A log on a disk that may be full: then there is less of it, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Leaves the line out."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def setup_logging(path: Path) -> None:
    """Sends what the run says to the screen and to console.log."""
    root = logging.getLogger("mbrl")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in (Screen(sys.stdout), LogFile(path, encoding="utf-8")):
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
