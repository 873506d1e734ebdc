"""A model-free agent that learns: deterministic actor and critic on pixels (DDPG), from pairs of frames in replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from agents.api import Memory, Metrics, Mode, Replay
from worldmodel.optim import OptimConfig, Optimizer
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec

SIDE = 8
"""Frames are pooled to this side."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Attributes:
    noise: deviation of the Gaussian noise of actions in training.
    tau: rate at which the target critic follows.
    """

    batch_size: int
    units: int
    gamma: float
    noise: float
    tau: float
    optim: OptimConfig

    def build(self, *, env_spec: EnvSpec, seeds: Seeds) -> Critic:
        return Critic(self, env_spec.action_dim, seeds)


def net(inputs: int, units: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units), nn.SiLU(), nn.Linear(units, outputs))


class Critic:
    """Without memory: it sees the newest frame only."""

    def __init__(self, config: CriticConfig, action_dim: int, seeds: Seeds) -> None:
        self.config, self.seeds, pixels = config, seeds, 3 * SIDE**2
        with seeded_globally(seeds.torch("init/agent")):
            actor, q = net(pixels, config.units, action_dim), net(pixels + action_dim, config.units, 1)
            target = net(pixels + action_dim, config.units, 1)
        target.load_state_dict(q.state_dict())
        self.nets = nn.ModuleDict({"actor": actor, "q": q, "target": target})
        self.optims = {
            name: Optimizer(dict(self.nets[name].named_parameters()), config.optim) for name in ("actor", "q")
        }

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        with torch.no_grad():
            action_EA = self._action(td["pixels"])
        if mode == "explore":
            noise_EA = torch.randn(action_EA.shape, generator=self.seeds.torch("explore", step))
            action_EA = (action_EA + self.config.noise * noise_EA).clamp(-1, 1)
        return action_EA, memory

    def _action(self, pixels_BCHW: Tensor) -> Tensor:
        return self.nets["actor"](pooled(pixels_BCHW)).tanh()

    def learn(self, replay: Replay, update: int) -> Metrics:
        config = self.config
        clip = replay.clips(config.batch_size, 2, stream="learn", draw=update)
        before_BP, after_BP = pooled(clip["pixels"][:, 0]), pooled(clip["pixels"][:, 1])
        with torch.no_grad():
            next_B1 = self.nets["target"](torch.cat([after_BP, self._action(clip["pixels"][:, 1])], 1))
            target_B1 = clip["reward"][:, 1:] + config.gamma * clip["continue"][:, 1:] * next_B1
        q_loss = functional.mse_loss(self.nets["q"](torch.cat([before_BP, clip["action"][:, 1]], 1)), target_B1)
        self.optims["q"].step(q_loss)
        gain_B1 = self.nets["q"](torch.cat([before_BP, self._action(clip["pixels"][:, 0])], 1))
        self.optims["actor"].step(-gain_B1.mean())
        self.nets["q"].zero_grad()  # the actor's loss left gradients there
        with torch.no_grad():
            for slow, fast in zip(self.nets["target"].parameters(), self.nets["q"].parameters(), strict=True):
                slow.lerp_(fast, config.tau)
        return {"agent/q_loss": q_loss.item(), "agent/q": gain_B1.mean().item()}

    def state_dict(self) -> dict[str, Tensor]:
        moments = {
            f"{name}_optim.{key}": t for name, held in self.optims.items() for key, t in held.state_dict().items()
        }
        return {**self.nets.state_dict(), **moments}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.nets.load_state_dict({name: state[name] for name in self.nets.state_dict()})
        for name, held in self.optims.items():
            held.load_state_dict({key: state[f"{name}_optim.{key}"] for key in held.state_dict()})


def pooled(pixels_BCHW: Tensor) -> Tensor:
    """u8 [B, 3, H, W] -> f32 [B, 3 * SIDE^2] in [-0.5, 0.5]."""
    return functional.adaptive_avg_pool2d(pixels_BCHW.float() / 255 - 0.5, SIDE).flatten(1)
