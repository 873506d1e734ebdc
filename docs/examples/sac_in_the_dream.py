"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) by TorchRL's `SACLoss`, on imagined transitions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from agents.api import Dream, Memory, Metrics, Mode, Replay
from agents.memory import LatentFilter
from agents.parts import load, state_of
from worldmodel.optim import OptimConfig
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class DreamSACConfig:
    batch_size: int  # dreams per update
    horizon: int
    units: int
    gamma: float
    tau: float
    optim: OptimConfig

    def build(self, *, env_spec: EnvSpec, dream: Dream, seeds: Seeds, device: str) -> DreamSAC:
        if env_spec.discrete:
            raise ValueError("this SAC wants continuous actions (got an environment with choices)")
        return DreamSAC(self, dream, seeds, device)


class DreamSAC:
    def __init__(self, config: DreamSACConfig, dream: Dream, seeds: Seeds, device: str) -> None:
        self.config, self.dream, self.seeds, self.device = config, dream, seeds, device
        self.filter = LatentFilter(dream)
        latent, action = dream.spec.latent_dim, dream.spec.action_dim
        size = {"num_cells": [config.units] * 2, "activation_class": nn.SiLU}
        with seeded_globally(seeds.torch("init/agent")):
            net = nn.Sequential(MLP(latent, 2 * action, **size), NormalParamExtractor())
            actor = ProbabilisticActor(
                TensorDictModule(net, ["latent"], ["loc", "scale"]),
                in_keys=["loc", "scale"],
                spec=Bounded(-1.0, 1.0, (action,)),
                distribution_class=TanhNormal,
            ).to(device)
            critic = ValueOperator(MLP(latent + action, 1, **size), in_keys=["latent", "action"]).to(device)
            # the loss registers actor and critics; of the world model it sees latents only
            self.loss = SACLoss(actor, critic, num_qvalue_nets=2)
        self.actor = actor  # shares its parameters with the loss
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        self.targets = SoftUpdate(self.loss, tau=config.tau)
        self.optim = config.optim.build(dict(self.loss.named_parameters()))
        self.parts = {"loss": self.loss, "optim": self.optim}

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        memory = self.filter.see(td, memory)
        seen = TensorDict({"latent": self.filter.latent(memory, device=self.device)}, batch_size=td.batch_size)
        kind = InteractionType.RANDOM if mode == "explore" else InteractionType.DETERMINISTIC
        with set_interaction_type(kind), seeded_globally(self.seeds.torch("sac/act", step)):
            action_EA = self.actor(seen)["action"].cpu()
        return action_EA, memory.update({"action": action_EA})

    def learn(self, replay: Replay, update: int) -> Metrics:
        with set_interaction_type(InteractionType.RANDOM), seeded_globally(self.seeds.torch("sac", update)):
            losses = self.loss(self._imagined(replay, update))
        self.optim.step(sum(losses[name] for name in ("loss_actor", "loss_qvalue", "loss_alpha")))
        self.targets.step()
        return {f"agent/{name}": losses[name].detach() for name in ("loss_actor", "loss_qvalue", "alpha", "entropy")}

    @torch.no_grad()
    def _imagined(self, replay: Replay, update: int) -> TensorDict:
        """Imagined transitions [N] that come before their dream's end.

        `SACLoss` knows ends as yes or no: one is drawn where the model says `continue`, so that its target
        r + gamma (1 - terminated) V is on average the r + gamma continue V that is meant.
        """
        config, spec = self.config, self.dream.spec
        codes = spec.codes is not None  # those that replay remembers, instead of pixels
        clip = replay.clips(config.batch_size, spec.burn_in, stream="sac", draw=update, codes=codes).to(self.device)
        start = self.dream.encode(clip)
        path = self.dream.rollout(self._policy, start, None, config.horizon, stream="sac/frames", draw=update).path
        ends_BH1 = torch.bernoulli(1 - path["next", "continue"]).bool()
        path["next"].update({"terminated": ends_BH1, "done": ends_BH1})
        begun_over_B = clip["continue"][:, -1] == 0 if spec.burn_in else torch.zeros_like(ends_BH1[:, 0, 0])
        over_BH = torch.cat([begun_over_B[:, None], ends_BH1[:, :-1, 0]], 1).cumsum(1) > 0
        return path[~over_BH]

    def _policy(self, td: TensorDict, memory: None) -> tuple[Tensor, None]:
        return self.actor(td)["action"], memory

    def state_dict(self) -> dict[str, Tensor]:
        return state_of(self.parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        load(self.parts, state)
