"""Which process this is among those that torchrun started: asked of the environment once, by `python -m mbrl`.

Nothing else looks there: a variable that some scheduler left behind must not split a run that is meant to be whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Number of this process, how many there are, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


_taken = Ranks()


def take(environment: Mapping[str, str]) -> Ranks:
    """Reads what torchrun tells its processes. Raises: ValueError for numbers that are none."""
    global _taken
    variables = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK"}
    _taken = Ranks(**{field: int(environment.get(name, getattr(Ranks(), field))) for field, name in variables.items()})
    return _taken


def current() -> Ranks:
    """What `take` found; one process alone if nobody asked."""
    return _taken
