"""The one door for HDF5 files, through h5py where it is installed: nothing leads out of them, sizes are checked first.

An HDF5 file may link to other files, hold arrays that lie in other files, and declare arrays of any size in few bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import UnclearRow, Unreadable, check_frames
from mbrl.data.convert.files import FAILURES, listed
from mbrl.files import MOST_ROWS
from mbrl.replay.episode import MAX_BYTES


def archives(folder: Path) -> list[Path]:
    """Every .hdf5 of `folder` and below it, in natural order. Raises: ValueError without h5py, or if there is none."""
    try:
        import h5py  # noqa: F401 - asked for before anything is written
    except ImportError as error:
        raise ValueError("HDF5 archives need h5py: pip install 'h5py>=3.10'") from error
    paths = listed(folder, lambda path: path.is_file() and path.suffix.lower() in (".hdf5", ".h5"), deep=True)
    if not paths:
        raise ValueError(f"from={folder} holds no .hdf5 file")
    return paths


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, in which no link leads to another one. Raises: Unreadable, also for what h5py raises in the body."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            status = path.stat()
            if (name := _link_out(path, (status.st_mtime_ns, status.st_size), file)) is not None:
                raise Unreadable(f"{name} is a link to another file")
            yield file
    except (Unreadable, UnclearRow):
        raise
    except FAILURES as error:
        raise Unreadable(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error


_looked_through: dict[Path, tuple[tuple[int, int], str | None]] = {}
"""Of the newest file: its time and size, and what in it leads out. It is opened once for each episode in it."""


def _link_out(path: Path, stamp: tuple[int, int], file: Any) -> str | None:
    """The first link that leads to another file; looked for once, as long as the file stays as it is."""
    import h5py

    def leads_out(name: str, link: Any) -> str | None:
        return None if isinstance(link, h5py.HardLink | h5py.SoftLink) else name

    if _looked_through.get(path, (None,))[0] != stamp:
        _looked_through.clear()
        _looked_through[path] = stamp, file.visititems_links(leads_out)
    return _looked_through[path][1]


def group(found: Any, *, what: str, wanted: str) -> Mapping[str, Any]:
    """`found`, which must be a group to have what is `wanted` of it. Raises: Unreadable saying what it is instead."""
    if isinstance(found, Mapping):
        return found
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    kind = f"n array of {dtype} {list(shape)}" if shape is not None else f" {type(found).__name__}"
    raise Unreadable(f"{what} is a{kind}, where a group with {wanted} is expected")


def member(found: Any, name: str, *, what: str) -> Any:
    """What lies under a name in a group called `what`. Raises: Unreadable naming what there is."""
    held = group(found, what=what, wanted=name)
    if name not in held:
        raise Unreadable(f"{what} has no {name}; it has {', '.join(sorted(held)) or 'nothing'}")
    return held[name]


def pictures(found: Any, *, what: str) -> NDArray[Any]:
    """The numbers of frames [L, h, w, 3], copied once what the file says of them is in bounds. Raises: Unreadable."""
    if getattr(found, "shape", None) is not None and getattr(found, "dtype", None) is not None:
        check_frames(found.shape, found.dtype, what=what)
    return array(found, what=what, most=MAX_BYTES)


def array(found: Any, *, what: str, most: int = MOST_ROWS) -> NDArray[Any]:
    """The numbers of a data set, copied once what it says of itself is in bounds. Raises: Unreadable."""
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if not shape or dtype is None or dtype.kind not in "uifb":
        raise Unreadable(
            f"{what} must be an array of numbers (got {dtype or type(found).__name__} {list(shape or ())})"
        )
    if getattr(found, "is_virtual", False) or getattr(found, "external", None):
        raise Unreadable(f"{what} lies in other files")
    for size in (shape, getattr(found, "chunks", None) or ()):  # a chunk is unpacked whole
        if math.prod(size) * dtype.itemsize > most:
            raise Unreadable(f"{what} says {list(size)} of {dtype}: more than {most} bytes")
    return np.array(found)
