"""Networks of DrQ-v2 over stacked frames (Yarats et al. 2021, arXiv:2107.09645): encoder, policy mean, double values.

B rows, S stacked frames, R encoded width, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PixelNetsConfig:
    """Encoder and heads of DrQ-v2 (section 3.1 and table 2 of the paper).

    Attributes:
        stack: S, newest frames that are seen together.
        channels: of each 3x3 convolution.
        strides: of the convolutions, one each; published: 2, 1, 1, 1.
        feature: width of the normalised bottleneck behind the encoder, one for the actor and one for the critic.
        units: width of the two hidden layers behind it.
        shift: random shift of each frame stack in pixels.
    """

    stack: int
    channels: int
    strides: tuple[int, ...]
    feature: int
    units: int
    shift: int

    def __post_init__(self) -> None:
        for name in ("stack", "channels", "feature", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be whole numbers >= 1, one for each convolution (got {self.strides})")
        if self.shift < 0:
            raise ValueError(f"shift must be >= 0 (got {self.shift})")

    def side(self, image: int) -> int:
        """Side of the encoder's output for square frames. Raises: ValueError where nothing of a frame is left."""
        for stride in self.strides:
            image = (image - 3) // stride + 1
        if image < 1:
            raise ValueError(f"strides={list(self.strides)} leave nothing of these frames; give fewer or smaller ones")
        return image


class Encoder(nn.Module):
    """Frames u8 [B, 3S, H, W] -> [B, R]."""

    def __init__(self, config: PixelNetsConfig, image: int) -> None:
        super().__init__()
        widths = [3 * config.stack, *[config.channels] * len(config.strides)]
        convs = [nn.Conv2d(widths[i], widths[i + 1], 3, stride) for i, stride in enumerate(config.strides)]
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())), nn.Flatten())
        self.width = config.channels * config.side(image) ** 2

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        """[B, R]."""
        return self.convs(frames_BCHW.float() / 255 - 0.5)


class Bottleneck(nn.Sequential):
    """[B, R] -> the normalised feature, in [-1, 1]."""

    def __init__(self, inputs: int, feature: int) -> None:
        super().__init__(nn.Linear(inputs, feature), nn.LayerNorm(feature), nn.Tanh())


class Head(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, inputs: int, units: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, outputs)
        )


class Actor(nn.Module):
    """[B, R] -> mean action [B, A] in [-1, 1]."""

    def __init__(self, config: PixelNetsConfig, inputs: int, action_dim: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(inputs, config.feature)
        self.head = Head(config.feature, config.units, action_dim)

    def forward(self, encoded_BR: Tensor) -> Tensor:
        """The policy's mean."""
        return torch.tanh(self.head(self.bottleneck(encoded_BR)))


class Critic(nn.Module):
    """[B, R] and actions [B, A] -> two values [B, 2] (clipped double Q-learning, arXiv:1802.09477)."""

    def __init__(self, config: PixelNetsConfig, inputs: int, action_dim: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(inputs, config.feature)
        self.heads = nn.ModuleList(Head(config.feature + action_dim, config.units, 1) for _ in range(2))

    def forward(self, encoded_BR: Tensor, action_BA: Tensor) -> Tensor:
        """Q1 and Q2."""
        both = torch.cat([self.bottleneck(encoded_BR), action_BA], 1)
        return torch.cat([head(both) for head in self.heads], 1)


def initialise(net: nn.Module) -> None:
    """That of DrQ-v2: orthogonal weights, with the gain of ReLU in convolutions; biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(module.weight, nn.init.calculate_gain("relu") if isinstance(module, nn.Conv2d) else 1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
