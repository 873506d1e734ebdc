"""What a real world must answer to become rows of an environment, what it may answer, and the errors of its door.

Knows numpy only: no TensorDict, no rendering, no particular world.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.protocol import ProtocolConfig
from worldmodel.answers import method, raised, shown

MOST = float(np.finfo(np.float32).max)


class EnvDataError(ValueError):
    """A world was given, or gave, what must not reach a simulator or a replay; or it broke."""


class UnknownTask(ValueError):
    """No such task; the message names the nearest ones."""

    def __init__(self, suite: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        super().__init__(
            f"name must be one of the {len(known)} tasks of {suite} (got {name!r}); nearest: {', '.join(nearest)}"
        )


@dataclass(frozen=True, kw_only=True)
class WorldFacts:
    """What a task says of its worlds before any is built; rows hold the built ones to it.

    Attributes:
        action_dim: numbers of an action, or choices.
        discrete: actions are one of `action_dim` choices, one-hot.
        terminates: whether an episode can end by itself.
        success: whether steps say success; if not, agents are ranked by their returns.
        proprio_dim: numbers that a robot knows of itself; 0 or `Stateful`.
        state_dim: numbers that the simulator knows of a moment; 0 or `Stateful`.
        snapshot_dim: numbers of a moment that one can go back to; 0 or `Snapshots`.
        expert: whether there is a scripted one: `Expert`.
        parts: what some slices of `state` are called, for instruments: positions in the world's unit of length.
    """

    action_dim: int
    discrete: bool = False
    terminates: bool = False
    success: bool = True
    proprio_dim: int = 0
    state_dim: int = 0
    snapshot_dim: int = 0
    expert: bool = False
    parts: Mapping[str, slice] = field(default_factory=dict)

    def widths(self, *, snapshots: bool) -> dict[str, int]:
        """How many numbers every real step carries beside its frame, by key."""
        found = {"proprio": self.proprio_dim, "state": self.state_dim}
        return found | ({"snapshot": self.snapshot_dim} if snapshots else {})


@dataclass(frozen=True)
class SimStep:
    """What one simulator step gave.

    Attributes:
        reward: a number that float32 can hold.
        terminated: the task ended by itself in it: nothing follows.
        truncated: the world cut the episode here: more would have followed.
        success: None where the world knows no success.
        unstable: the physics broke down in it, and nothing else is to be used.
    """

    reward: float
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    unstable: bool = False


class Simulator(Protocol):
    """One world. The same seed and the same actions give the same episode, bit for bit, whatever happened before.

    What it gives may lie in buffers that it uses again: whoever asks copies. More than this is optional: `Stateful`,
    `Snapshots`, `Expert`.
    """

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        ...

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """One simulator step with a finite action [action_dim] in [-1, 1]."""
        ...

    def draw(self) -> NDArray[np.uint8]:
        """The frame of this moment, u8 [3, H, W]."""
        ...

    def close(self) -> None:
        """Frees what the world holds; may be called twice."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A world that tells more of a moment than its frame."""

    def state(self) -> NDArray[np.float32]:
        """What the simulator knows, f32 [S]: for instruments, and for models that say openly that they read it."""
        ...

    def proprio(self) -> NDArray[np.float32]:
        """What a real robot would know of itself, f32 [Q], each number about 1 in size."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """A world that can go back to a moment, its own or that of another world of the same task."""

    def snapshot(self) -> NDArray[np.float64]:
        """Everything that decides how this moment goes on, f64 [P]. Only after a reset."""
        ...

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Goes back there; from there equal actions give equal steps. Only after a reset."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A world with a scripted expert."""

    def expert(self) -> NDArray[np.float32]:
        """What it would do now, f32 [action_dim] in [-1, 1]. Does not move the world."""
        ...


