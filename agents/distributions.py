"""Distributions an agent needs: a scalar as two-hot over symexp bins, bounded continuous and one-hot actions.

Both kinds of action are drawn from standard normal noise given from outside, so that the same noise gives the same
action, and noise that is correlated in time leaves the distribution of each single action as it is.
Nothing here asks whether its input is finite, which would make the host wait for every imagined frame: who acts asks
before the action leaves (`check`), who learns asks once for each dream and once for each step of an optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.optim import to_host


def symlog(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|): compresses large values, keeps small ones (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def check_finite(name: str, values: Tensor) -> None:
    """Raises FloatingPointError if any value is NaN or infinite. One host sync: not for what is done in every frame."""
    (bad,) = to_host((~torch.isfinite(values)).sum()[None])
    if bad:
        raise FloatingPointError(f"{name} must be finite (got {bad} of {values.numel()} values that are not)")


class TwoHot(nn.Module):
    """A scalar as a categorical over `bins` values symexp(-limit) .. symexp(limit), evenly spaced under symlog.

    A target between two bins becomes the two weights whose mean it is; the mean of a prediction is taken over the bins
    themselves, not under symlog (DreamerV3, arXiv:2301.04104v2, eq. 10-12).
    """

    def __init__(self, *, bins: int, limit: float) -> None:
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins must be odd and >= 3, so that 0 is a bin (got {bins})")
        if not 0 < limit <= 40:
            raise ValueError(f"limit must be in (0, 40], in symlog units (got {limit})")
        super().__init__()
        half = bins // 2
        positive = symexp(torch.linspace(0, limit, half + 1, dtype=torch.float64))
        self.bins: Tensor
        """float32 [bins], increasing, exactly symmetric, the middle one 0."""
        self.register_buffer("bins", torch.cat([-positive[1:].flip(0), positive]).float(), persistent=False)

    def encode(self, value: Tensor) -> Tensor:
        """[...] -> weights [..., bins] that sum to 1, at most two not 0; values outside the bins are clamped."""
        low, high, weight_high = self._neighbours(value)
        hot = torch.zeros(*value.shape, len(self.bins), dtype=weight_high.dtype, device=value.device)
        hot.scatter_(-1, low[..., None], (1 - weight_high)[..., None])
        return hot.scatter_add_(-1, high[..., None], weight_high[..., None])

    def decode(self, logits: Tensor) -> Tensor:
        """Logits [..., bins] -> mean [...]. Opposite bins are taken in pairs, so equal logits give exactly 0."""
        probability = F.softmax(logits.float(), -1)
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


@dataclass(frozen=True, kw_only=True)
class LearnedStdConfig:
    """The actor gives its own standard deviation, between `low` and `high` (actions span [-1, 1])."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"low must be > 0 and below high (got low {self.low}, high {self.high})")


@dataclass(frozen=True, kw_only=True)
class ScheduledStdConfig:
    """The standard deviation goes linearly from `start` to `end`; decisions are counted per environment.

    Attributes:
        start: standard deviation at first (actions span [-1, 1]).
        end: standard deviation at last.
        after: real decisions before it begins to move (those of the prefill count).
        decisions: real decisions on the way from `start` to `end`.
    """

    start: float
    end: float
    after: int
    decisions: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0 (got {getattr(self, name)})")
        if self.after < 0:
            raise ValueError(f"after must be >= 0 (got {self.after})")
        if self.decisions < 1:
            raise ValueError(f"decisions must be >= 1 (got {self.decisions})")

    def at(self, decisions: int) -> float:
        """The standard deviation after `decisions` real decisions."""
        return self.start + (self.end - self.start) * min(1.0, max(0, decisions - self.after) / self.decisions)


class BoundedNormal:
    """Independent normals truncated to [-1, 1], one for each action dimension, with exact density and entropy.

    Truncation, not clipping: a clipped normal has mass points at the bounds, whose probability a density does not show.
    """

    def __init__(self, mean_BA: Tensor, std_BA: Tensor, *, pre_tanh_sq: Tensor | float = 0.0) -> None:
        """A distribution [...] of actions [..., A].

        Args:
            mean_BA: the mode, in [-1, 1].
            std_BA: > 0, of the normal before truncation.
            pre_tanh_sq: [...] how far the network's output is from the middle of its squashing function.
        """
        self.pre_tanh_sq = pre_tanh_sq
        self.mode, self.std = mean_BA, std_BA
        self._low, self._high = (-1 - mean_BA) / std_BA, (1 - mean_BA) / std_BA
        self._below = torch.special.ndtr(self._low)
        # the mode is inside the bounds, so this is at least about 1/2 for std <= 1 and never vanishes
        self._mass = torch.special.ndtr(self._high) - self._below

    def check(self) -> None:
        """Raises: FloatingPointError where mean or standard deviation is not finite."""
        check_finite("policy mean", self.mode)
        check_finite("policy std", self.std)

    def sample(self, noise_BA: Tensor) -> Tensor:
        """Actions [..., A] in [-1, 1] by inversion of standard normal `noise_BA` [..., A]."""
        quantile = self._below + torch.special.ndtr(noise_BA) * self._mass
        return (self.mode + self.std * torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))).clamp(-1, 1).detach()

    def log_prob(self, action_BA: Tensor) -> Tensor:
        """Log density [...] of actions [..., A] in [-1, 1], summed over the action's dimensions."""
        z = (action_BA - self.mode) / self.std
        return (-0.5 * (z**2 + math.log(2 * math.pi)) - torch.log(self.std * self._mass)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy [...] in nats, at most A * log 2."""
        edges = self._low * _density(self._low) - self._high * _density(self._high)
        scale = 0.5 * math.log(2 * math.pi * math.e) + torch.log(self.std * self._mass)
        return (scale + edges / (2 * self._mass)).sum(-1)


class OneHot:
    """One of A actions as a one-hot vector; a share `unimix` of the probability is spread evenly (DreamerV3)."""

    def __init__(self, logits_BA: Tensor, *, unimix: float) -> None:
        """`logits_BA` float32 [..., A]; `unimix` in [0, 1)."""
        self.pre_tanh_sq = 0.0
        count = logits_BA.shape[-1]
        self._log_probability = torch.log((1 - unimix) * F.softmax(logits_BA, -1) + unimix / count)
        self.mode = F.one_hot(logits_BA.argmax(-1), count).to(logits_BA.dtype)

    def check(self) -> None:
        """Raises: FloatingPointError where a logit is not finite."""
        check_finite("policy logits", self._log_probability)

    def sample(self, noise_BA: Tensor) -> Tensor:
        """One-hot actions [..., A] from standard normal `noise_BA` [..., A], made Gumbel noise first."""
        uniform = torch.special.ndtr(noise_BA).clamp(1e-7, 1 - 1e-7)
        winner = (self._log_probability - torch.log(-torch.log(uniform))).argmax(-1)
        return F.one_hot(winner, noise_BA.shape[-1]).to(noise_BA.dtype)

    def log_prob(self, action_BA: Tensor) -> Tensor:
        """Log probability [...] of one-hot actions [..., A]."""
        return (action_BA * self._log_probability).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy [...] in nats."""
        return -(self._log_probability.exp() * self._log_probability).sum(-1)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
