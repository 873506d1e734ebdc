"""Plain encoder and decoder of one frame, with the feature maps that condition the networks of future frames.

They know single frames only: no clips, no codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.tokenizer.blocks import DownBlock, MidBlock, UpBlock, full_precision, group_norm

RGB = 3


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Sizes that the four networks of one tokenizer share.

    Attributes:
        channels: width of each level, finest first; the side halves from level to level.
        latent: width of the latent map.
        layers: residual blocks per encoder level (a decoder level has one more).
        groups: groups of the norms.
        stem: 1: 3x3 convolutions at both ends (published); s > 1: one convolution of 2s x 2s pixels with stride s on
            the way in, a pixel shuffle by s on the way out.
    """

    channels: tuple[int, ...]
    latent: int
    layers: int
    groups: int
    stem: int


class EncoderLayers(nn.Module):
    """The layers that the plain and the conditional encoder have in common."""

    def __init__(self, trunk: Trunk, *, channels_in: int, attention: bool):
        super().__init__()
        channels, stem = trunk.channels, trunk.stem
        if stem == 1:
            self.conv_in = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        else:
            self.conv_in = nn.Conv2d(channels_in, channels[0], 2 * stem, stride=stem, padding=stem // 2)
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, layers=trunk.layers, groups=trunk.groups, last=i == len(channels) - 1)
            for i, (a, b) in enumerate(pairwise((channels[0], *channels)))
        )
        self.mid_block = MidBlock(channels[-1], groups=trunk.groups, attention=attention)
        self.conv_norm_out = group_norm(trunk.groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], trunk.latent, 3, padding=1)

    def head(self, h: Tensor) -> Tensor:
        """Last norm and projection, in the weights' own precision whatever autocast says."""
        with full_precision(h):
            return self.conv_out(F.silu(self.conv_norm_out(h.to(self.conv_out.weight.dtype))))


class DecoderLayers(nn.Module):
    """The layers that the plain and the conditional decoder have in common."""

    def __init__(self, trunk: Trunk, *, attention: bool):
        super().__init__()
        top_down = trunk.channels[::-1]
        self.stem = trunk.stem
        self.conv_in = nn.Conv2d(trunk.latent, top_down[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, layers=trunk.layers, groups=trunk.groups, last=i == len(top_down) - 1)
            for i, (a, b) in enumerate(pairwise((top_down[0], *top_down)))
        )
        self.mid_block = MidBlock(top_down[0], groups=trunk.groups, attention=attention)
        self.conv_norm_out = group_norm(trunk.groups, top_down[-1])
        self.conv_out = nn.Conv2d(top_down[-1], RGB * trunk.stem**2, 3, padding=1)

    def head(self, h: Tensor) -> Tensor:
        """Last norm and projection to pixels; frames leave in the weights' precision so that losses are exact."""
        frames = self.conv_out(F.silu(self.conv_norm_out(h))).to(self.conv_out.weight.dtype)
        return F.pixel_shuffle(frames, self.stem) if self.stem > 1 else frames


class Encoder(EncoderLayers):
    """Frames -> latent maps (spec 2.5)."""

    def forward(self, frames_NCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Frames in [0, 1] -> (latents [N, latent, side, side], features: conv_in, each level, middle block)."""
        features = [self.conv_in(frames_NCHW)]
        for block in (*self.down_blocks, self.mid_block):
            features.append(block(features[-1]))
        return self.head(features[-1]), features


class Decoder(DecoderLayers):
    """Latent maps -> frames (spec 2.6)."""

    def forward(self, latents_NCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[N, latent, side, side] -> (frames [N, 3, H, W] unclamped, features: conv_in, middle block, each level)."""
        features = [self.conv_in(latents_NCHW)]
        for block in (self.mid_block, *self.up_blocks):
            features.append(block(features[-1]))
        return self.head(features[-1]), features
