"""JSON files that others read: a schema says which fields there are, and a file that is not by it is never written.

A schema is a mapping of fields to their kinds: a type, a constant, a list of a kind, `(None, kind)` for one that may be
null, or fields (`*`: of any name). Its own field `schema` is the number that grows when a field changes its meaning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbrl.files import write_atomically


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes or replaces the file. Raises: OSError; ValueError for a number that is none."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def check_schema(value: Any, schema: Mapping[str, Any]) -> None:
    """Raises: ValueError, one line, that names the first field that is missing, unknown or of another kind."""
    if (found := next(complaints(value, schema, "", schema["schema"]), None)) is not None:
        raise ValueError(found)


def complaints(value: Any, kind: Any, key: str, number: int) -> Iterator[str]:
    """What of `value` is not of the `kind`, as lines that begin with the key; `number`: the schema's."""
    if isinstance(kind, Mapping):
        if not isinstance(value, Mapping):
            yield f"{key or 'a result'} must hold fields (got {value!r:.40})"
            return
        kinds = dict.fromkeys(value, kind["*"]) if "*" in kind else kind
        for name in sorted(kinds.keys() ^ value.keys()):
            yield f"{key}{name} is {'missing' if name in kinds else 'unknown'} by schema {number}"
        for name in kinds:
            yield from complaints(value[name], kinds[name], f"{key}{name}.", number)
    elif isinstance(kind, tuple):
        if value is not None:
            yield from complaints(value, kind[1], key, number)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{key[:-1]} must be a list (got {value!r:.40})"
            return
        for place, item in enumerate(value):
            yield from complaints(item, kind[0], f"{key}{place}.", number)
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{key[:-1]} must be a finite number (got {value!r:.40})"
    elif isinstance(kind, type):
        if type(value) is not kind:
            yield f"{key[:-1]} must be of type {kind.__name__} (got {value!r:.40})"
    elif value != kind or type(value) is not type(kind):
        yield f"{key[:-1]} must be {kind} (got {value!r:.40})"
