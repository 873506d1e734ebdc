"""How an id is drawn from logits: temperature, top-k, from numbers that the caller has drawn, without a host sync."""

# B rows, V ids

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Rule for drawing the codes of an imagined frame (spec section 9: temperature 1, top_k 100).

    Attributes:
        temperature: logits are divided by it; 0 takes the largest.
        top_k: only ids with a score at least the k-th largest can be drawn (ties survive); 0 keeps all.
        codes_only: only codes of future frames can be drawn; if false, any id of the vocabulary (published).
    """

    temperature: float
    top_k: int
    codes_only: bool

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (got {self.temperature})")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (got {self.top_k})")


def probabilities(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """The distribution that is drawn from, [B, V]; its temperature must not be 0."""
    scores_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < scores_BV.shape[1]:
        kth_B1 = scores_BV.topk(sampling.top_k, sorted=False).values.amin(1, keepdim=True)
        scores_BV = scores_BV.masked_fill(scores_BV < kth_B1, -torch.inf)
    return scores_BV.softmax(1)


def draw(logits_BV: Tensor, sampling: SamplingConfig, uniform_B: Tensor | None) -> Tensor:
    """One index per row, int64 [B]; the argmax if there are no numbers or the temperature is 0.

    One uniform number in [0, 1) per row looks up the cumulative distribution: an order of magnitude cheaper on a CPU
    than torch.multinomial, which draws one number per id. Indices with probability 0 are never drawn.
    """
    if uniform_B is None or sampling.temperature == 0:
        return logits_BV.argmax(1)
    cumulative_BV, uniform_B1 = probabilities(logits_BV, sampling).cumsum(1), uniform_B.unsqueeze(1)
    # strictly below the total, so that rounding cannot reach past the last id with a probability
    threshold_B1 = torch.minimum(uniform_B1 * cumulative_BV[:, -1:], cumulative_BV[:, -1:].nextafter(uniform_B1 * 0))
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(1)
