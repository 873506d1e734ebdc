"""Breaks the rewards of a run's world model by hand, for audits that must notice: `python -m tests.measure.broken DIR`.

The last layer of the reward head gets the opposite sign; everything else stays, and so does every frame that is
imagined. A checkpoint with a later number joins those in DIR: give it a copy of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.io.checkpoint import Checkpoints, read_newest

HEADS = ("tokens.reward_head.3.", "tokens.reward_linear.")
"""How the names of the last layer begin, with `heads.reward=twohot` and `scalar`."""


class Held:
    """A part of a checkpoint that is only carried."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def broken(model: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a model with the reward head's last layer turned round."""
    turned = [name for name in model if name.startswith(HEADS)]
    assert turned, "this model has no reward head"
    return {name: -value if name in turned else value for name, value in model.items()}


def break_rewards(folder: Path) -> Path:
    """Adds the checkpoint; returns its path."""
    newest = read_newest(folder / "checkpoints")
    states = newest.states
    states["model"] = broken(states["model"])
    if best := states["best"]["found"]:
        best["states"]["model"] = broken(best["states"]["model"])
    parts = {name: Held(state) for name, state in states.items()}
    return Checkpoints(folder / "checkpoints", keep=9, info=newest.info).save(newest.step + 1, parts)


if __name__ == "__main__":
    sys.stdout.write(f"{break_rewards(Path(sys.argv[1]))}\n")
