"""Pictures of a data set: a contact sheet (PNG) of some of its episodes, or they side by side as a GIF or mp4."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.data.augment import resized
from mbrl.data.dataset import DataSet
from mbrl.io.video import sheet, strip, write_mp4, write_pictures

SIDE = 64
FPS = 10.0
MOST_FRAMES = 200
"""Of a film."""
MOVING = (".gif", ".mp4")


def preview(sets: Sequence[DataSet], out: Path, *, episodes: int, columns: int) -> int:
    """Draws `episodes` episodes of each set, evenly spread over it; returns how many.

    Args:
        out: ends in .png (`columns` frames of each episode), .gif, or .mp4 where imageio-ffmpeg is installed.
    Raises: ValueError for another ending, or if there is no episode; DamagedEpisode; OSError.
    """
    ending = out.suffix.lower()
    if ending not in (".png", *MOVING):
        raise ValueError(f"out must end in .png, {' or '.join(MOVING)} (got {out})")
    if ending == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError(f"out={out} needs ffmpeg: pip install imageio-ffmpeg, or give a path ending in .gif or .png")
    moving = ending in MOVING
    clips, numbers = {}, {}
    for data in sets:
        places = np.unique(np.linspace(0, len(data) - 1, min(episodes, len(data))).round().astype(int))
        for place in places.tolist():
            pixels = torch.from_numpy(np.array(data.episode(place).pixels))
            name = f"{data.card.name} episode {int(data.names[place].split('-')[1])}, frame"
            numbers[name] = spread(len(pixels), MOST_FRAMES if moving else columns)
            clips[name] = resized(pixels[torch.from_numpy(numbers[name])], height=SIDE, width=SIDE)
    if not clips:
        raise ValueError(f"there is no episode to draw in {', '.join(str(data.folder) for data in sets)}")
    longest = max(len(clip) for clip in clips.values())
    even = {name: torch.cat([clip, clip[-1:].expand(longest - len(clip), -1, -1, -1)]) for name, clip in clips.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if moving:
        pictures = strip({name.removesuffix(", frame"): clip for name, clip in even.items()})
        if ending == ".gif":
            write_pictures(out, pictures, fps=FPS)
        else:
            try:
                write_mp4(out, pictures, fps=FPS)
            except RuntimeError as error:
                raise OSError(str(error)) from error
    else:
        told = {name: [*shown, *shown[-1:].repeat(longest - len(shown))] for name, shown in numbers.items()}
        write_pictures(out, sheet(even, columns=longest, numbers=told)[None])
    return len(clips)


def spread(frames: int, most: int) -> NDArray[np.int64]:
    """At most so many of the frames 0, 1, 2, ..., evenly from the first to the last."""
    return np.linspace(0, frames - 1, min(most, frames)).round().astype(np.int64)
