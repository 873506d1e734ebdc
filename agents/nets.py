"""Networks over a dream's latent: the policy (Actor) and the value (Critic).

Know a latent's width, not what is in it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.distributions import BoundedNormal, LearnedStdConfig, OneHot
from worldmodel.twohot import TwoHot


class MLP(nn.Module):
    """Normalised input, then `layers` x (linear, LayerNorm, SiLU), then a linear output.

    A latent may join parts of very different size, so its row is divided by its root mean square; the logarithm of that
    divisor is appended as one more feature, so nothing is lost. A row's result never depends on the rest of the batch.
    """

    def __init__(
        self, inputs: int, outputs: int, *, layers: int, units: int, out_scale: float, generator: torch.Generator
    ) -> None:
        """`out_scale` multiplies the output layer's initial weights; 0 makes the initial output its bias."""
        super().__init__()
        widths = [inputs + 1, *[units] * layers]
        self.hidden = nn.ModuleList(_linear(a, b, scale=1.0, generator=generator) for a, b in pairwise(widths))
        # not RMSNorm: on CPU torch 2.13 has a fused kernel for LayerNorm only, 25 times as fast at these sizes
        self.norms = nn.ModuleList(nn.LayerNorm(units, eps=1e-3) for _ in range(layers))
        self.out = _linear(widths[-1], outputs, scale=out_scale, generator=generator)

    def forward(self, x_BD: Tensor) -> Tensor:
        """float32 [..., inputs] -> [..., outputs]."""
        scale = (x_BD.square().mean(-1, keepdim=True) + 1e-8).sqrt()
        x = torch.cat([x_BD / scale, scale.log()], -1)
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = F.silu(norm(linear(x)))
        return self.out(x)


class Actor(nn.Module):
    """Latent -> distribution of the action."""

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        discrete: bool,
        std: LearnedStdConfig | None,
        unimix: float,
        layers: int,
        units: int,
        generator: torch.Generator,
    ) -> None:
        """`std` None: the standard deviation is given at each call; `unimix` is read by discrete actions only."""
        super().__init__()
        self._action_dim, self._discrete, self._std, self._unimix = action_dim, discrete, std, unimix
        outputs = action_dim if discrete or std is None else 2 * action_dim
        self.mlp = MLP(latent_dim, outputs, layers=layers, units=units, out_scale=0.01, generator=generator)

    def forward(self, latent_BD: Tensor, std: float) -> BoundedNormal | OneHot:
        """Policy of latents float32 [..., D]; `std` is used where neither learned nor needed."""
        raw = self.mlp(latent_BD.float())
        if self._discrete:
            return OneHot(raw, unimix=self._unimix)
        unsquashed = raw[..., : self._action_dim]
        mean = torch.tanh(unsquashed)
        if self._std is None:
            return BoundedNormal(mean, torch.full_like(mean, std), pre_tanh_sq=unsquashed.square().sum(-1))
        # +2: the policy starts near the upper end of its range
        share = torch.sigmoid(raw[..., self._action_dim :] + 2.0)
        spread = self._std.low + (self._std.high - self._std.low) * share
        return BoundedNormal(mean, spread, pre_tanh_sq=unsquashed.square().sum(-1))


class Critic(nn.Module):
    """Latent -> value of the state, as two-hot logits; the value is exactly 0 before the first update."""

    def __init__(
        self,
        latent_dim: int,
        twohot: TwoHot,
        *,
        zero_init_value: bool,
        layers: int,
        units: int,
        generator: torch.Generator,
    ) -> None:
        """`zero_init_value`: the initial distribution is narrow around 0; else it is uniform over all bins."""
        super().__init__()
        self.twohot = twohot
        self.mlp = MLP(latent_dim, len(twohot.bins), layers=layers, units=units, out_scale=0.0, generator=generator)
        if zero_init_value:
            with torch.no_grad():
                self.mlp.out.bias.copy_(twohot.peak_at_zero())

    def forward(self, latent_BD: Tensor) -> Tensor:
        """Logits [..., bins] of latents float32 [..., D]."""
        return self.mlp(latent_BD.float())

    def value(self, latent_BD: Tensor) -> Tensor:
        """Value [...] in environment units."""
        return self.twohot.decode(self(latent_BD))


def _linear(inputs: int, outputs: int, *, scale: float, generator: torch.Generator) -> nn.Linear:
    # skip_init: the usual constructor would draw from the global generator
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    std = 1.0 / inputs**0.5 / 0.88  # 0.88: what is left of a normal's standard deviation when it is cut at 2 of them
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    with torch.no_grad():
        layer.weight.mul_(scale)
    nn.init.zeros_(layer.bias)
    return layer
