"""Random crop and colour of a clip, drawn once for all of its frames (spec 10.3).

Knows frames and a generator; nothing of data sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Strength = Literal["none", "weak", "strong"]
TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What is drawn from: `area` as a share of the shorter side squared, `ratio` of width to height (log-uniform),
    `factor` of brightness, contrast and saturation, and `hue` in turns to either side.
    """

    area: tuple[float, float]
    ratio: tuple[float, float]
    factor: tuple[float, float]
    hue: float


RANGES: dict[Strength, Ranges] = {
    "weak": Ranges(area=(0.8, 1.0), ratio=(0.9, 1.1), factor=(0.9, 1.1), hue=0.05),
    "strong": Ranges(area=(0.6, 1.0), ratio=(0.75, 4 / 3), factor=(0.6, 1.4), hue=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """One draw: the box (top, left, height, width) that is cut out, and colour changes in the order they are made."""

    box: tuple[int, int, int, int]
    colours: tuple[tuple[str, float], ...]


def draw(random: np.random.Generator, strength: Strength, *, height: int, width: int) -> Look:
    """How a clip with frames of this size will look; with `none` the whole frame in its own colours."""
    if strength == "none":
        return Look(box=(0, 0, height, width), colours=())
    ranges = RANGES[strength]
    box = _box(random, ranges, height=height, width=width)
    factors = random.uniform(*ranges.factor, size=3).tolist()
    amounts = [*zip(("brightness", "contrast", "saturation"), factors, strict=True)]
    amounts.append(("hue", float(random.uniform(-ranges.hue, ranges.hue))))
    return Look(box=box, colours=tuple(amounts[place] for place in random.permutation(len(amounts))))


def _box(random: np.random.Generator, ranges: Ranges, *, height: int, width: int) -> tuple[int, int, int, int]:
    shorter = min(height, width)
    for _ in range(TRIES):
        area = random.uniform(*ranges.area) * shorter**2
        ratio = math.exp(random.uniform(math.log(ranges.ratio[0]), math.log(ranges.ratio[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return int(random.integers(height - high + 1)), int(random.integers(width - wide + 1)), high, wide
    return (height - shorter) // 2, (width - shorter) // 2, shorter, shorter


def applied(pixels_TCHW: Tensor, look: Look, *, side: int) -> Tensor:
    """u8 [T, 3, H, W] -> u8 [T, 3, side, side]: cut, resized (bilinear, antialiased, aspect not kept), recoloured."""
    top, left, height, width = look.box
    cut = pixels_TCHW[..., top : top + height, left : left + width]
    frames = resized(cut, height=side, width=side)
    if not look.colours:
        return frames
    values = frames.float() / 255
    for name, amount in look.colours:
        values = CHANGES[name](values, amount)
    return (values * 255).round().to(torch.uint8)


def resized(pixels_TCHW: Tensor, *, height: int, width: int) -> Tensor:
    """u8 [T, 3, H, W] -> u8 [T, 3, height, width]; in float32, then rounded, so that processors agree."""
    if pixels_TCHW.shape[-2:] == (height, width):
        return pixels_TCHW
    large = functional.interpolate(
        pixels_TCHW.float(), size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return large.round().clamp(0, 255).to(torch.uint8)


def _grey(frames: Tensor) -> Tensor:
    """Luma [T, 1, H, W]."""
    red, green, blue = frames.unbind(-3)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


def _blended(frames: Tensor, towards: Tensor, factor: float) -> Tensor:
    """`factor` 0 is `towards`, 1 the frames; beyond 1 away from it."""
    return (frames * factor + towards * (1 - factor)).clamp(0, 1)


def _brightness(frames: Tensor, factor: float) -> Tensor:
    return (frames * factor).clamp(0, 1)


def _contrast(frames: Tensor, factor: float) -> Tensor:
    return _blended(frames, _grey(frames).mean((-3, -2, -1), keepdim=True), factor)


def _saturation(frames: Tensor, factor: float) -> Tensor:
    return _blended(frames, _grey(frames), factor)


def _hue(frames: Tensor, turns: float) -> Tensor:
    """Turns the hue; value and saturation (of the HSV cone) stay."""
    red, green, blue = frames.unbind(-3)
    value, low = frames.amax(-3), frames.amin(-3)
    spread = value - low
    safe = spread.clamp_min(1e-8)
    sextant = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = sextant + 6 * turns
    # of each channel: how far below `value` it lies at this hue, as a trapezium of period 6
    channels = [value - spread * _trapezium((turned + offset) % 6) for offset in (5, 3, 1)]
    return torch.stack(channels, -3).clamp(0, 1)


def _trapezium(k: Tensor) -> Tensor:
    return torch.minimum(k, 4 - k).clamp(0, 1)


CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
