"""Proprioception in the world model: features that condition the transformer, and the acceleration that it predicts.

The model is given where the robot is and how fast it moves, and predicts what a decision adds to that movement. A hand
has momentum: given its position alone, a model must find differences by attention, and falls behind in dreams.
"""

# B clips, F frames, Q proprioception, A action

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.microbatch import Source, normal

CHANGE_GAIN = 10.0
"""Changes in one decision are small; multiplied by this they are about 1 in size (proprioception itself is)."""
NOISES = (0.02, 0.2)
"""Standard deviations of what is added in training to the values and to their change: about what the
model errs by in one frame, since in a dream it reads its own predictions."""
WIDTH = 2
"""Features of each number of proprioception: the value and its last change."""


def features(proprio_BFQ: Tensor) -> Tensor:
    """Features known where each frame opens, [B, F, 2Q]: the values one frame earlier and their last change.

    Of a clip's first frame the best guess is what is known in it; a change is 0 until two frames were seen.
    """
    before_BFQ = _earlier(proprio_BFQ)
    return torch.cat([before_BFQ, CHANGE_GAIN * (before_BFQ - _earlier(before_BFQ))], -1)


def next_features(proprio_BFQ: Tensor) -> Tensor:
    """The same where the frame behind the last one opens, [B, 2Q]."""
    return features(torch.cat([proprio_BFQ, proprio_BFQ[:, -1:]], 1))[:, -1]


def add_noise(features: Tensor, source: Source, *, width: int = WIDTH) -> Tensor:
    """What the model is conditioned on in training: values [..., Q] (`width` 1), or values and changes [..., 2Q]."""
    noise = normal(features.shape, source, device=features.device)
    parts = zip(features.chunk(width, -1), noise.chunk(width, -1), NOISES, strict=False)
    return torch.cat([part + scale * of_part for part, of_part, scale in parts], -1)


def acceleration_target(proprio_BFQ: Tensor, features_BFX: Tensor) -> Tensor:
    """The head's target [B, F, Q]: the change into each frame beyond the last change, which the model reads."""
    change_BFQ = CHANGE_GAIN * (proprio_BFQ - _earlier(proprio_BFQ))
    return change_BFQ - features_BFX.chunk(WIDTH, -1)[1]


def integrate(proprio_BQ: Tensor, features_BX: Tensor, acceleration_BQ: Tensor) -> Tensor:
    """Where the robot is after a decision, [B, Q], by the head's output."""
    return proprio_BQ + (features_BX.chunk(WIDTH, -1)[1] + acceleration_BQ) / CHANGE_GAIN


def _earlier(value_BFQ: Tensor) -> Tensor:
    return torch.cat([value_BFQ[:, :1], value_BFQ[:, :-1]], 1)
