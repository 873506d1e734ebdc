"""I3D trained on Kinetics-400 (Carreira & Zisserman 2017): the features that FVD compares. Knows videos in [0, 1] only.

Names and paddings are those of the TensorFlow original; the feature is its 400 logits, averaged over time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.evaluation.networks.cache import fill, located

SIDE = 224
LEAST_FRAMES = 9
"""Fewer leave less than the two time steps that the last pooling spans."""
FEATURES = 400
MIXED = {  # branch widths: 1x1 | 1x1 3x3 | 1x1 3x3 | pool 1x1
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def padded(x_NCTHW: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros around, as TensorFlow's SAME: the output has ceil(size / stride) places, the odd zero lies behind."""
    around: list[int] = []
    for size, k, s in zip(x_NCTHW.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max((-(-size // s) - 1) * s + k - size, 0)
        around += [missing // 2, missing - missing // 2]
    return functional.pad(x_NCTHW, around)


class Unit(nn.Module):
    """Convolution, batch norm without a scale, ReLU."""

    def __init__(self, narrow: int, wide: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(narrow, wide, kernel, stride=stride, bias=False)
        self.norm = nn.BatchNorm3d(wide, eps=1e-3)
        self.around = ((kernel,) * 3, (stride,) * 3)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """[N, narrow, T, h, w] -> [N, wide, T / stride, h / stride, w / stride]."""
        kernel, stride = self.around
        return self.norm(self.conv(padded(x_NCTHW, kernel, stride))).relu()


class Pool(nn.Module):
    """Maximum over a window."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """What is pooled comes out of a ReLU, so zeros around it change no maximum."""
        return functional.max_pool3d(padded(x_NCTHW, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, narrow: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        a, b0, b1, c0, c1, d = widths
        self.branch0 = Unit(narrow, a, kernel=1)
        self.branch1 = nn.Sequential(Unit(narrow, b0, kernel=1), Unit(b0, b1, kernel=3))
        self.branch2 = nn.Sequential(Unit(narrow, c0, kernel=1), Unit(c0, c1, kernel=3))
        self.branch3 = nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(narrow, d, kernel=1))
        self.width = a + b1 + c1 + d

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """[N, narrow, T, h, w] -> [N, width, T, h, w]."""
        return torch.cat([branch(x_NCTHW) for branch in self.children()], 1)


class I3D(nn.Module):
    """Videos -> 400 numbers each; frozen and in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "conv1": Unit(3, 64, kernel=7, stride=2),
            "pool2": Pool((1, 3, 3), (1, 2, 2)),
            "conv2b": Unit(64, 64, kernel=1),
            "conv2c": Unit(64, 192, kernel=3),
            "pool3": Pool((1, 3, 3), (1, 2, 2)),
        }
        width = 192
        for name, widths in MIXED.items():
            if name == "4b":
                layers["pool4"] = Pool((3, 3, 3), (2, 2, 2))
            if name == "5b":
                layers["pool5"] = Pool((2, 2, 2), (2, 2, 2))
            mixed = layers[f"mixed{name}"] = Mixed(width, widths)
            width = mixed.width
        self.trunk = nn.ModuleDict(layers)
        self.logits = nn.Conv3d(width, FEATURES, 1)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, frames_NTCHW: Tensor) -> Tensor:
        """Videos in [0, 1] [N, T, 3, h, w] -> features f32 [N, 400]; frames are resized to 224x224.

        Raises: ValueError for fewer than 9 frames.
        """
        if frames_NTCHW.ndim != 5 or frames_NTCHW.shape[2] != 3 or frames_NTCHW.shape[1] < LEAST_FRAMES:
            raise ValueError(
                f"FVD needs videos [N, T, 3, h, w] of T >= {LEAST_FRAMES} frames, context included "
                f"(got {list(frames_NTCHW.shape)})"
            )
        rows = len(frames_NTCHW)
        frames = functional.interpolate(
            frames_NTCHW.flatten(0, 1).float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        x_NCTHW = (2 * frames - 1).unflatten(0, (rows, -1)).transpose(1, 2)
        for layer in self.trunk.values():
            x_NCTHW = layer(x_NCTHW)
        return self.logits(functional.avg_pool3d(x_NCTHW, (2, 7, 7), 1)).mean((2, 3, 4))


def load_i3d(path: Path | None = None) -> I3D:
    """I3D with the real weights, on the CPU.

    Args:
        path: a safetensors file, as `mbrl metrics` makes it; None: its place in the user's cache.
    Raises: ValueError, in one line that says how to get the file, where it is not there.
    """
    found = located("i3d", path)
    model = I3D()
    fill(model, found)
    return model
