"""LPIPS: how different two images look to a network that was trained to tell objects apart (Zhang et al. 2018, v0.1).

Knows images in [0, 1] only. The published tokenizer is trained with it and the published metric is it (spec 10.1.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from worldmodel.evaluation.networks.cache import fill, located

Net = Literal["vgg", "alex"]
Layer = tuple[int, ...]

# slices of the `features` of torchvision's networks: a conv is (in, out, kernel, stride, padding), a pooling
# (kernel, stride), () a ReLU; a layer's place in its network is its name in the file
VGG16: tuple[tuple[Layer, ...], ...] = (
    ((3, 64, 3, 1, 1), (), (64, 64, 3, 1, 1), ()),
    ((2, 2), (64, 128, 3, 1, 1), (), (128, 128, 3, 1, 1), ()),
    ((2, 2), (128, 256, 3, 1, 1), (), (256, 256, 3, 1, 1), (), (256, 256, 3, 1, 1), ()),
    ((2, 2), (256, 512, 3, 1, 1), (), (512, 512, 3, 1, 1), (), (512, 512, 3, 1, 1), ()),
    ((2, 2), (512, 512, 3, 1, 1), (), (512, 512, 3, 1, 1), (), (512, 512, 3, 1, 1), ()),
)
ALEXNET: tuple[tuple[Layer, ...], ...] = (
    ((3, 64, 11, 4, 2), ()),
    ((3, 2), (64, 192, 5, 1, 2), ()),
    ((3, 2), (192, 384, 3, 1, 1), ()),
    ((384, 256, 3, 1, 1), ()),
    ((256, 256, 3, 1, 1), ()),
)
SLICES = {"vgg": VGG16, "alex": ALEXNET}
LEAST_SIDE = {"vgg": 16, "alex": 31}
"""Smaller images vanish in the poolings."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10


class LPIPS(nn.Module):
    """Distance of images; frozen and in eval mode for ever (its gradient reaches the images, never its weights).

    Args:
        net: `vgg` (training, and the published numbers) or `alex`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net) -> None:
        super().__init__()
        if net not in get_args(Net):
            raise ValueError(f"net must be one of {', '.join(get_args(Net))} (got {net})")
        self.least = LEAST_SIDE[net]
        self.net = nn.ModuleDict()
        place = 0
        for number, layers in enumerate(SLICES[net], start=1):
            part = self.net[f"slice{number}"] = nn.Sequential()
            for layer in layers:
                part.add_module(str(place), _made(layer))
                place += 1
            width = next(layer[1] for layer in reversed(layers) if len(layer) == 5)
            weight = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{number - 1}", nn.ModuleDict({"model": weight}))
        self.slices = len(SLICES[net])
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode, whatever holds it."""
        del mode
        return self

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distance f32 [N] of images in [0, 1] [N, 3, H, W]; 0 for equal ones."""
        return self.between(self.features(x_NCHW), self.features(y_NCHW))

    def features(self, x_NCHW: Tensor) -> list[Tensor]:
        """What the five slices see, each [N, C, h, w] of unit length along C; of use where one image meets many.

        Raises: ValueError for images that are not [N, 3, H, W] or too small.
        """
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != 3 or min(x_NCHW.shape[2:]) < self.least:
            raise ValueError(f"LPIPS needs images [N, 3, H, W] of side >= {self.least} (got {list(x_NCHW.shape)})")
        x_NCHW = (2 * x_NCHW - 1 - self.shift) / self.scale
        seen = []
        for part in self.net.values():
            x_NCHW = part(x_NCHW)
            length = torch.linalg.vector_norm(x_NCHW.float(), dim=1, keepdim=True)  # its gradient at 0 is 0, not NaN
            seen.append(x_NCHW / (length + EPSILON))
        return seen

    def between(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Distance f32 [N] of two sets of `features`; a set of one image meets every image of the other."""
        total: Tensor | float = 0.0
        for number, (one, other) in enumerate(zip(x, y, strict=True)):
            weight_C = self.get_parameter(f"lin{number}.model.1.weight").flatten()
            total = total + ((one - other).float().square().mean((2, 3)) * weight_C).sum(1)
        assert isinstance(total, Tensor)
        return total


def _made(layer: Layer) -> nn.Module:
    if not layer:
        return nn.ReLU()
    if len(layer) == 2:
        return nn.MaxPool2d(*layer)
    wide_in, wide_out, kernel, stride, padding = layer
    return nn.Conv2d(wide_in, wide_out, kernel, stride=stride, padding=padding)


def load_lpips(path: Path | None = None, net: Net = "vgg") -> LPIPS:
    """LPIPS with the real weights, on the CPU.

    Args:
        path: a safetensors file, as `mbrl metrics` makes it; None: its place in the user's cache.
    Raises: ValueError, in one line that says how to get the file, where it is not there.
    """
    found = located(f"lpips-{net}", path)
    model = LPIPS(net)
    fill(model, found)
    return model
