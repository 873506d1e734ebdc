"""TD3 (Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, algorithm 1) from pixels, without a world model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from agents.api import Memory, Metrics, Mode, Replay
from agents.parts import load, state_of
from agents.returns import n_step_returns
from worldmodel.optim import OptimConfig
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec, Subset


@dataclass(frozen=True, kw_only=True)
class TD3Config:
    stack: int  # newest frames that are seen together
    n_step: int
    batch_size: int
    subset: Subset
    units: int
    gamma: float
    tau: float
    noise: float  # deviation of exploration
    smoothing: float  # of the target policy's actions
    smoothing_clip: float
    policy_delay: int
    optim: OptimConfig

    def build(self, *, env_spec: EnvSpec, seeds: Seeds, device: str) -> TD3:
        if env_spec.discrete:
            raise ValueError("TD3 wants continuous actions (got an environment with choices)")
        return TD3(self, env_spec, seeds, device)


class Nets(nn.Module):
    """Frames u8 [B, 3S, H, W] -> feature -> actions and two values. Critics train the encoder (as in DrQ-v2)."""

    def __init__(self, config: TD3Config, env_spec: EnvSpec) -> None:
        super().__init__()
        units, action, side = config.units, env_spec.action_dim, env_spec.image // 8
        widths = (3 * config.stack, 32, 32, 32)
        convs = [layer for i in range(3) for layer in (nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1), nn.ReLU())]
        trunk = (nn.Flatten(), nn.Linear(32 * side**2, units), nn.LayerNorm(units), nn.Tanh())
        self.encoder = nn.Sequential(*convs, *trunk)
        self.actor = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, action), nn.Tanh())
        q = [nn.Sequential(nn.Linear(units + action, units), nn.ReLU(), nn.Linear(units, 1)) for _ in range(2)]
        self.critics = nn.ModuleList(q)

    def see(self, frames_BCHW: Tensor) -> Tensor:
        return self.encoder(frames_BCHW.float() / 255 - 0.5)

    def q(self, feature_BU: Tensor, action_BA: Tensor) -> Tensor:
        return torch.cat([critic(torch.cat([feature_BU, action_BA], 1)) for critic in self.critics], 1)  # [B, 2]


class TD3:
    def __init__(self, config: TD3Config, env_spec: EnvSpec, seeds: Seeds, device: str) -> None:
        self.config, self.seeds, self.device = config, seeds, device
        with seeded_globally(seeds.torch("init/agent")):
            self.nets = Nets(config, env_spec).to(device)
        self.target = copy.deepcopy(self.nets).requires_grad_(False)
        actor, others = ({n: p for n, p in self.nets.named_parameters() if n.startswith("actor") == a} for a in (1, 0))
        self.parts = {"nets": self.nets, "target": self.target}
        self.parts |= {"actor_optim": config.optim.build(actor), "critic_optim": config.optim.build(others)}

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        frames_ECHW = td["pixels"].repeat(1, self.config.stack, 1, 1)  # an episode begins: its first frame, repeated
        if memory is not None:
            moved_ECHW = torch.cat([memory["frames"][:, 3:], td["pixels"]], 1)
            frames_ECHW = torch.where(td["is_init"][..., None, None], frames_ECHW, moved_ECHW)
        action_EA = self.nets.actor(self.nets.see(frames_ECHW.to(self.device))).cpu()
        if mode == "explore":
            noise_EA = torch.randn(action_EA.shape, generator=self.seeds.torch("td3/explore", step))
            action_EA = (action_EA + self.config.noise * noise_EA).clamp(-1, 1)
        return action_EA, TensorDict({"frames": frames_ECHW}, batch_size=td.batch_size)

    def learn(self, replay: Replay, update: int) -> Metrics:
        c = self.config
        drawn = {"n_step": c.n_step, "stack": c.stack, "subset": c.subset, "stream": "td3", "draw": update}
        batch = replay.transitions(c.batch_size, **drawn).to(self.device)
        feature_BU = self.nets.see(batch["pixels"])
        q_B2 = self.nets.q(feature_BU, batch["action"])
        critic_loss = functional.mse_loss(q_B2, self._targets(batch["next"], update)[:, None].expand_as(q_B2))
        self.parts["critic_optim"].step(critic_loss)
        if update % c.policy_delay == 0:  # section 5.2: the policy moves less often than the values
            feature_BU = feature_BU.detach()
            self.parts["actor_optim"].step(-self.nets.q(feature_BU, self.nets.actor(feature_BU))[:, 0].mean())
            self.nets.zero_grad()  # of the critics, through which that gradient came
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.nets.parameters(), strict=True):
                    slow.lerp_(fast, c.tau)
        return {"agent/critic_loss": critic_loss.detach(), "agent/q": q_B2.detach().mean()}

    @torch.no_grad()
    def _targets(self, after: TensorDict, update: int) -> Tensor:
        """n-step returns with the smaller of two target values behind them [B] (section 4.2, equation 10)."""
        c, (reward_B, weight_B) = self.config, n_step_returns(after, self.config.gamma)
        feature_BU = self.target.see(after["pixels"])
        action_BA = self.target.actor(feature_BU)  # section 5.3: similar actions have similar values
        noise_BA = torch.randn(action_BA.shape, generator=self.seeds.torch("td3/smooth", update)).to(self.device)
        noise_BA = (c.smoothing * noise_BA).clamp(-c.smoothing_clip, c.smoothing_clip)
        value_B = self.target.q(feature_BU, (action_BA + noise_BA).clamp(-1, 1)).amin(1)
        return reward_B + weight_B * value_B

    def state_dict(self) -> dict[str, Tensor]:
        return state_of(self.parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        load(self.parts, state)
