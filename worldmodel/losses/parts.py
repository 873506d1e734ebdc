"""Pure losses of one training clip, and the auxiliary heads that make the codes carry what matters.

Knows tensors only: no tokenizer, no transformer, no replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

# B clips, F future frames, K codes a frame, V width of a code vector, A action


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and choices of the world model's losses.

    Attributes:
        commitment_coef: weight of both commitment losses (published: 1).
        foreground_weight: 0 is the published L1; w > 0 multiplies a pixel's error by 1 + w * min(1, |x - mean image| /
            0.25), normalised to mean 1: what moves is a few pixels among thousands.
        lpips: weight of the perceptual distance of both kinds of frames (published: 1); it needs VGG weights, which
            `worldmodel.evaluation.lpips` finds.
        aux_coef: weight of the loss that predicts reward and mean action from the codes alone (published: 0).
        quantize_start: tokenizer updates without quantisation at the very start (published: 0).
        future_frames: future frames of a clip that the tokenizer's loss sees, drawn once per batch; the first and the
            last are always among them where an auxiliary loss spans them.
        token_noise: share of the levels of the codes that the dynamics read in training that are moved to a neighbour
            (published: 0). From few episodes a transformer learns them by heart, and not what actions do.
        context_swap_prob: probability that a training clip is read behind another clip's context (published: 0), for
            the same reason: a context tells the episode.
        reward: weight of the reward loss beside the cross-entropy.
        reward_target: which reward frame j predicts: `arriving`, the one received on arriving in it; `published`, the
            next one (QUIRK 14 of the published code, for going on with checkpoints that were trained so).
    """

    commitment_coef: float
    foreground_weight: float
    lpips: float
    aux_coef: float
    quantize_start: int
    future_frames: int
    token_noise: float
    context_swap_prob: float
    reward: float
    reward_target: Literal["arriving", "published"]

    def __post_init__(self) -> None:
        for name in ("commitment_coef", "foreground_weight", "lpips", "aux_coef", "quantize_start", "reward"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")
        for name in ("token_noise", "context_swap_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1) (got {getattr(self, name)})")
        if self.reward_target not in ("arriving", "published"):
            raise ValueError(f"reward_target must be arriving or published (got {self.reward_target})")
        if self.future_frames < 1:
            raise ValueError(f"future_frames must be >= 1 (got {self.future_frames})")
        if self.aux_coef > 0 and self.future_frames < 2:
            raise ValueError(
                f"future_frames must be >= 2 with aux_coef={self.aux_coef}, which spans a first and a last frame "
                f"(got {self.future_frames}); raise it or set aux_coef to 0"
            )


def pixel_l1(recon: Tensor, target: Tensor, weight: float, mean: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean absolute error of frames [N, 3, H, W] in [0, 1]; `weight` as `LossConfig.foreground_weight`. Scalar.

    Args:
        mean: mean over the processes that share the batch; None where there is one.
    """
    error = (recon.float() - target).abs()
    if weight == 0:
        return error.mean()
    usual = target.mean(0, keepdim=True)
    unusual = (target - (usual if mean is None else mean(usual))).abs().amax(1, keepdim=True)  # [N, 1, H, W]
    weights = 1 + weight * (unusual / 0.25).clamp(max=1)
    size = weights.mean()
    return (error * (weights / (size if mean is None else mean(size)))).mean()


def reward_targets(clip_reward_BF: Tensor, mask_BF: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """What each frame's reward head is to predict, and where that is known: f32 and bool [B, F].

    Args:
        mask_BF: where the clip's rewards are known (`reward_mask`).

    >>> reward = torch.tensor([[0.0, 1.0, 2.0]])
    >>> reward_targets(reward, torch.tensor([[False, True, True]]), "arriving")[1].tolist()
    [[False, True, True]]
    >>> reward, known = reward_targets(reward, torch.ones(1, 3).bool(), "published")
    >>> reward[known].tolist()
    [1.0, 2.0]
    """
    if target == "arriving":
        return clip_reward_BF, mask_BF
    known_BF = mask_BF.roll(-1, 1)
    known_BF[:, -1] = False  # the reward of leaving the last frame is not in the clip
    return clip_reward_BF.roll(-1, 1), known_BF


def choose_frames(frames: int, wanted: int, *, keep_ends: bool, generator: torch.Generator) -> Tensor:
    """Indices [min(frames, wanted)] of future frames, sorted; with `keep_ends` the first and last are among them."""
    if wanted >= frames:
        return torch.arange(frames)
    if keep_ends:
        inner = torch.randperm(frames - 2, generator=generator)[: wanted - 2] + 1
        return torch.cat([torch.tensor([0]), inner.sort().values, torch.tensor([frames - 1])])
    return torch.randperm(frames, generator=generator)[:wanted].sort().values


class AuxiliaryHeads(nn.Module):
    """Reward of a frame, and the mean action between two frames, read off the codes (in training only).

    A pixel loss alone keeps the arm and drops the fingers; what decides reward and what the actions moved must be in
    the codes for these two to be predictable. No privileged data.
    """

    def __init__(self, *, codes: int, vector_dim: int, context_dim: int, action_dim: int, hidden: int = 128) -> None:
        super().__init__()
        frame = codes * vector_dim + context_dim
        self.reward = nn.Sequential(nn.Linear(frame, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.action = nn.Sequential(nn.Linear(2 * frame, hidden), nn.SiLU(), nn.Linear(hidden, action_dim))

    def forward(
        self,
        vectors_BFKV: Tensor,
        context_BC: Tensor,
        action_BFA: Tensor,
        reward_BF: Tensor,
        known_BF: Tensor,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss.

        Args:
            vectors_BFKV: straight-through code vectors of all chosen frames, first and last of the span included.
            context_BC: pooled context vectors.
            action_BFA: the actions between the first and the last chosen frame, F of them.
            reward_BF: symlog reward on arriving in the chosen frames.
            known_BF: bool, where there is one.
            scale: of the mean over what is known, where the clip is a piece of a larger batch.
        """
        frames = torch.cat([vectors_BFKV.flatten(2), context_BC[:, None].expand(-1, vectors_BFKV.shape[1], -1)], -1)
        reward_error = (self.reward(frames).squeeze(-1) - reward_BF) ** 2
        reward_loss = (reward_error * known_BF).sum() / known_BF.sum().clamp(min=1)
        if scale is not None:
            reward_loss = reward_loss * scale
        action = self.action(torch.cat([frames[:, 0], frames[:, -1]], -1))
        return reward_loss + 2 * functional.mse_loss(action, action_BFA.mean(1))
