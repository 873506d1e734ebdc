"""The patch discriminator of adversarial tokenizer training, and its hinge losses. Knows frames and logits only."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2


class SpectralConv2d(nn.Module):
    """3x3 convolution with stride 2 whose weight is divided by its largest singular value.

    In train mode each forward takes one step of power iteration; in eval mode the stored vectors are used as they are.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        plain = nn.Conv2d(channels_in, channels_out, 3)
        self.weight_orig = nn.Parameter(plain.weight.detach())
        self.bias = nn.Parameter(plain.bias.detach())  # type: ignore[union-attr]
        self.register_buffer("weight_u", F.normalize(torch.randn(channels_out), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(channels_in * 9), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, h, w] -> [N, out, ceil(h/2), ceil(w/2)]."""
        matrix = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                v = F.normalize(matrix.T @ self.weight_u, dim=0)
                self.weight_v.copy_(v)
                self.weight_u.copy_(F.normalize(matrix @ v, dim=0))
        # copies: a second forward before backward (real, then fake) would change the vectors that autograd holds
        sigma = self.weight_u.clone() @ matrix @ self.weight_v.clone()
        return F.conv2d(x, self.weight_orig / sigma, self.bias, stride=2, padding=1)


class PatchDiscriminator(nn.Module):
    """Scores patches of single frames as real or decoded (spec 10.1); parameters named as in the published training.

    Args:
        hidden: width of the last level (512 as published), a multiple of 8. Four levels, each of half the side.
    """

    def __init__(self, hidden: int):
        super().__init__()
        if hidden < 8 or hidden % 8:
            raise ValueError(f"hidden must be a multiple of 8 (got {hidden})")
        widths = [hidden // 8, hidden // 4, hidden // 2, hidden]
        layers: list[nn.Module] = [SpectralConv2d(3, widths[0]), nn.LeakyReLU(SLOPE)]
        for narrow, wide in pairwise(widths):
            layers += [SpectralConv2d(narrow, wide), nn.InstanceNorm2d(wide), nn.LeakyReLU(SLOPE)]
        self.encoder = nn.Sequential(*layers)
        self.shuffle = nn.Conv2d(hidden, 1, 1)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Frames in [0, 1] [N, 3, H, W] -> logits [N, 1, H/16, W/16]; larger means more real."""
        return self.shuffle(self.encoder(frames_NCHW))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator, a scalar (spec 10.1); `fake_logits` come from detached frames."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What the tokenizer minimises to be taken for real, a scalar (spec 10.1)."""
    return -fake_logits.mean()
