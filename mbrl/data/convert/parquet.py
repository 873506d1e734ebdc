"""The one door for parquet files, through pyarrow where it is installed: what a file says of itself is bounded first.

Rows come in small pieces: repeated values take few bytes in a file, however large they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import UnclearRow, Unreadable
from mbrl.replay.episode import MAX_BYTES

MOST_VALUES, MOST = 2**28, MAX_BYTES
"""Of one column of a file: numbers, and bytes once they are unpacked."""
ROWS = {True: 2**16, False: 32}
"""Rows that are read at a time: of numbers, and of pictures."""
PATIENCE_S = 60.0
"""Seconds that the footers of a hundred files may take."""


def check_installed() -> None:
    """Raises: ValueError naming the package to install."""
    try:
        import pyarrow.parquet  # noqa: F401 - asked for before anything is written
    except ImportError as error:
        raise ValueError(
            "LeRobot datasets need pyarrow: pip install pyarrow (and imageio-ffmpeg for videos)"
        ) from error


FOOTERS = """
import json, sys
sys.path[:] = json.loads(sys.stdin.readline())
import pyarrow.parquet as pq
for line in sys.stdin:
    try:
        metadata = pq.read_metadata(json.loads(line))
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                column.num_values
    except Exception:
        pass  # is raised and told when the file is opened
    print(flush=True)
"""
"""A program that looks at what files say of themselves, and prints a line for each that it came through."""


def fatal(paths: Iterable[Path]) -> set[Path]:
    """Files on which pyarrow does not raise but ends the process, or never ends: another process looks at them first.

    (Arrow throws while it makes an object of a damaged footer, where Python's binding expects no exception.)
    """
    left, found = [path for path in dict.fromkeys(paths) if path.is_file()], set()
    while left:
        told = "".join(json.dumps(line) + "\n" for line in (sys.path, *map(str, left)))
        command = [sys.executable, "-c", FOOTERS]
        patience = PATIENCE_S * (1 + len(left) // 100)
        try:
            looked = subprocess.run(command, input=told.encode(), capture_output=True, timeout=patience, check=False)
            came = looked.stdout.count(b"\n")
            if came == 0 and looked.returncode > 0:
                said = looked.stderr.decode(errors="replace").splitlines() or ["no word"]
                raise ValueError(f"pyarrow cannot be used ({said[-1]})")
        except subprocess.TimeoutExpired as error:
            came = (error.stdout or b"").count(b"\n")
        found |= set(left[came : came + 1])
        left = left[came + 1 :]
    return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as a `pyarrow.parquet.ParquetFile`. Raises: Unreadable, also for what pyarrow raises in the body."""
    import pyarrow
    import pyarrow.parquet as pq

    if not path.is_file():
        raise Unreadable(f"{path.name} is not there, or no plain file")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (Unreadable, UnclearRow):
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})") from error


def checked(file: Any, name: str) -> Any:
    """The type of a column that is there once and in bounds. Raises: Unreadable."""
    schema = file.schema_arrow
    if schema.names.count(name) != 1:
        raise Unreadable(f"it has no column {name}; it has {', '.join(sorted(set(schema.names)))}")
    values = unpacked = 0
    for group in range(file.metadata.num_row_groups):
        of_group = file.metadata.row_group(group)
        for place in range(of_group.num_columns):
            column = of_group.column(place)
            if (column.path_in_schema + ".").startswith(name + "."):
                values, unpacked = values + column.num_values, unpacked + column.total_uncompressed_size
    if values > MOST_VALUES or unpacked > MOST:
        raise Unreadable(f"{name} says {values} values of {unpacked} bytes: more than {MOST_VALUES} of {MOST}")
    return schema.field(name).type


def _pieces(file: Any, name: str, begin: int, end: int, *, size: int) -> Iterator[Any]:
    """Rows begin..end of a column, as arrays of at most `size` rows."""
    at = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if at < end and at + rows > begin:
            place = at
            for batch in file.iter_batches(size, row_groups=[group], columns=[name], use_threads=False):
                first, last = max(begin - place, 0), min(end - place, batch.num_rows)
                if first < last:
                    yield batch.column(batch.schema.names.index(name)).slice(first, last - first)
                place += batch.num_rows
        at += rows


def numbers(file: Any, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
    """Rows of a column of numbers [n], or of lists of equally many numbers [n, A]. Raises: Unreadable."""
    import pyarrow

    kind = checked(file, name)
    listed = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)
    inner = kind.value_type if listed else kind
    if not any(of(inner) for of in (pyarrow.types.is_integer, pyarrow.types.is_floating, pyarrow.types.is_boolean)):
        raise Unreadable(f"{name} must be numbers, or lists of numbers (got {kind})")
    found = [np.zeros((0,))]
    for piece in _pieces(file, name, begin, file.metadata.num_rows if end is None else end, size=ROWS[True]):
        flat = piece.flatten() if listed else piece
        if piece.null_count or flat.null_count:
            raise Unreadable(f"{name} must have a value in every row")
        rows = flat.to_numpy(zero_copy_only=False)
        if listed:
            widths = set(piece.value_lengths().to_pylist())
            if len(widths) != 1:
                raise Unreadable(f"{name} changes its size")
            rows = rows.reshape(len(piece), widths.pop())
        found.append(rows)
    if len({rows.shape[1:] for rows in found[1:]}) > 1:
        raise Unreadable(f"{name} changes its size")
    return np.concatenate(found[1:] or found)


def integers(file: Any, name: str) -> NDArray[np.int64]:
    """All rows of a column of whole numbers >= 0. Raises: Unreadable."""
    found = numbers(file, name)
    if found.dtype.kind not in "ui" or found.ndim != 1 or (len(found) and not 0 <= found.min() <= found.max() < 2**62):
        raise Unreadable(f"{name} must be whole numbers >= 0 (got {found.dtype} {list(found.shape)})")
    return found.astype(np.int64)


def pictures(file: Any, name: str, begin: int, end: int) -> Iterator[bytes]:
    """Rows of a column of pictures, as `{bytes, path}` or bytes. Raises: Unreadable."""
    import pyarrow

    kind = checked(file, name)
    nested = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    inner = kind.field("bytes").type if nested else kind
    if not (pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner)):
        raise Unreadable(f"{name} must be pictures in bytes (got {kind})")
    for piece in _pieces(file, name, begin, end, size=ROWS[False]):
        for content in piece.field("bytes") if nested else piece:
            if not content.is_valid:
                raise Unreadable(f"{name} holds no picture in a row: its pictures lie in other files, or are missing")
            yield content.as_py()
