"""DrQ-v2 (Yarats et al. 2021, arXiv:2107.09645): an actor-critic from pixels that learns from replay, model-free.

Knows a Replay's transitions; needs no world model. B transitions, E environments, R encoded width, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from agents.api import Memory, Metrics, Mode, Policy, Replay
from agents.distributions import ScheduledStdConfig, check_finite
from agents.memory import FrameStack
from agents.parts import Counts, Stateful, load, state_of
from agents.pixel_nets import Actor, Critic, Encoder, PixelNetsConfig, initialise
from agents.returns import n_step_returns
from worldmodel.augment import moved
from worldmodel.optim import OptimConfig, to_host
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec


def disturbed(mean_BA: Tensor, noise_BA: Tensor) -> Tensor:
    """Mean and noise, cut to [-1, 1] in value but not in gradient."""
    action_BA = mean_BA + noise_BA
    return action_BA + (action_BA.clamp(-1 + 1e-6, 1 - 1e-6) - action_BA).detach()


@dataclass(frozen=True, kw_only=True)
class DrQv2Config:
    """Settings of a `DrQv2` (table 2 of the paper).

    Attributes:
        nets: encoder and heads.
        batch_size: transitions of an update.
        n_step: decisions whose rewards are summed.
        gamma: discount per decision, in (0, 1).
        tau: share of the critics that their target network takes over after each update, in (0, 1].
        std: standard deviation of exploration and of the target policy.
        std_clip: noise of updates is cut at this (TD3's target policy smoothing); real decisions' is not.
        critic_optim: optimizer of encoder and critics.
        actor_optim: optimizer of the actor.
    """

    nets: PixelNetsConfig
    batch_size: int
    n_step: int
    gamma: float
    tau: float
    std: ScheduledStdConfig
    std_clip: float
    critic_optim: OptimConfig
    actor_optim: OptimConfig

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be in (0, 1) (got {self.gamma})")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1] (got {self.tau})")
        if not self.std_clip > 0:
            raise ValueError(f"std_clip must be > 0 (got {self.std_clip})")

    @property
    def stack(self) -> int:
        """Frames that are seen together."""
        return self.nets.stack

    def build(self, *, env_spec: EnvSpec, seeds: Seeds, device: str) -> DrQv2:
        """A fresh agent, its weights drawn from stream `init/agent`. Raises: ValueError for discrete actions."""
        if env_spec.discrete:
            raise ValueError("DrQ-v2 needs continuous actions, and this task has choices; take dreamer_cpu")
        return DrQv2(self, env_spec, seeds, device)


class DrQv2:
    """Acts on stacked frames with scheduled noise; learns from n-step transitions of shifted frames."""

    def __init__(self, config: DrQv2Config, env_spec: EnvSpec, seeds: Seeds, device: str) -> None:
        self.config, self._seeds, self._device = config, seeds, device
        self.frames = FrameStack(config.nets.stack)
        self._action_dim = env_spec.action_dim
        with seeded_globally(seeds.torch("init/agent")):
            encoder = Encoder(config.nets, env_spec.image)
            self.actor = Actor(config.nets, encoder.width, env_spec.action_dim)
            self.critic = nn.ModuleDict(
                {"encoder": encoder, "q": Critic(config.nets, encoder.width, env_spec.action_dim)}
            )
            for net in (self.actor, self.critic):
                initialise(net)
        self.actor.to(device)
        self.critic.to(device)
        self.target = copy.deepcopy(self.critic["q"]).requires_grad_(False)
        self.critic_optim = config.critic_optim.build(dict(self.critic.named_parameters()))
        self.actor_optim = config.actor_optim.build(dict(self.actor.named_parameters()))
        self.counts = Counts(decisions=0, failed=0)

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`; mode `evaluate` takes the mean."""
        memory = self.frames.see(td, memory)
        action_EA = self.actor(self._encoded(memory["frames"]))
        check_finite("policy mean", action_EA)
        if mode == "explore":
            self.counts["decisions"] = step
            noise_EA = torch.randn(action_EA.shape, generator=self._seeds.torch("explore", step)).to(self._device)
            action_EA = (action_EA + self.std * noise_EA).clamp(-1, 1)
        return action_EA.to(td["pixels"].device), memory

    def policy(self, generator: torch.Generator) -> Policy:
        """How it acts now, with the noise of real decisions drawn from `generator`; it is shown `pixels` [B].

        The memory is that of `self.frames`.
        """

        def policy(td: TensorDict, memory: Memory) -> tuple[Tensor, Memory]:
            memory = self.frames.see(td, memory)
            mean_BA = self.actor(self._encoded(memory["frames"]))
            noise_BA = torch.randn(mean_BA.shape, generator=generator, device=generator.device).to(mean_BA.device)
            return (mean_BA + self.std * noise_BA).clamp(-1, 1), memory

        return policy

    def learn(self, replay: Replay, update: int) -> Metrics:
        """One update of encoder, critics and actor (algorithm 1 of the paper).

        A step that is not finite is skipped; `agent/skipped` says so.
        Raises: FloatingPointError after 10 updates in a row with such a step.
        """
        c, noise = self.config, self._noise(update)
        batch = replay.transitions(c.batch_size, n_step=c.n_step, stack=c.nets.stack, stream="drqv2", draw=update)
        batch = batch.to(self._device)
        frames_BCHW, next_BCHW = self._shifted(update, batch["pixels"], batch["next", "pixels"])

        # equations 1 and 2: both critics towards the n-step return, bootstrapped from the smaller target value
        with torch.no_grad():
            encoded_BR = self.critic["encoder"](next_BCHW)
            action_BA = disturbed(self.actor(encoded_BR), next(noise))
            reward_B, weight_B = n_step_returns(batch["next"], c.gamma)
            target_B1 = (reward_B + weight_B * self.target(encoded_BR, action_BA).amin(1))[:, None]
        encoded_BR = self.critic["encoder"](frames_BCHW)
        q_B2 = self.critic["q"](encoded_BR, batch["action"])
        critic_loss = functional.mse_loss(q_B2, target_B1.expand_as(q_B2)) * 2  # the sum over both critics
        norms = [self.critic_optim.step(critic_loss)]

        # equation 3: the actor climbs the smaller value; encoder and critics do not move for it
        encoded_BR = encoded_BR.detach()
        for parameter in self.critic.parameters():
            parameter.requires_grad_(False)
        actor_loss = -self.critic["q"](encoded_BR, disturbed(self.actor(encoded_BR), next(noise))).amin(1).mean()
        norms.append(self.actor_optim.step(actor_loss))
        for parameter in self.critic.parameters():
            parameter.requires_grad_(True)

        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic["q"].parameters(), strict=True):
                slow.lerp_(fast, c.tau)
        self.counts.failure(None in norms, f"number {update}")
        names = ("critic_loss", "actor_loss", "q", "target", "reward")
        values = (critic_loss, actor_loss, q_B2.mean(), target_B1.mean(), batch["next", "reward"][:, 0].mean())
        scalars = to_host(torch.stack([value.detach().float() for value in values]))
        metrics = {f"agent/{name}": value for name, value in zip(names, scalars, strict=True)}
        return metrics | {"agent/std": self.std, "agent/skipped": float(None in norms)}

    @property
    def std(self) -> float:
        """Standard deviation of the noise after the real decisions so far."""
        return self.config.std.at(self.counts["decisions"])

    def _encoded(self, frames_BCHW: Tensor) -> Tensor:
        return self.critic["encoder"](frames_BCHW.to(self._device))

    def _shifted(self, update: int, *stacks_BCHW: Tensor) -> Iterator[Tensor]:
        """Each stack of frames moved by draws of its own."""
        most, generator = self.config.nets.shift, self._seeds.torch("drqv2/shift", update)
        for frames_BCHW in stacks_BCHW:
            by_B2 = torch.randint(-most, most + 1, (len(frames_BCHW), 2), generator=generator)
            yield moved(frames_BCHW, by_B2)

    def _noise(self, update: int) -> Iterator[Tensor]:
        """Clipped noise [B, A], drawn anew each time."""
        clip, generator = self.config.std_clip, self._seeds.torch("drqv2/noise", update)
        while True:
            noise_BA = torch.randn(self.config.batch_size, self._action_dim, generator=generator).to(self._device)
            yield (self.std * noise_BA).clamp(-clip, clip)

    def _parts(self) -> dict[str, Stateful]:
        names = ("actor", "critic", "target", "actor_optim", "critic_optim", "counts")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments and the count of decisions, flat."""
        return state_of(self._parts())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`. Raises: ValueError if a name is missing, unknown or has another shape."""
        load(self._parts(), state)
