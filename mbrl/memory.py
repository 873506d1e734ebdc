"""Who asked for the memory that could not be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worldmodel.answers import said

SIZES = ("batch", "batch_size", "candidates", "capacity", "horizon", "length", "rows")
"""Keys of configurations, at any depth, that decide how much memory is needed at once."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's and numpy's error, and torch's, which on a CPU has no class of its own."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in said(error))
    )


def sizes_in(config: Any, prefix: str = "") -> list[str]:
    """`<prefix>batch=16`, ... of a configuration and those inside it."""
    if not dataclasses.is_dataclass(config):
        return []
    found = []
    for name, value in vars(config).items():
        if name in SIZES and isinstance(value, int):
            found.append(f"{prefix}{name}={value}")
        found += sizes_in(value, f"{prefix}{name}.")
    return found


@contextmanager
def asking(*keys: str) -> Iterator[None]:
    """Of memory that the body cannot have, the error says which `key=value` decide how much that is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if keys and out_of_memory(error):
            error.add_note(f"it grows with {', '.join(keys)}")
        raise
