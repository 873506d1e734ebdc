"""Which files of a foreign archive are meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def listed(folder: Path, wanted: Callable[[Path], bool], *, deep: bool = False) -> list[Path]:
    """What `wanted` takes of a folder (`deep`: of all below it), in natural order.

    What operating systems leave in archives is left out: `.DS_Store`, `._1.png`, and what lies in `__MACOSX`.
    """
    found = (path for path in (folder.rglob("*") if deep else folder.iterdir()) if wanted(path))
    return sorted((path for path in found if not _left_behind(path.relative_to(folder))), key=natural)


def _left_behind(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def natural(path: Path) -> list[Any]:
    """A key that puts frame 10 behind frame 9, and folders' names before files'."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]
        for part in path.parts
    ]
