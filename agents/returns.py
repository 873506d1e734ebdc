"""What rewards are worth: returns of imagined and of real ones, and the two ways to bring advantages to one scale.

Knows tensors only: no networks, no dreams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor


@torch.no_grad()
def lambda_returns(reward_BT: Tensor, value_BT: Tensor, discount_BT: Tensor, lambda_: float) -> Tensor:
    """Lambda returns along an imagined trajectory, computed backwards in float32 (float64 if a reward is).

    G[t] = r[t] + d[t] * ((1 - lambda_) * v[t] + lambda_ * G[t+1]),  G[T] = v[T-1]

    Args:
        reward_BT: float32 [B, T], reward received on arriving in state t+1 (environment units, not symlog).
        value_BT: float32 [B, T], critic's value of state t+1.
        discount_BT: float32 [B, T] in [0, 1], gamma times the probability that the episode goes on after t+1.
        lambda_: in [0, 1]; 0 is one-step TD, 1 is Monte Carlo with a bootstrap.
    Returns: float32 [B, T]; no gradient flows to any input.
    Raises: ValueError if the three shapes differ, or lambda_ is outside [0, 1].
    Source: DreamerV3, arXiv:2301.04104 (index shifted: our row t is the paper's t+1).

    >>> one = torch.ones(1, 3)
    >>> lambda_returns(one, 0 * one, one, lambda_=1.0)
    tensor([[3., 2., 1.]])
    >>> lambda_returns(one, 10 * one, 0.5 * one, lambda_=0.0)
    tensor([[6., 6., 6.]])
    """
    shapes = [tuple(x.shape) for x in (reward_BT, value_BT, discount_BT)]
    if reward_BT.ndim != 2 or len(set(shapes)) != 1:
        raise ValueError(f"reward {shapes[0]}, value {shapes[1]} and discount {shapes[2]} must have one shape [B, T]")
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"lambda_ must be in [0, 1] (got {lambda_})")
    dtype = torch.promote_types(reward_BT.dtype, torch.float32)
    reward_BT, value_BT, discount_BT = (x.to(dtype) for x in (reward_BT, value_BT, discount_BT))
    return_BT = torch.empty_like(reward_BT)
    following_B = value_BT[:, -1]
    for t in reversed(range(reward_BT.shape[1])):
        mixed_B = (1 - lambda_) * value_BT[:, t] + lambda_ * following_B
        following_B = return_BT[:, t] = reward_BT[:, t] + discount_BT[:, t] * mixed_B
    return return_BT


@torch.no_grad()
def n_step_returns(after: TensorDict, gamma: float) -> tuple[Tensor, Tensor]:
    """What n real decisions earned, and how much the value of the frame behind them counts.

    Args:
        after: `next` of transitions [B] (worldmodel.spec): `reward` and `continue` f32 [B, n], `steps` i64 [B].
    Returns: sum_k gamma^k (prod_{j<k} continue_j) reward_k, and gamma^steps prod_j continue_j; float32 [B] each.

    >>> after = {"reward": torch.tensor([[1.0, 2.0, 4.0]]), "continue": torch.ones(1, 3), "steps": torch.tensor([3])}
    >>> n_step_returns(TensorDict(after, batch_size=[1]), gamma=0.5)
    (tensor([3.]), tensor([0.1250]))
    """
    reward_BN, alive_BN = after["reward"], after["continue"].cumprod(1)
    power_N = gamma ** torch.arange(reward_BN.shape[1], device=reward_BN.device)
    before_BN = torch.cat([torch.ones_like(alive_BN[:, :1]), alive_BN[:, :-1]], 1)
    return (power_N * before_BN * reward_BN).sum(1), gamma ** after["steps"] * alive_BN[:, -1]


@dataclass(frozen=True, kw_only=True)
class PercentileNormConfig:
    """Advantages divided by the range of the returns (DreamerV3).

    Attributes:
        low: lower quantile of the returns, in [0, 1].
        high: upper quantile, above `low`.
        rate: weight of the newest batch in the moving average, in (0, 1].
        floor: the divisor is at least this, so that small and noisy returns are not blown up.
    """

    low: float
    high: float
    rate: float
    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low must be below high and both in [0, 1] (got {self.low}, {self.high})")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1] (got {self.rate})")
        if not self.floor > 0:
            raise ValueError(f"floor must be > 0 (got {self.floor})")

    def build(self) -> PercentileNorm:
        """A normaliser that has seen nothing."""
        return PercentileNorm(self)


class PercentileNorm:
    """Moving average of the distance between two quantiles of the returns; divides advantages by it.

    The average is corrected for its start at 0 (by 1 - (1 - rate)^n), so the first batch already counts in full.
    """

    def __init__(self, config: PercentileNormConfig) -> None:
        self._quantiles, self._rate, self._floor = (config.low, config.high), config.rate, config.floor
        self._state = _Average.fresh()

    def __call__(self, return_BT: Tensor, advantage_BT: Tensor) -> Tensor:
        """Takes the batch's returns into account, then gives the advantages divided by the scale."""
        self._state.follow(return_BT.device)
        at = torch.tensor(self._quantiles, dtype=return_BT.dtype, device=return_BT.device)
        low, high = torch.quantile(return_BT.flatten(), at)
        self._state.add(high - low, self._rate)
        return advantage_BT / self.scale()

    def scale(self) -> Tensor:
        """float32 [], at least `floor`."""
        return self._state.mean().clamp_min(self._floor)

    def state_dict(self) -> dict[str, Tensor]:
        """The moving average."""
        return self._state.tensors()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._state = _Average.of(state)


@dataclass(frozen=True, kw_only=True)
class StdNormConfig:
    """Advantages divided by the moving average of their own standard deviation, then clipped.

    Unlike the range of the returns this does not grow with how different the starts are from one another.

    Attributes:
        rate: weight of the newest batch in the moving average, in (0, 1].
        floor: the divisor is at least this.
        clip: the result lies in [-clip, clip].
    """

    rate: float
    floor: float
    clip: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1] (got {self.rate})")
        for name in ("floor", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0 (got {getattr(self, name)})")

    def build(self) -> StdNorm:
        """A normaliser that has seen nothing."""
        return StdNorm(self)


class StdNorm:
    """See `StdNormConfig`."""

    def __init__(self, config: StdNormConfig) -> None:
        self._rate, self._floor, self._clip = config.rate, config.floor, config.clip
        self._state = _Average.fresh()

    def __call__(self, return_BT: Tensor, advantage_BT: Tensor) -> Tensor:
        """Takes the batch's advantages into account, then gives them divided by the scale and clipped."""
        self._state.follow(advantage_BT.device)
        self._state.add(advantage_BT.std(correction=0), self._rate)
        return (advantage_BT / self.scale()).clamp(-self._clip, self._clip)

    def scale(self) -> Tensor:
        """float32 [], at least `floor`."""
        return self._state.mean().clamp_min(self._floor)

    def state_dict(self) -> dict[str, Tensor]:
        """The moving average."""
        return self._state.tensors()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._state = _Average.of(state)


@dataclass
class _Average:
    """Exponential moving average of a scalar; `weight` is the share of it that is data, not the 0 it began with."""

    value: Tensor
    weight: Tensor

    @staticmethod
    def fresh() -> _Average:
        return _Average(torch.zeros(()), torch.zeros(()))

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> _Average:
        return _Average(state["value"].clone(), state["weight"].clone())

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value, "weight": self.weight}

    def follow(self, device: torch.device) -> None:
        self.value, self.weight = self.value.to(device), self.weight.to(device)

    def add(self, new: Tensor, rate: float) -> None:
        self.value = self.value + rate * (new.float() - self.value)
        self.weight = self.weight + rate * (1 - self.weight)

    def mean(self) -> Tensor:
        return self.value / self.weight.clamp_min(1e-12)


class ImaginedBatch(NamedTuple):
    """One imagined batch and what it teaches; no gradients."""

    latent: Tensor  # [B, H, D]
    action: Tensor  # [B, H, A]
    returns: Tensor  # [B, H]
    advantage: Tensor  # [B, H]
    target_value: Tensor | None  # [B, H]
    weight: Tensor  # [B, H], probability that the episode is still going on in the state
    metrics: dict[str, Tensor]


class DemoBatch(NamedTuple):
    """What an expert did in some real states."""

    latent: Tensor  # [B, D]
    action: Tensor  # [B, A]
