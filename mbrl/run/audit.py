"""Real against imagined: the model replays an episode's own actions from its own frames, and both are compared.

In a simulator this needs no extra data: any evaluation episode is its own ground truth, unseen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.api import WorldModel
from worldmodel.spec import ModelSpec


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


def longest_horizon(spec: ModelSpec, frames: int) -> int:
    """Frames that can be imagined and compared in an episode of `frames` frames; 0 if it is too short for any."""
    return max(0, min(spec.max_frames - spec.observed, frames - real_frames(spec)))


def real_frames(spec: ModelSpec) -> int:
    """Real frames at the head of a window."""
    return spec.observed + (spec.context if spec.anchor == "segment" else 0)


@torch.no_grad()
def open_loop(model: WorldModel, frames: Tensor, actions: Tensor, rewards: Tensor, *, horizon: int) -> OpenLoop:
    """Imagines `horizon` frames with the true actions from several real moments of one episode.

    Args:
        frames: u8 [L + 1, 3, S, S]; actions: f32 [L, A]; rewards: f32 [L], rewards[k] on arriving in frame k + 1.
        horizon: imagined frames per window.
    Raises: ValueError if the episode is too short for one window.
    """
    spec = model.spec
    seen = real_frames(spec)
    starts = range(0, len(frames) - seen - horizon + 1, horizon)
    if not starts:
        raise ValueError(
            f"an episode of {len(frames)} frames has no window of {seen} real and {horizon} imagined frames"
        )
    first = torch.zeros_like(actions[:1])
    into = torch.cat([first, actions])  # into[k]: the action that led into frame k
    head = torch.stack([frames[k : k + seen] for k in starts])
    if spec.anchor == "segment":
        context, pixels = head[:, : spec.context], head[:, spec.context :]
    else:
        context, pixels = frames[:1].expand(spec.context, -1, -1, -1).expand(len(starts), -1, -1, -1, -1), head
    lead = torch.stack([into[k + seen - spec.observed : k + seen] for k in starts])
    clip = TensorDict({"context": context, "pixels": pixels, "action": lead}, batch_size=[len(starts)])
    state = model.encode(clip)
    imagined, imagined_reward = [], []
    for h in range(horizon):
        action_WA = torch.stack([into[k + seen + h] for k in starts])
        state = model.imagine(state, action_WA, None)
        imagined.append(model.decode(state))
        imagined_reward.append(state["reward"][:, 0])
    truth = torch.cat([frames[k + seen : k + seen + horizon] for k in starts])
    reward = torch.stack([rewards[k + seen - 1 : k + seen - 1 + horizon] for k in starts])
    return OpenLoop(truth, torch.stack(imagined, 1).flatten(0, 1).cpu(), reward, torch.stack(imagined_reward, 1).cpu())
