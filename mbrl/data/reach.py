"""How far the actions of episodes go: the worlds of a run execute [-1, 1], and nothing is clipped without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

MEND = (
    "a run takes none of them as demos= or rehearsal=: scale each number of an action to [-1, 1], as the world "
    "executes it, and convert again"
)
"""What to do; pre-training and prediction take actions of any size."""


@dataclass
class Reach:
    """Counts episodes.

    Attributes:
        episodes: so many were looked at.
        beyond: so many of them have an action outside [-1, 1].
        low, high: the smallest and the largest number of all.
    """

    episodes: int = 0
    beyond: int = 0
    low: float = 0.0
    high: float = 0.0

    def add(self, action: NDArray[Any]) -> None:
        """One more episode with the actions [L, A]."""
        low, high = float(action.min(initial=0.0)), float(action.max(initial=0.0))
        self.episodes += 1
        self.beyond += low < -1 or high > 1
        self.low, self.high = min(self.low, low), max(self.high, high)

    def __str__(self) -> str:
        return (
            f"{self.beyond} of {self.episodes} episodes have actions outside [-1, 1] "
            f"(from {self.low:.8g} to {self.high:.8g})"
        )
