"""Real against imagined: the model replays an episode's own actions from its own frames, and both are compared.

In a simulator this needs no extra data: any evaluation episode is its own ground truth, unseen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.replay.cut import windows
from mbrl.replay.episode import Episode
from worldmodel.api import WorldModel
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.seeds import Seeds


@dataclass(frozen=True)
class OpenLoop:
    """Windows of an episode laid end to end: within each, only the first frames are real to the model.

    Attributes:
        truth: u8 [W * H, 3, S, S], W windows of H imagined frames.
        imagined: u8, the same shape.
        reward: f32 [W, H], true.
        imagined_reward: f32 [W, H].
    """

    truth: Tensor
    imagined: Tensor
    reward: Tensor
    imagined_reward: Tensor

    def metrics(self) -> dict[str, float]:
        """Pixel error and reward error after 1 and after H imagined frames."""
        windows, horizon = self.reward.shape
        shape = (windows, horizon, *self.truth.shape[1:])
        error = (self.truth.float() - self.imagined.float()).abs().reshape(shape).flatten(2).mean(2) / 255
        off = (self.reward - self.imagined_reward).abs()
        return {
            "openloop/l1_first": float(error[:, 0].mean()),
            "openloop/l1_last": float(error[:, -1].mean()),
            "openloop/reward_error_first": float(off[:, 0].mean()),
            "openloop/reward_error_last": float(off[:, -1].mean()),
        }


@torch.no_grad()
def open_loop(model: WorldModel, episode: Episode, *, horizon: int) -> OpenLoop:
    """Imagines `horizon` frames with the true actions from several real moments of one episode.

    Frames are the most likely ones, not sampled: a film of them jumps less.
    Raises: ValueError if the episode is too short for one window.
    """
    real, dream = windows(episode, model.spec, horizon=horizon, stride=horizon), Dream(model, seeds=Seeds(0))
    start = dream.encode(real.clip)
    path = dream.rollout(
        fixed_actions(real.action), start, 0, horizon, stream="measure/frames", draw=0, keys=("pixels",), sample=False
    ).path["next"]
    imagined_reward = path["reward"][..., 0].cpu()
    return OpenLoop(real.truth.flatten(0, 1), path["pixels"].flatten(0, 1).cpu(), real.reward, imagined_reward)
