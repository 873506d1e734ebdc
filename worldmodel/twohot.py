"""A scalar as a categorical over bins: what the reward head and the critic predict (DreamerV3, arXiv:2301.04104v2).

One convention for both: a target between two bins becomes the two weights whose mean it is, and the mean of a
prediction is taken over the bins themselves, in environment units. (Under symlog it would be biased low wherever the
prediction is uncertain, by Jensen's inequality.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|): compresses large values, keeps small ones (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """`bins` values from symexp(low) to symexp(high), evenly spaced under symlog (DreamerV3, eq. 10-12).

    Symmetric ones (low = -high) are exactly so, and 0 is one of them.
    """

    bins: Tensor
    """float32 [bins], increasing."""

    def __init__(self, *, low: float, high: float, bins: int) -> None:
        """Raises: ValueError unless low < high, both within 40 of 0, and bins are 2 or more, odd if symmetric."""
        super().__init__()
        self.symmetric = low == -high
        if not -40 <= low < high <= 40:
            raise ValueError(f"low and high must be in [-40, 40], in symlog units, and low < high (got {low}, {high})")
        if bins < 2 or (self.symmetric and bins % 2 == 0):
            raise ValueError(f"bins must be at least 2, and odd from {low} to {high}, so that 0 is a bin (got {bins})")
        if self.symmetric:
            positive = symexp(torch.linspace(0, high, bins // 2 + 1, dtype=torch.float64))
            values = torch.cat([-positive[1:].flip(0), positive])
        else:
            values = symexp(torch.linspace(low, high, bins, dtype=torch.float64))
        self.register_buffer("bins", values.float(), persistent=False)

    def encode(self, value: Tensor) -> Tensor:
        """[...] -> weights [..., bins] that sum to 1, at most two not 0; values outside the bins are clamped."""
        low, high, weight_high = self._neighbours(value)
        hot = torch.zeros(*value.shape, len(self.bins), dtype=weight_high.dtype, device=value.device)
        hot.scatter_(-1, low[..., None], (1 - weight_high)[..., None])
        return hot.scatter_add_(-1, high[..., None], weight_high[..., None])

    def decode(self, logits: Tensor) -> Tensor:
        """Logits [..., bins] -> mean [...]. Symmetric bins are taken in pairs, so equal logits give exactly 0."""
        probability = F.softmax(logits.float(), -1)
        if not self.symmetric:
            return (probability * self.bins).sum(-1)
        half = len(self.bins) // 2
        surplus = probability[..., half + 1 :] - probability[..., :half].flip(-1)
        return (surplus * self.bins[half + 1 :]).sum(-1)

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy [...] of the two-hot target `value` [...], in nats; no gradient flows to `value`."""
        low, high, weight_high = self._neighbours(value.detach())
        log_probability = F.log_softmax(logits.float(), -1)
        at_low, at_high = (log_probability.gather(-1, at[..., None])[..., 0] for at in (low, high))
        return -((1 - weight_high) * at_low + weight_high * at_high)

    def peak_at_zero(self) -> Tensor:
        """Logits [bins] of a narrow bell around 0 (in symlog units, variance 1/8) for an output layer to start from."""
        return -4.0 * symlog(self.bins) ** 2

    def _neighbours(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clamped = value.float().clamp(self.bins[0], self.bins[-1])
        high = torch.searchsorted(self.bins, clamped.contiguous()).clamp(1, len(self.bins) - 1)
        low = high - 1
        return low, high, (clamped - self.bins[low]) / (self.bins[high] - self.bins[low])
