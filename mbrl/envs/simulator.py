"""What a real world must answer to become rows of an environment, and the errors that its door raises.

Knows numpy only: no TensorDict, no rendering, no particular world.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.protocol import ProtocolConfig


class EnvDataError(ValueError):
    """A world was given, or gave, a value that must not reach a simulator or a replay."""


class UnknownTask(ValueError):
    """No such task; the message names the nearest ones."""

    def __init__(self, suite: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        super().__init__(
            f"name must be one of the {len(known)} tasks of {suite} (got {name!r}); nearest: {', '.join(nearest)}"
        )


@dataclass(frozen=True)
class SimStep:
    """What one simulator step gave; where `unstable`, the physics broke down in it and nothing else is to be used."""

    reward: float
    terminated: bool
    success: bool
    unstable: bool = False


class Simulator(Protocol):
    """One world. The same seed and the same actions give the same episode, bit for bit, whatever happened before."""

    action_dim: int
    discrete: bool
    """Actions are one of `action_dim` choices, one-hot."""
    terminates: bool
    """Whether an episode can end by itself."""
    proprio_dim: int
    """How many numbers of `state` a real robot would know of itself."""
    proprio_centre: tuple[float, ...]
    proprio_scale: tuple[float, ...]
    """Proprioception is (number - centre) * scale, so that what matters in it is about 1 in size."""
    parts: Mapping[str, slice]
    """What some slices of `state` are called, for instruments: positions in the world's unit of length."""

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        ...

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """One simulator step with a finite action [action_dim] in [-1, 1]."""
        ...

    def draw(self) -> NDArray[np.uint8]:
        """The frame of this moment, u8 [3, H, W]."""
        ...

    def state(self) -> NDArray[np.float32]:
        """What the simulator knows of this moment, f32 [S]; its first `proprio_dim` numbers are the proprioception.

        For instruments, and for models that say openly that they read it; an agent from pixels never sees it.
        """
        ...

    def snapshot(self) -> NDArray[np.float64]:
        """Everything that decides how this moment goes on, f64 [P]."""
        ...

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Goes back to a moment of any world of the same task; from there equal actions give equal steps."""
        ...

    def expert(self) -> NDArray[np.float32]:
        """What a scripted expert would do now, f32 [action_dim] in [-1, 1]. Does not move the world.

        Raises: NotImplementedError where there is none.
        """
        ...

    def close(self) -> None:
        """Frees what the world holds; may be called twice."""
        ...


@dataclass(frozen=True)
class Decision:
    """What one decision gave; where `unstable`, the physics broke down in it: only the steps before that count."""

    reward: float
    terminated: bool
    success: bool
    unstable: bool


def decide(simulator: Simulator, action_A: NDArray[np.float32], protocol: ProtocolConfig) -> Decision:
    """Repeats an action as `protocol` says; rewards are summed, its bonus included.

    Raises: EnvDataError for a reward that is not finite.
    """
    reward, terminated, success, unstable = 0.0, False, False, False
    for _ in range(protocol.action_repeat):
        step = simulator.step(action_A)
        if step.unstable:
            unstable = True
            break
        if not np.isfinite(step.reward):
            raise EnvDataError(f"reward {step.reward} is not finite")
        reward += step.reward
        success = step.success or (success and protocol.success == "any")
        terminated = step.terminated
        if terminated:
            break
    return Decision(reward + protocol.success_bonus * success, terminated, success, unstable)


class Task(Protocol):
    """The config of a task: checked when made, built into any number of worlds."""

    name: str

    def build(self, *, protocol: ProtocolConfig, rows: int) -> Sequence[Simulator]:
        """`rows` worlds of this task, drawn and stepped as `protocol` says."""
        ...
