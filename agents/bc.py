"""Behaviour cloning: the networks of DrQ-v2 fitted to demonstrations alone.

The reference for every run that has demonstrations: whatever a run learns beyond them must beat this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from agents.api import Memory, Metrics, Mode, Replay
from agents.distributions import check_finite
from agents.memory import FrameStack
from agents.parts import Counts, Stateful, load, state_of
from agents.pixel_nets import Actor, Encoder, PixelNetsConfig, initialise
from worldmodel.augment import moved
from worldmodel.optim import OptimConfig
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Settings of a `BC`.

    Attributes:
        nets: encoder and policy.
        batch_size: demonstrated decisions of an update.
        std: standard deviation of the noise of training episodes; evaluation has none.
        optim: optimizer of both.
    """

    nets: PixelNetsConfig
    batch_size: int
    std: float
    optim: OptimConfig
    imitates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1 (got {self.batch_size})")
        if not self.std >= 0:
            raise ValueError(f"std must be >= 0 (got {self.std})")

    def build(self, *, env_spec: EnvSpec, seeds: Seeds, device: str) -> BC:
        """A fresh agent, its weights drawn from stream `init/agent`. Raises: ValueError for discrete actions."""
        if env_spec.discrete:
            raise ValueError("behaviour cloning needs continuous actions, and this task has choices; take dreamer_cpu")
        return BC(self, env_spec, seeds, device)


class BC:
    """Acts on stacked frames as the demonstrator did in similar ones."""

    def __init__(self, config: BCConfig, env_spec: EnvSpec, seeds: Seeds, device: str) -> None:
        self.config, self._seeds, self._device = config, seeds, device
        self._frames, self._counts = FrameStack(config.nets.stack), Counts(failed=0)
        with seeded_globally(seeds.torch("init/agent")):
            encoder = Encoder(config.nets, env_spec.image)
            self.policy = nn.Sequential(encoder, Actor(config.nets, encoder.width, env_spec.action_dim))
            initialise(self.policy)
        self.policy.to(device)
        self.optim = config.optim.build(dict(self.policy.named_parameters()))

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`."""
        memory = self._frames.see(td, memory)
        action_EA = self.policy(memory["frames"].to(self._device)).to(td["pixels"].device)
        check_finite("policy mean", action_EA)
        if mode == "explore":
            noise_EA = torch.randn(action_EA.shape, generator=self._seeds.torch("explore", step))
            action_EA = (action_EA + self.config.std * noise_EA.to(action_EA.device)).clamp(-1, 1)
        return action_EA, memory

    def learn(self, replay: Replay, update: int) -> Metrics:
        """One step towards the demonstrated actions: the mean squared error over a batch of shifted frames.

        Raises: ValueError without demonstrations; FloatingPointError after 10 updates in a row that were not finite.
        """
        config, nets = self.config, self.config.nets
        batch = replay.transitions(
            config.batch_size, n_step=1, stack=nets.stack, stream="bc", draw=update, subset="demos"
        ).to(self._device)
        generator = self._seeds.torch("bc/shift", update)
        by_B2 = torch.randint(-nets.shift, nets.shift + 1, (config.batch_size, 2), generator=generator)
        loss = functional.mse_loss(self.policy(moved(batch["pixels"], by_B2)), batch["action"])
        failed = self.optim.step(loss) is None
        self._counts.failure(failed, f"number {update}")
        return {"agent/bc_loss": loss.detach(), "agent/skipped": float(failed)}

    def _parts(self) -> dict[str, Stateful]:
        return {"policy": self.policy, "optim": self.optim, "counts": self._counts}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and moments, flat."""
        return state_of(self._parts())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`. Raises: ValueError if a name is missing, unknown or has another shape."""
        load(self._parts(), state)
