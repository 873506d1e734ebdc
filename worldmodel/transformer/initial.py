"""First values of the layers around a language model; all numbers come from one generator."""

from __future__ import annotations

import torch
from torch import nn


class Unset(nn.Linear):
    """A linear layer that draws nothing when made; `zero` or `uniform` fills it."""

    def reset_parameters(self) -> None:
        """Leave weight and bias unset."""


def zero(linear: nn.Linear) -> nn.Linear:
    """Its output is 0 until it is trained."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def uniform(linear: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Torch's own initial range, drawn from `generator`."""
    bound = linear.in_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear
