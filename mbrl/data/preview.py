"""Pictures of a data set: a contact sheet (PNG) of some of its episodes, or they side by side as a GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mbrl.data.augment import resized
from mbrl.data.dataset import DataSet
from mbrl.files import write_atomically
from mbrl.io.video import sheet, strip

SIDE = 64
FPS = 10.0
MOST_FRAMES = 200
"""Of a GIF."""


def preview(sets: Sequence[DataSet], out: Path, *, episodes: int, columns: int) -> int:
    """Draws `episodes` episodes of each set, evenly spread over it; returns how many.

    Args:
        out: ends in .png (`columns` frames of each episode) or .gif.
    Raises: ValueError for another ending, or if there is no episode; DamagedEpisode.
    """
    if out.suffix.lower() not in (".png", ".gif"):
        raise ValueError(f"out must end in .png or .gif (got {out})")
    moving = out.suffix.lower() == ".gif"
    clips = {}
    for data in sets:
        places = np.unique(np.linspace(0, len(data) - 1, min(episodes, len(data))).round().astype(int))
        for place in places.tolist():
            pixels = torch.from_numpy(np.array(data.episode(place).pixels))
            number = int(data.names[place].split("-")[1])
            clips[f"{data.card.name} {number}"] = resized(
                shortened(pixels, MOST_FRAMES if moving else columns), height=SIDE, width=SIDE
            )
    if not clips:
        raise ValueError(f"there is no episode to draw in {', '.join(str(data.folder) for data in sets)}")
    longest = max(len(clip) for clip in clips.values())
    even = {name: torch.cat([clip, clip[-1:].expand(longest - len(clip), -1, -1, -1)]) for name, clip in clips.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    if moving:
        images = [Image.fromarray(picture) for picture in strip(even)]
        images[0].save(stream, "gif", save_all=True, append_images=images[1:], duration=round(1000 / FPS), loop=0)
    else:
        Image.fromarray(sheet(even, columns=columns)).save(stream, "png")
    write_atomically(out, stream.getvalue())
    return len(clips)


def shortened(pixels_TCHW: Tensor, most: int) -> Tensor:
    """At most so many frames, evenly spread from the first to the last."""
    shown = np.linspace(0, len(pixels_TCHW) - 1, min(most, len(pixels_TCHW))).round().astype(int)
    return pixels_TCHW[torch.from_numpy(shown)]
