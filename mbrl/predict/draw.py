"""Clips side by side for a person: truth, samples and error, as a GIF that plays and as a PNG that can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbrl.io.video import GAP, difference, sheet, strip, write_pictures
from worldmodel.evaluation.predict import ClipSample

COLUMNS = 8
"""Frames of a clip in the PNG."""
SHOWN = torch.tensor([60, 200, 90], dtype=torch.uint8)
"""Colour of the line around frames that the model was shown."""
ERROR_GAIN = 3
"""Errors are drawn so many times as strong."""


def rows_of(video: ClipSample, num_observed: int) -> dict[str, Tensor]:
    """What is drawn of a clip, u8 [F, 3, S, S] by name: the first samples as they came, chosen by nobody."""
    samples = video.methods["model"]
    rows = {"truth": video.truth}
    rows |= {f"sample {number}": framed(sample, num_observed) for number, sample in enumerate(samples, start=1)}
    for method, label in (("shuffled", "other act."), ("copy", "copy")):
        if method in video.methods:
            rows[label] = framed(video.methods[method][0], num_observed)
    error = difference(video.truth, samples[0]).short() * ERROR_GAIN
    return rows | {f"error x{ERROR_GAIN}": error.clamp(max=255).to(torch.uint8)}


def framed(clip_FCHW: Tensor, num_observed: int) -> Tensor:
    """A line around the first `num_observed` frames."""
    clip = clip_FCHW.clone()
    for edge in (
        clip[:num_observed, :, 0],
        clip[:num_observed, :, -1],
        clip[:num_observed, :, :, 0],
        clip[:num_observed, :, :, -1],
    ):
        edge[:] = SHOWN[None, :, None]
    return clip


def draw(rows: Sequence[Mapping[str, Tensor]], folder: Path, *, fps: float) -> list[Path]:
    """Writes clips.gif and clips.png; returns their paths.

    Args:
        rows: of each clip what stands under each other, u8 [F, 3, S, S] by name.
    """
    moving = np.concatenate([_gap(strip(row), axis=1) for row in rows], axis=1)
    still = np.concatenate([_gap(sheet(row, columns=COLUMNS), axis=0) for row in rows])
    return [write_pictures(folder / "clips.gif", moving, fps=fps), write_pictures(folder / "clips.png", still[None])]


def _gap(pictures: np.ndarray, *, axis: int) -> np.ndarray:
    around = [(0, 0)] * pictures.ndim
    around[axis] = (0, 2 * GAP)
    return np.pad(pictures, around)
