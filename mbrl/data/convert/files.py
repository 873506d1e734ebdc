"""Which files of a foreign archive are meant, and what goes wrong in opening one."""

from __future__ import annotations

import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILURES = (
    *(OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError),
    *(EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    SystemError,  # Cython, where an error meets another one
)
"""What numpy, zipfile and h5py raise on files that are damaged."""


def listed(folder: Path, wanted: Callable[[Path], bool], *, deep: bool = False) -> list[Path]:
    """What `wanted` takes of a folder (`deep`: of all below it), in natural order.

    What operating systems leave in archives is left out: `.DS_Store`, `._1.png`, and what lies in `__MACOSX`.
    Raises: ValueError for a pipe or a device, which may never end.
    """
    found = [path for path in (folder.rglob("*") if deep else folder.iterdir()) if wanted(path)]
    found = [path for path in found if not _left_behind(path.relative_to(folder))]
    if special := [path for path in found if path.exists() and not (path.is_file() or path.is_dir())]:
        raise ValueError(f"{special[0]} is a pipe or a device; only plain files are read")
    return sorted(found, key=natural)


def _left_behind(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def natural(path: Path) -> list[Any]:
    """A key that puts frame 10 behind frame 9, and folders' names before files'."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]
        for part in path.parts
    ]
