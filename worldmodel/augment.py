"""Random shifts: what is learned from few episodes must not hang on exact pixels.

The augmentation of DrQ (Kostrikov et al. 2020, arXiv:2004.13649, section 3.1): padding by repetition, then a crop.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.microbatch import Source, integers


def shifted(clip: TensorDict, most: int, source: Source) -> TensorDict:
    """The clip with `context` [B, t, 3, H, W] and `pixels` [B, T, 3, H, W] moved, one shift for all frames of a row.

    Args:
        most: up to so many pixels up or down and left or right; what comes in at an edge repeats it.
        source: on the CPU.
    """
    by_B2 = integers(2 * most + 1, torch.Size((len(clip), 2)), source, device=torch.device("cpu")) - most
    return clip.copy().update({name: moved(clip[name], by_B2) for name in ("context", "pixels")})


def moved(frames_BHW: Tensor, by_B2: Tensor) -> Tensor:
    """Frames [B, ..., H, W], each row moved by its whole pixels `by_B2` i64 [B, 2] (down, right); edges repeat."""
    height, width = frames_BHW.shape[-2:]
    by_B2 = by_B2.to(frames_BHW.device)
    y_BH = (torch.arange(height, device=by_B2.device) + by_B2[:, :1]).clamp(0, height - 1)
    x_BW = (torch.arange(width, device=by_B2.device) + by_B2[:, 1:]).clamp(0, width - 1)
    flat_BNHW = frames_BHW.flatten(1, -3)
    rows_B, frames_N = (torch.arange(size, device=by_B2.device) for size in flat_BNHW.shape[:2])
    taken = flat_BNHW[rows_B[:, None, None, None], frames_N[:, None, None], y_BH[:, None, :, None], x_BW[:, None, None]]
    return taken.view(frames_BHW.shape)
