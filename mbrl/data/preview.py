"""Pictures of a data set: a contact sheet (PNG) of some of its episodes, or they side by side as a GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

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
    stream = io.BytesIO()
    if moving:
        still = {name.removesuffix(", frame"): clip for name, clip in even.items()}
        images = [Image.fromarray(picture) for picture in strip(still)]
        images[0].save(stream, "gif", save_all=True, append_images=images[1:], duration=round(1000 / FPS), loop=0)
    else:
        told = {name: [*shown, *shown[-1:].repeat(longest - len(shown))] for name, shown in numbers.items()}
        Image.fromarray(sheet(even, columns=longest, numbers=told)).save(stream, "png")
    write_atomically(out, stream.getvalue())
    return len(clips)


def spread(frames: int, most: int) -> NDArray[np.int64]:
    """At most so many of the frames 0, 1, 2, ..., evenly from the first to the last."""
    return np.linspace(0, frames - 1, min(most, frames)).round().astype(np.int64)
