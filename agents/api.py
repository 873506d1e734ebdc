"""The Agent protocol, the little of replay, dream and clock that an agent may see, and how an agent is built."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.answers import shown, wrong
from worldmodel.processes import Processes
from worldmodel.spec import ModelSpec, ObsKey, Rollout, Subset, is_action, is_plain

Memory: TypeAlias = TensorDict | None
"""The agent's own; None at the start. The loop carries and saves it. Tensors only, of batch size [E].

It looks at one key: an `action` f32 [E, A] in it, what leads into the next frame, becomes the action that was executed.
"""
Metrics: TypeAlias = Mapping[str, float | Tensor]
"""Scalars of one update, by the name of their column in metrics.csv; an agent that dreams gives `DreamMetrics`."""
Policy: TypeAlias = Callable[[TensorDict, Memory], tuple[Tensor, Memory]]
"""td [B] with the keys that were asked for (`latent`, ...) and memory -> action f32 [B, A], memory."""
Mode: TypeAlias = Literal["explore", "evaluate"]
Built_co = TypeVar("Built_co", covariant=True)


class DreamMetrics(dict[str, float | Tensor]):
    """Metrics of an update with imagination: the run tells its pace, and books its time on `imagine`, not on `learn`.

    Attributes:
        imagined_frames: how many there were, over all rows.
        imagine_s: seconds of the update that they took.
    """

    def __init__(self, scalars: Metrics, *, imagined_frames: int, imagine_s: float) -> None:
        super().__init__(scalars)
        self.imagined_frames, self.imagine_s = imagined_frames, imagine_s


class Replay(Protocol):
    """What an agent may ask of replay. Draws are numbered: the same `draw` gives the same rows."""

    def clips(
        self, n: int, length: int, *, stream: str, draw: int, codes: bool = False, subset: Subset = "all"
    ) -> TensorDict:
        """`n` random clips (worldmodel.spec) of `length` frames, never across episodes; batch [n].

        `codes=True` gives `context_codes` and `codes` instead of pixels (of a model with `spec.codes`); `subset` says
        which episodes to draw from: all, the run's demonstrations, or the newest.
        """
        ...

    def transitions(
        self,
        n: int,
        *,
        n_step: int,
        stack: int,
        stream: str,
        draw: int,
        subset: Subset = "all",
        keys: Sequence[ObsKey] = ("pixels",),
    ) -> TensorDict:
        """`n` random transitions (worldmodel.spec) of `n_step` decisions at most; batch [n].

        Every decision of every finished episode of the subset is equally likely. `keys` of `stack` frames stand behind
        each other; none of them has to be read by a world model.
        """
        ...

    def __len__(self) -> int:
        """Stored decisions."""
        ...


class Dream(Protocol):
    """The world model as an agent sees it."""

    spec: ModelSpec

    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip -> the dream state [B] after its last frame, of fixed shape (`spec.state`)."""
        ...

    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        """The state after a real step [B], which has `spec.obs_keys`."""
        ...

    def step(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None = None) -> TensorDict:
        """The state after an imagined step, with its `reward` and `continue`; without a generator the most likely."""
        ...

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """Every row `copies` times: row b becomes rows b * copies and on. Costs no encoding."""
        ...

    def decode(self, state: TensorDict) -> Tensor:
        """The newest frame, u8 [B, 3, H, W]."""
        ...

    def codes_of(self, state: TensorDict) -> tuple[Tensor, Tensor]:
        """Of a model with codes (`spec.codes`): those of the context i64 [B, t*N] and of all frames i64 [B, F, K]."""
        ...

    def detokenize(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        """The same back: what codes show, u8 [B, F, 3, H, W]."""
        ...

    def rollout(
        self,
        policy: Callable[[TensorDict, Any], tuple[Tensor, Any]],
        state: TensorDict,
        memory: Any,
        horizon: int,
        *,
        stream: str,
        draw: int,
        keys: tuple[str, ...] = ("latent",),
        sample: bool = True,
        processes: Processes | None = None,
    ) -> Rollout:
        """Imagine `horizon` steps under `policy`, which sees exactly `keys`: any of `latent`, a part of it, `pixels`,
        `reward`, ...

        Returns: path [B, H] (worldmodel.spec), state and memory to go on from; without gradient.
        """
        ...


class Agent(Protocol):
    """Acts in the real world and learns, however it likes.

    The loop it is for:

        action, memory = agent.act(td, memory, "explore", step=decisions)
        ...
        metrics = agent.learn(replay, update)
    """

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """Actions f32 [E, A] in [-1, 1] for the real step `td` [E] (`pixels`, `is_init`, `spec.obs_keys`).

        `step` counts decisions of this caller: exploration noise and schedules are functions of it alone.
        """
        ...

    def learn(self, replay: Replay, update: int) -> Metrics:
        """Owed update number `update` (0-based); may draw from replay, may dream. {} is fine."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything to be saved, flat, tensors only (weights, optimizer moments, normalisers)."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`, strict."""
        ...


@runtime_checkable
class ModelBasedAgent(Protocol):
    """What an agent that learns in dreams may answer besides `Agent`, for instruments; others are not asked."""

    gamma: float
    """Discount per decision."""

    def dream_policy(self, generator: torch.Generator) -> Policy:
        """How it acts in its dreams now, as explorative as in the real world; noise comes from `generator`.

        It is shown `latent`; its memory is None at first and carried from step to step.
        """
        ...

    def value(self, latent_BD: Tensor) -> Tensor:
        """The discounted return that it expects from these latents, f32 [B], in environment units."""
        ...


def action_of(agent: Any, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
    """`agent.act(...)`. Raises: WrongAnswer where that is no action for each row, or no memory."""
    given = agent.act(td, memory, mode, step=step)
    if not isinstance(given, tuple | list) or len(given) != 2:
        got = f"{len(given)} values" if isinstance(given, tuple | list) else shown(given)
        raise wrong(agent, "act", "an action and a memory", got)
    action_EA, after = given
    if not is_action(action_EA, len(td)):
        raise wrong(agent, "act", f"a tensor of actions [{len(td)}, A]", shown(action_EA))
    if after is not None and not (isinstance(after, TensorDict) and after.batch_size == td.batch_size):
        got = f"one of {list(after.batch_size)}" if isinstance(after, TensorDict) else shown(after)
        raise wrong(agent, "act", f"None or a TensorDict [{len(td)}] as memory", got)
    return action_EA, after


def metrics_of(agent: Any, replay: Replay, update: int) -> Metrics:
    """`agent.learn(replay, update)`. Raises: WrongAnswer where that is not a number for each name."""
    given = agent.learn(replay, update)
    if not isinstance(given, Mapping):
        raise wrong(agent, "learn", "a mapping from names to numbers, {} for none", shown(given))
    for name, value in given.items():
        if not isinstance(name, str) or not name or not name.isprintable():
            raise wrong(agent, "learn", "printable names of columns", shown(name))
        if not is_number(value):
            raise wrong(agent, "learn", f"one number as {shown(name)}", shown(value))
    return given


def is_number(value: Any) -> bool:
    """Whether `float` makes a number of it; looks at no tensor's values."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and is_plain(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    try:
        return isinstance(value, Real) and isinstance(float(value), float)
    except OverflowError:
        return False


class Buildable(Protocol[Built_co]):
    """A config dataclass that makes an agent or a model of the run's objects that its `build` names."""

    def build(self, *args: Any, **kwargs: Any) -> Built_co:
        """The object; see `build`."""
        ...


def build(config: Buildable[Built_co], runtime: Mapping[str, Any]) -> Built_co:
    """`config.build(...)` with those of the run's objects that its signature names.

    A `build` that names `runtime` gets the whole mapping: so an agent builds another one inside it, whose names it does
    not know, by `build(self.inner, runtime)`. Nothing else differs between the outer and the inner one: the same seeds,
    the same dream. State of an inner agent goes under a prefix, its memory under a key of its own.

    Args:
        runtime: for an agent `spec, env_spec, dream, seeds, device, processes, expert` (no `dream` where the model has
            none).
    Raises: ValueError in one line if `build` names something that this run does not have.
    """
    parameters, there = inspect.signature(config.build).parameters, {**runtime, "runtime": runtime}
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in needed if name not in there]:
        raise ValueError(
            f"{type(config).__name__}.build asks for {', '.join(missing)}, which this run does not have; "
            f"there are {', '.join(there)}"
        )
    return config.build(**{name: there[name] for name in parameters if name in there})


def asked(config: Any) -> set[str]:
    """What `build` of a config (or of its class) names, and those of the configs inside it (an agent in an agent)."""
    names = set(inspect.signature(config.build).parameters) if hasattr(config, "build") else set()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        inside = list(vars(config).values())
    elif isinstance(config, Mapping):
        inside = list(config.values())
    else:
        inside = list(config) if isinstance(config, tuple | list) else []
    return names.union(*(asked(value) for value in inside))
