"""From composed YAML to config dataclasses: one node with a `_target_` is one constructor call, and nothing else is.

Knows no particular class. A config that was read from a run folder is data: it may only name classes of ours.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

OURS = ("worldmodel.", "agents.", "mbrl.")
KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list like [a,b]",
    dict: "a group of keys",
}
"""What a value of a type is called."""


def make(node: Any, path: str, *, trusted: bool) -> Any:
    """Builds the dataclass that `node` describes, and those inside it; lists become tuples.

    Args:
        node: plain containers.
        path: the node's key, for messages.
        trusted: whether classes outside this project may be named (true for the user's own config directories only).
    Raises: ValueError, `<key> ...`, for a target that cannot be had, a missing or unknown field, a value of another
        kind or out of range.
    """
    if isinstance(node, list | tuple):
        return tuple(make(item, f"{path}.{i}", trusted=trusted) for i, item in enumerate(node))
    if not isinstance(node, Mapping):
        return node
    fields = {name: make(item, f"{path}.{name}", trusted=trusted) for name, item in node.items() if name != "_target_"}
    if "_target_" not in node:
        return fields
    target = find(str(node["_target_"]), path, trusted=trusted)
    known = {field.name for field in dataclasses.fields(target)}
    if missing := sorted(known - fields.keys()):
        raise ValueError(f"{path}.{missing[0]} is missing: {target.__name__} takes {', '.join(sorted(known))}")
    if unknown := sorted(fields.keys() - known):
        raise ValueError(f"{path}.{unknown[0]} is unknown: {target.__name__} takes {', '.join(sorted(known))}")
    for name, kind in get_type_hints(target).items():
        if kind in (bool, int, float, str) and name in fields and not is_a(fields[name], kind):
            raise ValueError(f"{path}.{name} must be {KINDS[kind]} (got {fields[name]!r})")
    try:
        return target(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}.{error}") from error


def is_a(value: Any, kind: type) -> bool:
    """Whether a plain value is of this kind; whole numbers also serve as numbers, and true is no number.

    >>> is_a(2, float), is_a(2.0, int), is_a(True, int)
    (True, False, False)
    """
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def find(target: str, path: str, *, trusted: bool) -> Any:
    """The dataclass of a dotted name. Raises: ValueError if there is none, or it is not one that may be named here."""
    if not trusted and not target.startswith(OURS):
        raise ValueError(f"{path}._target_ must be a class of this project in a stored config (got {target})")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}._target_ must be an importable dataclass (got {target}: {error})") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{path}._target_ must be a dataclass (got {target})")
    return found
