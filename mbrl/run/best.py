"""Which weights are scored at the end: the last ones, or the best of the interim evaluations.

Interim evaluations have starts and goals of their own (stream `select`), so the final score is not the best of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mbrl.io.tree import copied
from mbrl.run.evaluate import Score


class Best:
    """A copy of everything that acts, as it was at the best interim evaluation so far.

    Better is: more successes (where the world knows any), then a higher return, then later. Evaluations of different
    sizes are not compared: the first of a new size replaces what there was.
    """

    def __init__(self, acting: Mapping[str, Any]) -> None:
        """`acting`: the parts that decide how the agent acts (the world model is one), each with a state dict."""
        self._acting = dict(acting)
        self._found: dict[str, Any] = {}
        self.offered = -1
        """Env step of the newest offer."""

    def __bool__(self) -> bool:
        """Whether there is any yet."""
        return bool(self._found)

    @property
    def env_step(self) -> int:
        """When it was evaluated."""
        return int(self._found["env_step"])

    def offer(self, score: Score, *, env_step: int) -> None:
        """Keeps the weights of now if `score`, an interim evaluation, is the best so far."""
        metrics = score.metrics()
        mark, size = [metrics.get("success", 0.0), metrics["return"]], int(metrics["episodes"])
        self.offered = env_step
        if not self._found or size != self._found["size"] or mark >= self._found["mark"]:
            states = {name: copied(part.state_dict()) for name, part in self._acting.items()}
            self._found = {"mark": mark, "size": size, "env_step": env_step, "states": states}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The best weights stand in the parts inside, those of before afterwards."""
        now = {name: copied(part.state_dict()) for name, part in self._acting.items()}
        self._load(self._found["states"])
        try:
            yield
        finally:
            self._load(now)

    def _load(self, states: Mapping[str, Any]) -> None:
        for name, part in self._acting.items():
            part.load_state_dict(states[name])

    def state_dict(self) -> dict[str, Any]:
        """The newest offer, and of the best one mark, size, env step and states (before the first there is none)."""
        return {"offered": self.offered, "found": self._found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.offered, self._found = state["offered"], dict(state["found"])
