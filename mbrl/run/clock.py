"""Time has one unit (env steps: simulator steps after action repeat) and one owner: the Clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """When something is owed; pure arithmetic, so a resumed run owes exactly what the uninterrupted one owed.

    Attributes:
        every: env steps between two instalments; 0 means never after `initial`.
        start: env steps before anything is owed.
        initial: owed at once at `start`.
        updates: owed at each instalment.

    >>> fit = Cadence(every=10, start=4000, initial=1000, updates=1)
    >>> fit.owed(3999, 0), fit.owed(4000, 0), fit.owed(4025, 1000)
    (0, 1000, 2)
    """

    every: int
    start: int
    initial: int
    updates: int

    def __post_init__(self) -> None:
        for name in ("every", "start", "initial", "updates"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")

    @property
    def ever(self) -> bool:
        """Whether anything is owed at any time.

        >>> Cadence(every=10, start=0, initial=0, updates=0).ever
        False
        """
        return self.initial > 0 or (self.every > 0 and self.updates > 0)

    def owed(self, env_steps: int, done: int) -> int:
        """How many are owed at `env_steps` when `done` have been done."""
        if env_steps < self.start:
            return 0
        instalments = (env_steps - self.start) // self.every * self.updates if self.every else 0
        return max(0, self.initial + instalments - done)


@dataclass
class Clock:
    """All counters of a run; everything else that counts asks here.

    Attributes:
        env_steps: simulator steps, after action repeat, over all environments.
        decisions: agent choices, over all environments.
        episodes: finished episodes.
        done: how often each named thing has been done.
    """

    env_steps: int = 0
    decisions: int = 0
    episodes: int = 0
    done: dict[str, int] = field(default_factory=dict)

    def owed(self, name: str, cadence: Cadence) -> Iterator[int]:
        """Yields the number of each owed `name`; counts it only when its body has finished."""
        while cadence.owed(self.env_steps, self.done.get(name, 0)):
            yield self.done.get(name, 0)
            self.done[name] = self.done.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "env_steps": self.env_steps,
            "decisions": self.decisions,
            "episodes": self.episodes,
            "done": dict(self.done),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.env_steps, self.decisions, self.episodes = state["env_steps"], state["decisions"], state["episodes"]
        self.done = dict(state["done"])
