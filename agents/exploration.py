"""What sets a real decision of training apart from a greedy one: noise, calm episodes without it, and wandering off."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Memory
from worldmodel.seeds import Seeds


class Exploration:
    """Standard normal noise for real decisions, which episodes go without, and where the policy is left for good.

    Args:
        action_dim: A.
        correlation: of the noise of successive decisions, in [0, 1).
        calm: share of the episodes that are played greedily, in [0, 1): where a greedy policy gets stuck is else never
            seen in training, so no dream begins there and nothing is learned about it.
        wander: chance at each decision that noise alone acts until the episode ends, in [0, 1): first return, then
            explore (Ecoffet et al., 2021). A policy brings the hand to the object, and what else can be done there is
            found out by one that does not pull it back.
        seeds: streams `explore`, `calm` and `wander`, counted by decisions.
    """

    def __init__(self, *, action_dim: int, correlation: float, calm: float, wander: float, seeds: Seeds) -> None:
        self._action_dim, self._correlation, self._seeds = action_dim, correlation, seeds
        self._calm, self._wander = calm, wander

    def draw(self, td: TensorDict, before: Memory, step: int) -> dict[str, Tensor]:
        """For the real step `td` [E]: `noise` f32 [E, A], `calm` and `astray` bool [E, 1]; `before` has the last ones.

        Noise is correlated with the last decision's except where an episode begins; there it is settled who is calm.
        Who has gone astray stays so until an episode begins.
        """
        fresh_EA = torch.randn(len(td), self._action_dim, generator=self._seeds.torch("explore", step))
        chances = {"calm": self._calm, "astray": self._wander}
        drawn = {"noise": fresh_EA} | {
            name: torch.rand(len(td), 1, generator=self._seeds.torch(stream, step)) < chances[name]
            for name, stream in (("calm", "calm"), ("astray", "wander"))
        }
        drawn = {name: value.to(td["is_init"].device) for name, value in drawn.items()}
        if before is None:
            return drawn
        kept = self._correlation
        mixed_EA = kept * before["noise"] + (1 - kept**2) ** 0.5 * drawn["noise"]  # keeps the variance at 1
        init_E1 = td["is_init"].reshape(-1, 1)
        return {
            "noise": torch.where(init_E1, drawn["noise"], mixed_EA),
            "calm": torch.where(init_E1, drawn["calm"], before["calm"]),
            "astray": drawn["astray"] | (before["astray"] & ~init_E1),
        }
