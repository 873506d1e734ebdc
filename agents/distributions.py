"""Distributions an agent needs: bounded continuous and one-hot actions.

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
from torch import Tensor

from worldmodel.optim import to_host


def check_finite(name: str, values: Tensor) -> None:
    """Raises FloatingPointError if any value is NaN or infinite. One host sync: not for what is done in every frame."""
    (bad,) = to_host((~torch.isfinite(values)).sum()[None])
    if bad:
        raise FloatingPointError(f"{name} must be finite (got {bad} of {values.numel()} values that are not)")


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
