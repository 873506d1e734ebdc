"""An agent's state: the states of its parts (networks, optimisers, normalisers, counters) in one flat mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

PATIENCE = 10
"""Updates in a row that may fail to be finite."""
Parts = Mapping[str, Mapping[str, Tensor]]


class Stateful(Protocol):
    """A network, an `Optimizer`, a normaliser."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Flat, tensors only."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Inverse of `state_dict`."""
        ...


def state_of(parts: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """The state of an agent that is nothing but these parts."""
    return joined({name: part.state_dict() for name, part in parts.items()})


def load(parts: Mapping[str, Stateful], state: Mapping[str, Tensor]) -> None:
    """Inverse of `state_of`. Raises: ValueError as `split`; nothing is changed then."""
    given = split(state, {name: part.state_dict() for name, part in parts.items()})
    for name, part in parts.items():
        part.load_state_dict(given[name])


def joined(parts: Parts) -> dict[str, Tensor]:
    """`<part>.<name>` of every tensor (not copies)."""
    return {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}


def split(state: Mapping[str, Tensor], parts: Parts) -> dict[str, dict[str, Tensor]]:
    """Inverse of `joined`: what of a saved state belongs to each of the `parts` that are there.

    Raises: ValueError if a name is missing, unknown or has another shape.
    """
    own = joined(parts)
    if wrong := own.keys() ^ state.keys():
        raise ValueError(f"the agent's state must hold its own names (differs in {sorted(wrong)[:5]})")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)} (got {tuple(state[name].shape)})"
            raise ValueError(f"agent state {name} must be {shapes}; was it saved under other sizes?")
    return {part: {name: state[f"{part}.{name}"] for name in held} for part, held in parts.items()}


class Counts(dict[str, int]):
    """Whole numbers that are part of an agent's state.

    >>> Counts(decisions=3).state_dict()
    {'decisions': tensor(3)}
    """

    def state_dict(self) -> dict[str, Tensor]:
        """An i64 [] for each."""
        return {name: torch.tensor(value) for name, value in self.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.update({name: int(state[name]) for name in self})

    def failure(self, failed: bool, what: object) -> None:
        """Counts under `failed` how many updates in a row were not finite, the last of which is `what`.

        Raises: FloatingPointError if they are too many.
        """
        self["failed"] = self["failed"] + 1 if failed else 0
        if self["failed"] >= PATIENCE:
            raise FloatingPointError(f"{PATIENCE} agent updates in a row were not finite, the last is {what}")
