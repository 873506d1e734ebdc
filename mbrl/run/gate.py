"""The actor's gate: it stays closed until the world model has passed stated thresholds on episodes that it never saw.

Knows numbers only; who measures them is instruments.py's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What the world model must show before the agent learns in it.

    Attributes:
        episodes: over how many held-out episodes in a row `reward_r2` is averaged; 0: there is no gate.
        reward_r2: least R2 of the reward at 5 imagined frames (`heldout/reward_r2_5`).
        codes_alive: least number of codes in use in the newest episodes (`replay/codes_alive`).
    """

    episodes: int
    reward_r2: float
    codes_alive: int

    def __post_init__(self) -> None:
        for name, right, text in (
            ("episodes", self.episodes >= 0, ">= 0"),
            ("reward_r2", -math.inf < self.reward_r2 < 1, "below 1"),
            ("codes_alive", self.codes_alive >= 0, ">= 0"),
        ):
            if not right:
                raise ValueError(f"{name} must be {text} (got {getattr(self, name)})")
        if not self.episodes and (self.reward_r2 or self.codes_alive):
            raise ValueError(
                f"episodes must be >= 1 with thresholds reward_r2={self.reward_r2} and codes_alive={self.codes_alive} "
                f"(got 0, which means no gate: set them to 0 too)"
            )

    def build(self) -> Gate:
        """The gate at the beginning of a run."""
        return Gate(self)


class Gate:
    """Closed, then open for good. Where there is no gate it is open from the beginning."""

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self.open = config.episodes == 0
        self.r2: deque[float] = deque(maxlen=max(1, config.episodes))
        """R2 of the newest held-out episodes."""
        self.codes_alive: int | None = None

    def judge(self, r2: float | None, codes_alive: Callable[[], int | None]) -> bool:
        """Takes one held-out episode's measurements; whether the gate opened at this one.

        Args:
            r2: None where it could not be measured (an episode too short, rewards that are all the same).
            codes_alive: counts them; None where the model has no codes.
        """
        if self.open:
            return False
        if r2 is not None:
            self.r2.append(r2)
        self.codes_alive = codes_alive()
        self.open = not self.lacking()
        return self.open

    def lacking(self) -> list[str]:
        """What falls short, each with the number there is and the number needed; empty where nothing does."""
        need, short = self.config, []
        if len(self.r2) < need.episodes:
            short.append(f"{len(self.r2)} of {need.episodes} held-out episodes measured")
        elif sum(self.r2) / len(self.r2) < need.reward_r2:
            short.append(f"{self._r2()}, needed {need.reward_r2:.2f}")
        if self.r2 and (self.codes_alive or 0) < need.codes_alive:
            short.append(f"{self.codes_alive or 0} codes alive, needed {need.codes_alive}")
        return short

    def _r2(self) -> str:
        return f"reward R2 {sum(self.r2) / len(self.r2):.2f} (mean of the last {len(self.r2)} held-out episodes)"

    def __str__(self) -> str:
        if not self.open:
            return f"the gate is closed, the actor does not learn yet: {'; '.join(self.lacking())}"
        return f"the gate is open: {self._r2()}, {self.codes_alive} codes alive" if self.r2 else "there is no gate"

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"open": self.open, "r2": list(self.r2), "codes_alive": self.codes_alive}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.open, self.codes_alive = state["open"], state["codes_alive"]
        self.r2 = deque(state["r2"], maxlen=self.r2.maxlen)
