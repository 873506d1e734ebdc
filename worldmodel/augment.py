"""Random shifts of a whole clip: what the world model learns from few episodes must not hang on exact pixels.

The augmentation of DrQ (Kostrikov et al. 2020, arXiv:2004.13649, section 3.1), one shift for all frames of a clip.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from worldmodel.microbatch import Source, integers


def shifted(clip: TensorDict, most: int, source: Source) -> TensorDict:
    """The clip with `context` [B, t, 3, H, W] and `pixels` [B, T, 3, H, W] moved, each row as it is drawn.

    Args:
        most: up to so many pixels up or down and left or right; what comes in at an edge repeats it.
        source: on the CPU.
    """
    rows, (height, width) = clip["pixels"].shape[0], clip["pixels"].shape[-2:]
    by_B2 = integers(2 * most + 1, torch.Size((rows, 2)), source, device=torch.device("cpu")) - most
    y_BH = (torch.arange(height) + by_B2[:, :1]).clamp(0, height - 1)
    x_BW = (torch.arange(width) + by_B2[:, 1:]).clamp(0, width - 1)
    moved = clip.copy()
    for name in ("context", "pixels"):
        frames_BTCHW = clip[name]
        rows_moved = [frames_BTCHW[b][..., y_BH[b][:, None], x_BW[b]] for b in range(rows)]
        moved[name] = torch.stack(rows_moved)
    return moved