class Task(Protocol):
    """The config of a task: checked when made, built into any number of worlds. It imports no simulator before that."""

    tasks: ClassVar[Sequence[str]]
    """What `name` may be."""
    name: str

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        """What its worlds are like under `protocol`."""
        ...

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        """What it cannot do of `protocol`, most basic first: the key, its value, and a mend."""
        ...

    def build(self, *, protocol: ProtocolConfig, rows: int) -> Sequence[Simulator]:
        """`rows` worlds, drawn and stepped as `protocol` says, about which there are no complaints."""
        ...


@dataclass(frozen=True)
class Decision:
    """What one decision gave; where `unstable`, the physics broke down in it: only the steps before that count."""

    reward: float
    terminated: bool
    truncated: bool
    success: bool | None
    unstable: bool


def decide(simulator: Simulator, action_A: NDArray[np.float32], protocol: ProtocolConfig) -> Decision:
    """Repeats an action as `protocol` says; rewards are summed, its bonus included.

    Raises: EnvDataError where the world breaks, or answers what is no step.
    """
    reward, success, step, who = 0.0, None, SimStep(0.0), method(simulator, "step")
    for _ in range(protocol.action_repeat):
        step = checked(ask(simulator, "step", action_A), who)
        if step.unstable:
            break
        reward += float(step.reward)
        if step.success is not None:
            success = bool(step.success) or (bool(success) and protocol.success == "any")
        if step.terminated or step.truncated:
            break
    reward += protocol.success_bonus * bool(success)
    if not abs(reward) <= MOST:
        raise EnvDataError(f"{who}: reward {reward} does not fit into float32")
    ends = not step.unstable
    return Decision(reward, ends and bool(step.terminated), ends and bool(step.truncated), success, bool(step.unstable))


def checked(step: Any, who: str) -> SimStep:
    """Raises: EnvDataError unless `step` of `who` is one, and its values are of the right kinds."""
    if not isinstance(step, SimStep):
        raise EnvDataError(f"{who} must return a SimStep (got {shown(step)})")
    flag = (bool, np.bool_)
    for name in ("terminated", "truncated", "unstable"):
        if not isinstance(getattr(step, name), flag):
            raise EnvDataError(f"{who}: {name} must be True or False (got {shown(getattr(step, name))})")
    if not isinstance(step.success, (*flag, type(None))):
        raise EnvDataError(f"{who}: success must be True, False or None (got {shown(step.success)})")
    if not isinstance(step.reward, Real) or isinstance(step.reward, flag):
        raise EnvDataError(f"{who}: reward must be a number (got {shown(step.reward)})")
    if not step.unstable and not np.isfinite(float(step.reward)):
        raise EnvDataError(f"{who}: reward {step.reward} is not finite")
    return step


def ask(simulator: Any, name: str, *given: Any) -> Any:
    """What a method of a world answers. Raises: EnvDataError for whatever it raises, `sys.exit` too."""
    try:
        return getattr(simulator, name)(*given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EnvDataError(raised(method(simulator, name), error)) from error


def taken(name: str, given: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """A copy of an array that a world gave: it may write into the same memory at its next step.

    Frames must have the dtype; numbers are brought to it, and must be finite in float32 (a snapshot may hold anything).
    Raises: EnvDataError.
    """
    frame = dtype is np.uint8
    right = f"uint8 {shape}" if frame else f"{shape[0]} numbers"
    if not isinstance(given, np.ndarray):
        raise EnvDataError(f"{name} must be {right} (got {shown(given)})")
    if given.shape != shape or (given.dtype != dtype if frame else given.dtype.kind not in "fiu"):
        raise EnvDataError(f"{name} must be {right} (got {given.dtype} {given.shape})")
    with np.errstate(over="ignore"):
        copy = given.astype(dtype, order="C")
    if dtype is np.float32 and not np.isfinite(copy).all():
        raise EnvDataError(f"{name} must be finite in float32 (got {given[~np.isfinite(copy)][0]})")
    return copy


def symlog(value: NDArray[Any]) -> NDArray[np.float32]:
    """sign(x) ln(1 + |x|), f32: numbers of any size become about 1 in size (DreamerV3, Hafner et al. 2023, eq. 1)."""
    return (np.sign(value) * np.log1p(np.abs(value))).astype(np.float32)
