"""Convolutional blocks of the tokenizer: residual, down- and up-sampling, self-attention. They know feature maps only.

Attribute names are those of the published state dict (spec section 2), so its tensors load without a name table.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.attention import attend

NORM_EPS = 1e-6


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """GroupNorm as the convolutional blocks use it (the cross-attention has its own epsilon)."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off for `tensor`'s device.

    bf16 keeps 8 bits: on a static background the small variation that the codes must carry would be rounded away.
    """
    return torch.autocast(tensor.device.type, enabled=False)


class ResidualBlock(nn.Module):
    """Two normed 3x3 convolutions beside a shortcut (spec 2.1)."""

    def __init__(self, channels_in: int, channels_out: int, *, groups: int):
        super().__init__()
        self.norm1 = group_norm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(groups, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, h, w] -> [N, out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class Downsample(nn.Module):
    """Halve the side by a strided convolution, padded on the right and the bottom only (spec 2.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h/2, w/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbour, then a convolution (spec 2.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """One level of an encoder: residual blocks, then a down-sampler unless it is the last level."""

    def __init__(self, channels_in: int, channels_out: int, *, layers: int, groups: int, last: bool):
        super().__init__()
        widths = [channels_in] + [channels_out] * layers
        self.resnets = nn.ModuleList(ResidualBlock(a, b, groups=groups) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, h, w] -> [N, out, h/2, w/2], or the same side at the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """One level of a decoder: one residual block more than the encoder's level, then an up-sampler unless last."""

    def __init__(self, channels_in: int, channels_out: int, *, layers: int, groups: int, last: bool):
        super().__init__()
        widths = [channels_in] + [channels_out] * (layers + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b, groups=groups) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, h, w] -> [N, out, 2h, 2w], or the same side at the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class SelfAttention(nn.Module):
    """Single-head attention among the positions of one map, added to it (spec 2.3)."""

    def __init__(self, channels: int, *, groups: int):
        super().__init__()
        self.group_norm = group_norm(groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same shape."""
        tokens_NLC = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.to_q(tokens_NLC), self.to_k(tokens_NLC), self.to_v(tokens_NLC)
        mixed_NLC = attend(query, key, value)
        return x + self.to_out[0](mixed_NLC).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, optional self-attention, residual block at the latent's side (spec 2.4)."""

    def __init__(self, channels: int, *, groups: int, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention(channels, groups=groups)] if attention else [])
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups=groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same shape."""
        first, second = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return second(x)
