"""What sets a real decision of training apart from a greedy one: correlated noise, and greedy episodes without it."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Memory
from worldmodel.seeds import Seeds


class Exploration:
    """Standard normal noise for real decisions, and which episodes go without.

    Args:
        action_dim: A.
        correlation: of the noise of successive decisions, in [0, 1).
        greedy_episodes: share of the episodes that are played greedily, in [0, 1): where a greedy policy gets stuck is
            else never seen in training, so no dream begins there and nothing is learned about it.
        seeds: streams `explore` and `calm`, counted by decisions.
    """

    def __init__(self, *, action_dim: int, correlation: float, greedy_episodes: float, seeds: Seeds) -> None:
        self._action_dim, self._correlation, self._greedy_episodes, self._seeds = (
            action_dim,
            correlation,
            greedy_episodes,
            seeds,
        )

    def draw(self, td: TensorDict, before: Memory, step: int) -> dict[str, Tensor]:
        """For the real step `td` [E]: `noise` f32 [E, A] and `greedy` bool [E, 1]; `before` has the last decision's.

        Noise is correlated with the last decision's except where an episode begins; there it is settled which are
        greedy.
        """
        fresh_EA = torch.randn(len(td), self._action_dim, generator=self._seeds.torch("explore", step))
        greedy_E1 = torch.rand(len(td), 1, generator=self._seeds.torch("calm", step)) < self._greedy_episodes
        drawn = {"noise": fresh_EA.to(td["is_init"].device), "greedy": greedy_E1.to(td["is_init"].device)}
        if before is None:
            return drawn
        kept = self._correlation
        mixed_EA = kept * before["noise"] + (1 - kept**2) ** 0.5 * drawn["noise"]  # keeps the variance at 1
        init_E1 = td["is_init"].reshape(-1, 1)
        return {
            "noise": torch.where(init_E1, drawn["noise"], mixed_EA),
            "greedy": torch.where(init_E1, drawn["greedy"], before["greedy"]),
        }
