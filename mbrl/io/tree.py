"""A nested state as two things that can be stored without pickle: plain JSON, and a flat table of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PLACE = "__tensor__"
"""A JSON object with this one key stands where a tensor was; its value is the tensor's name in the table."""


class Diverged(ArithmeticError):
    """A number that must be finite is not (exit code 4); saving it would spoil the last good state."""


def split(state: Any, *, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Takes the tensors out of `state`; they are not copied. A tuple becomes a list.

    Args:
        state: dicts with string keys, lists, tuples, tensors, str, int, float, bool, None.
        name: what the state is called in errors and tensor names.

    Raises: ValueError for anything that cannot be stored, Diverged for a number that is not finite; both say where.
    """
    tensors: dict[str, Tensor] = {}
    return _split(state, name, tensors), tensors


def copied(state: Any) -> Any:
    """A state whose tensors and containers are its own."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list | tuple) else state


def join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `split`. Raises: KeyError if the tree names a tensor that is not in the table."""
    if isinstance(tree, dict):
        if set(tree) == {PLACE}:
            return tensors[tree[PLACE]]
        return {key: join(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [join(value, tensors) for value in tree]
    return tree


def _split(state: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(state, Tensor):
        if state.layout is not torch.strided or state.device.type == "meta":
            kind = "meta" if state.device.type == "meta" else str(state.layout).removeprefix("torch.")
            raise ValueError(f"{where} must be a tensor whose values lie in rows (got a {kind} one)")
        if state.is_floating_point() and not torch.isfinite(state).all():
            raise Diverged(f"{where} holds {int((~torch.isfinite(state)).sum())} numbers that are not finite")
        if where in tensors:
            raise ValueError(f"two tensors are called {where}: rename one")
        tensors[where] = state.detach()
        return {PLACE: where}
    if isinstance(state, Mapping):
        for key in state:
            if not isinstance(key, str) or key == PLACE:
                raise ValueError(f"{where} has the key {key!r}; keys must be strings other than {PLACE!r}")
        return {key: _split(value, f"{where}/{key}", tensors) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_split(value, f"{where}/{i}", tensors) for i, value in enumerate(state)]
    if isinstance(state, float) and not math.isfinite(state):
        raise Diverged(f"{where} is {state}")
    # exact types: a NumPy number passes for a float here and would come back as another type
    if state is None or type(state) in (str, int, float, bool):
        return state
    raise ValueError(f"{where} is a {type(state).__name__}; states hold tensors and plain JSON values only")
