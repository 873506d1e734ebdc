"""From composed YAML to config dataclasses: one node with a `_target_` is one constructor call, and nothing else is.

Knows no particular class. A config that was read from a run folder is data: it may only name classes of ours.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

OURS = ("worldmodel.", "agents.", "mbrl.")
named_packages: set[str] = set()
"""Packages outside this project whose classes were named: their errors are their author's, wherever they lie."""
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
    for name, hint in hints(target).items():
        if name in fields and not fits(fields[name], hint):
            raise ValueError(f"{path}.{name} must be {called(hint)} (got {fields[name]!r:.60})")
    try:
        return target(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}.{error}") from error


def make_group(plain: Mapping[str, Any], name: str, *, trusted: bool) -> Any:
    """The dataclass of a whole group of a configuration. Raises: ValueError, as `make`, and where it names no class."""
    node = plain.get(name)
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ValueError(f"{name} must be a group of keys with a _target_, as its file under configs/ is")
    return make(node, name, trusted=trusted)


def hints(target: Any) -> dict[str, Any]:
    """The types of a dataclass of ours, by field; none where they cannot be told (a user's may be anything)."""
    try:
        return get_type_hints(target) if target.__module__.startswith(OURS) else {}
    except NameError:  # imported for type checkers only
        return {}


def called(hint: Any) -> str:
    """What a value of a type is called."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(called, get_args(hint)))
    if hint is type(None):
        return "null"
    if get_origin(hint) is tuple:
        return KINDS[list]
    return KINDS.get(hint) or f"of the kind {hint.__name__ if isinstance(hint, type) else hint}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of a field's type, as far as that can be seen in it.

    >>> fits(2, float), fits(2.0, int), fits(True, int), fits(None, int | None)
    (True, False, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        rest = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(rest) and all(map(fits, value, rest))
    if hint is None or hint is type(None):
        return value is None
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint in (int, float):
        return number or (hint is float and isinstance(value, float))
    if hint in (bool, str, list, dict) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return isinstance(value, hint)
    return True


def find(target: str, path: str, *, trusted: bool) -> Any:
    """The dataclass of a dotted name. Raises: ValueError if there is none, or it is not one that may be named here."""
    if not trusted and not target.startswith(OURS):
        raise ValueError(f"{path}._target_ must be a class of this project in a stored config (got {target})")
    module, _, name = target.rpartition(".")
    if not target.startswith(OURS):
        named_packages.add(module.split(".")[0])
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path}._target_ must be an importable dataclass (got {target}: {error})") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{path}._target_ must be a dataclass (got {target})")
    return found
