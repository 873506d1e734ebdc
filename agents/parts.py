"""An agent's state: the states of its parts (networks, optimisers, normalisers, counters) in one flat mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

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
