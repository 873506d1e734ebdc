"""MBPO (Janner et al. 2019, arXiv:1906.08253, algorithm 2) as iVideoGPT uses it (arXiv:2405.15223, section 4.2).

An off-policy agent from pixels learns from real transitions and from short dreams that begin in real states.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Dream, DreamMetrics, Memory, Metrics, Mode, Policy, Replay, action_of, build, metrics_of
from agents.imagined import ImaginedReplay
from agents.memory import FrameStack
from agents.parts import Counts, Stateful, load, state_of
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec


@runtime_checkable
class PixelPolicy(Protocol):
    """What the inner agent answers besides `Agent`: how it acts where it is shown frames, in a dream too."""

    frames: FrameStack

    def policy(self, generator: torch.Generator) -> Policy:
        """Explores as in the real world, with noise from `generator`; its memory is that of `frames`."""
        ...


@dataclass(frozen=True, kw_only=True)
class MBPOConfig:
    """Settings of an `MBPO`.

    Attributes:
        inner: the off-policy agent that acts and learns.
        rollouts: dreams that begin at once, each in a real state of its own.
        horizon: H, decisions of a dream.
        initial: how often `rollouts` dreams are made before the first update.
        every: updates from one time to the next.
        real_ratio: share of a batch that is real, in [0, 1].
        capacity: dreams that are kept; the oldest make room.
    """

    inner: Any
    rollouts: int
    horizon: int
    initial: int
    every: int
    real_ratio: float
    capacity: int

    def __post_init__(self) -> None:
        for name in ("rollouts", "horizon", "initial", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if not 0 <= self.real_ratio <= 1:
            raise ValueError(f"real_ratio must be in [0, 1] (got {self.real_ratio})")
        if self.capacity < self.rollouts:
            raise ValueError(f"capacity must be >= rollouts={self.rollouts} (got {self.capacity})")

    @property
    def stack(self) -> int:
        """Real frames that the inner agent must have seen before a dream begins."""
        return getattr(self.inner, "stack", 1)

    def build(self, *, runtime: Mapping[str, Any], spec: ModelSpec, dream: Dream, seeds: Seeds, device: str) -> MBPO:
        """Around a fresh inner agent. Raises: ValueError where that and the model do not go together."""
        if not spec.rewards:
            raise ValueError("agent: MBPO learns from imagined rewards, and this world model predicts none")
        inner = build(self.inner, runtime)
        if not isinstance(inner, PixelPolicy):
            raise ValueError(
                f"agent.inner must be an off-policy agent from pixels (got {type(self.inner).__name__}); "
                "choose agent.inner=drqv2_cpu"
            )
        return MBPO(self, inner, spec=spec, dream=dream, seeds=seeds, device=device)


class MBPO:
    """Acts as its inner agent does."""

    def __init__(
        self, config: MBPOConfig, inner: Any, *, spec: ModelSpec, dream: Dream, seeds: Seeds, device: str
    ) -> None:
        self.config, self.inner, self._dream, self._seeds, self._device = config, inner, dream, seeds, device
        self._num_observed = max(spec.burn_in, inner.frames.frames)  # a dream begins behind a whole stack
        self.imagined = ImaginedReplay(
            config.capacity,
            spec=spec,
            num_observed=self._num_observed,
            horizon=config.horizon,
            dream=dream,
            seeds=seeds,
        )
        self._counts = Counts(dreams=0)

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`."""
        return action_of(self.inner, td, memory, mode, step=step)

    def learn(self, replay: Replay, update: int) -> Metrics:
        """Dreams where they are due, then one update of the inner agent on real and imagined transitions."""
        begun, before = time.perf_counter(), self._counts["dreams"]
        while self._counts["dreams"] < self.config.initial + update // self.config.every:
            self._imagine(replay, self._counts["dreams"])
            self._counts["dreams"] += 1
        imagined_at = time.perf_counter()
        mixed = MixedReplay(replay, self.imagined, self.config.real_ratio, self._device)
        metrics = {**metrics_of(self.inner, mixed, update), "agent/imagined": float(len(self.imagined))}
        frames = (self._counts["dreams"] - before) * self.config.rollouts * self.config.horizon
        return DreamMetrics(metrics, imagined_frames=frames, imagine_s=imagined_at - begun)

    @torch.no_grad()
    def _imagine(self, replay: Replay, number: int) -> None:
        """Dreams of the inner agent's policy from random real states (algorithm 2, lines 5 to 7)."""
        clip = replay.clips(self.config.rollouts, self._num_observed, stream="mbpo", draw=number, codes=True)
        state = self._dream.encode(clip.to(self._device))
        memory = self.inner.frames.before(self._dream.detokenize(*self._dream.codes_of(state)))
        policy = self.inner.policy(self._seeds.torch("mbpo/policy", number, device=self._device))
        self.imagined.add(
            self._dream.rollout(
                policy, state, memory, self.config.horizon, stream="mbpo/frames", draw=number, keys=("pixels",)
            )
        )

    def _parts(self) -> dict[str, Stateful]:
        return {"inner": self.inner, "imagined": self.imagined, "counts": self._counts}

    def state_dict(self) -> dict[str, Tensor]:
        """The inner agent's state and all dreams, flat."""
        return state_of(self._parts())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`. Raises: ValueError if a name is missing, unknown or has another shape."""
        load(self._parts(), state)


class MixedReplay:
    """Real and imagined transitions in one batch (`agents.api.Replay`); all else is the real replay's."""

    def __init__(self, real: Replay, imagined: ImaginedReplay, real_ratio: float, device: str) -> None:
        self._real, self._imagined, self._ratio, self._device = real, imagined, real_ratio, device

    def __len__(self) -> int:
        """Stored real decisions."""
        return len(self._real)

    def clips(self, n: int, length: int, **how: Any) -> TensorDict:
        """Real clips."""
        return self._real.clips(n, length, **how)

    def transitions(self, n: int, **how: Any) -> TensorDict:
        """`n` rows, the real ones first."""
        real = round(self._ratio * n)
        parts = ((self._real, real), (self._imagined, n - real))
        return torch.cat([one.transitions(rows, **how).to(self._device) for one, rows in parts if rows])
