"""Proprioception as an input of the world model: what the transformer is told, and the change that it predicts.

Only the change is predicted. A model that is fed its own absolute predictions drifts away from what is possible.
"""

# B clips, F frames, Q proprioception, A action

from __future__ import annotations

import torch
from torch import Tensor

CHANGE_GAIN = 10.0
"""Changes in one decision are small; multiplied by this they are about 1 in size (proprioception itself is)."""
NOISE = 0.02
"""Standard deviation of what is added in training: in a dream the model is told its own predictions, which err."""


def before(proprio_BFQ: Tensor) -> Tensor:
    """What was known one frame earlier, [B, F, Q]; of a clip's first frame the best guess is what is known in it."""
    return torch.cat([proprio_BFQ[:, :1], proprio_BFQ[:, :-1]], 1)


def told(action_BFA: Tensor, proprio_BFQ: Tensor) -> Tensor:
    """What the transformer is told where frame j opens, [B, F, A+Q]: the action into it, and what was known before."""
    return torch.cat([action_BFA, before(proprio_BFQ)], -1)


def disturbed(proprio_BFQ: Tensor, generator: torch.Generator) -> Tensor:
    """What the model is told in training."""
    noise_BFQ = torch.randn(proprio_BFQ.shape, generator=generator, device=proprio_BFQ.device)
    return proprio_BFQ + NOISE * noise_BFQ


def change(proprio_BFQ: Tensor, told_BFQ: Tensor) -> Tensor:
    """The head's target: true change from what the model was told, so that it learns to correct that too."""
    return CHANGE_GAIN * (proprio_BFQ - before(told_BFQ))
