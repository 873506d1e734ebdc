"""A planner: the cross-entropy method in a dream (PlaNet, Hafner et al. 2019, arXiv:1811.04551, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Dream, Memory, Metrics, Mode, Replay
from agents.memory import LatentFilter
from worldmodel.dream.imagine import fixed_actions
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class CEMConfig:
    horizon: int  # H, decisions that are planned
    candidates: int  # J, plans tried in an iteration
    elites: int  # K, the best of them
    iterations: int  # I
    std: float  # of the first iteration's plans
    gamma: float

    def build(self, *, env_spec: EnvSpec, dream: Dream, seeds: Seeds, device: str) -> CEM:
        if env_spec.discrete or not 1 < self.elites <= self.candidates:
            raise ValueError(f"CEM wants continuous actions and 2 <= elites <= candidates (got {self}, {env_spec})")
        return CEM(self, dream, seeds, device)


class CEM:
    """Learns nothing: the world model is all it needs."""

    def __init__(self, config: CEMConfig, dream: Dream, seeds: Seeds, device: str) -> None:
        self.config, self.dream, self.seeds, self.device = config, dream, seeds, device
        self.filter = LatentFilter(dream)

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        before, memory = memory, self.filter.see(td, memory)
        plan_EHA = torch.zeros(len(td), self.config.horizon, memory["action"].shape[-1])
        if before is not None:  # warm start: the last plan, one decision on; nothing where an episode begins
            plan_EHA[:, :-1] = torch.where(td["is_init"][..., None], 0.0, before["plan"][:, 1:])
        for rows, state in self.filter.starts(memory, device=self.device):
            plan_EHA[rows] = self.refined(plan_EHA[rows].to(self.device), state, step).to(plan_EHA.device)
        return plan_EHA[:, 0], memory.update({"action": plan_EHA[:, 0], "plan": plan_EHA})

    def refined(self, mean_BHA: Tensor, start: TensorDict, step: int) -> Tensor:
        """The mean of the last iteration's elites, f32 [B, H, A]."""
        config, rows = self.config, torch.arange(len(start), device=self.device)[:, None]
        std_BHA = torch.full_like(mean_BHA, config.std)
        forks = self.dream.fork(start, config.candidates)  # one reading of what was seen serves all plans
        for iteration in range(config.iterations):
            generator = self.seeds.torch("cem/plans", step, iteration, device=self.device)
            shape = (len(start), config.candidates, *mean_BHA.shape[1:])
            noise_BJHA = torch.randn(shape, generator=generator, device=self.device)
            plans_BJHA = (mean_BHA[:, None] + std_BHA[:, None] * noise_BJHA).clamp(-1, 1)
            return_BJ = self.returns(plans_BJHA.flatten(0, 1), forks, step * config.iterations + iteration)
            best_BK = return_BJ.view(shape[:2]).topk(config.elites).indices
            std_BHA, mean_BHA = torch.std_mean(plans_BJHA[rows, best_BK], 1, correction=0)
        return mean_BHA

    def returns(self, plans_NHA: Tensor, state: TensorDict, draw: int) -> Tensor:
        """Sum over h of gamma^h r_h, as far as the episode goes on, f32 [N]."""
        horizon = self.config.horizon
        path = self.dream.rollout(fixed_actions(plans_NHA), state, 0, horizon, stream="cem/frames", draw=draw).path
        reward_NH, continue_NH = path["next", "reward"][..., 0], path["next", "continue"][..., 0]
        weight_NH = torch.ones_like(reward_NH)
        weight_NH[:, 1:] = (self.config.gamma * continue_NH[:, :-1]).cumprod(1)
        return (weight_NH * reward_NH).sum(1)

    def learn(self, replay: Replay, update: int) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass
