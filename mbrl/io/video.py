"""Frames -> pictures that a person can read: enlarged, labelled, side by side, as GIF, mp4 or PNG.

Knows nothing of models or environments; rewards are numbers to be written on a picture.
"""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mbrl.files import TEMPORARY, clear_temporaries, write_atomically

log = logging.getLogger("mbrl")

SCALE = 4
"""64-pixel frames are unreadable on a screen; enlarged by repeating pixels, so that nothing is invented."""
LINE = 14
"""Pixels of one line of text."""
GAP = 4
"""Pixels between two clips."""
KIND = re.compile(r"[a-z0-9_]+")
LONGEST = 120
"""Seconds until ffmpeg is taken to hang: a film is written in one."""
PREFIX = re.compile(r"(\[[^\]]*\] *)+")
"""Which part of ffmpeg says it, and its address."""


def difference(truth_TCHW: Tensor, imagined_TCHW: Tensor) -> Tensor:
    """|truth - imagined| per pixel and channel, u8 [T, 3, H, W]."""
    return (truth_TCHW.short() - imagined_TCHW.short()).abs().to(torch.uint8)


def strip(clips: Mapping[str, Tensor], *, rewards: Mapping[str, Tensor] | None = None) -> NDArray[np.uint8]:
    """Clips side by side, each under its name, with one line per reward below.

    Args:
        clips: u8 [T, 3, H, W] by name, all of one shape, such as truth, imagined, difference.
        rewards: f32 [T] by name, such as true and predicted; written on every frame.

    Returns: u8 [T, height, width, 3].
    Raises: ValueError if there is no clip or shapes differ.
    """
    rewards = rewards or {}
    shapes = {name: tuple(clip.shape) for name, clip in clips.items()}
    if (
        not clips
        or len(set(shapes.values())) != 1
        or any(len(s) != 4 or s[1] != 3 or not s[0] for s in shapes.values())
    ):
        raise ValueError(f"clips must be u8 [T, 3, H, W] of one shape, at least one (got {shapes})")
    length = next(iter(shapes.values()))[0]
    if any(tuple(reward.shape) != (length,) for reward in rewards.values()):
        raise ValueError(f"rewards must be [{length}] (got { {name: tuple(r.shape) for name, r in rewards.items()} })")
    large = [_enlarge(clip) for clip in clips.values()]
    _, height, width, _ = large[0].shape
    canvas = np.zeros((length, LINE + height + LINE * len(rewards), (width + GAP) * len(large) - GAP, 3), np.uint8)
    for place, clip in enumerate(large):
        canvas[:, LINE : LINE + height, (width + GAP) * place : (width + GAP) * place + width] = clip
    texts = [
        [((width + GAP) * place + 2, 0, name) for place, name in enumerate(clips)]
        + [
            (2, LINE * (1 + row) + height, f"{name} {float(reward[t]):+.3f}")
            for row, (name, reward) in enumerate(rewards.items())
        ]
        for t in range(length)
    ]
    return np.stack([_write_texts(picture, text) for picture, text in zip(canvas, texts, strict=True)])


def sheet(
    clips: Mapping[str, Tensor], *, columns: int, numbers: Mapping[str, Sequence[int]] | None = None
) -> NDArray[np.uint8]:
    """One row per clip, at most `columns` of its frames, evenly spread from the first to the last, their number above.

    Args:
        clips: u8 [T, 3, H, W] by name, all of one shape.
        columns: pictures per row.
        numbers: of the frames of a clip, where they are not 0, 1, 2, ...; a long name loses its beginning.

    Returns: u8 [height, width, 3].
    """
    if columns < 1:
        raise ValueError(f"columns must be >= 1 (got {columns})")
    length = len(next(iter(clips.values()), []))
    shown = np.unique(np.linspace(0, length - 1, min(columns, length)).round().astype(int))
    rows = []
    for name, clip in clips.items():
        pictures = strip({"": clip[torch.from_numpy(shown)]})
        told = [numbers[name][index] if numbers else index for index in shown]
        most = pictures.shape[2] - 2 * GAP
        labelled = [_write_texts(p, [(2, 0, _cut(name, f" {n}", most))]) for p, n in zip(pictures, told, strict=True)]
        rows.append(np.concatenate([np.pad(picture, ((0, GAP), (0, GAP), (0, 0))) for picture in labelled], axis=1))
    return np.concatenate(rows)


def write_pictures(path: Path, pictures: NDArray[np.uint8], *, fps: float | None = None) -> Path:
    """Writes the pictures u8 [T, H, W, 3] as a GIF that repeats, or without `fps` the only one as a PNG."""
    images = [Image.fromarray(picture) for picture in pictures]
    how = {"append_images": images[1:], "duration": round(1000 / fps), "loop": 0, "save_all": True} if fps else {}
    stream = io.BytesIO()
    images[0].save(stream, format="GIF" if fps else "PNG", **how)
    write_atomically(path, stream.getvalue())
    return path


def write_mp4(path: Path, pictures: NDArray[np.uint8], *, fps: float) -> None:
    """Writes the pictures u8 [T, H, W, 3] as H.264, which every browser plays; an odd edge is repeated once.

    ffmpeg writes beside `path` under a temporary name, so that a kill leaves what the folder's owner sweeps.
    Raises: RuntimeError, one line, where ffmpeg cannot; no file is there then.
    """
    import imageio_ffmpeg

    even = np.pad(pictures, [(0, 0), *((0, size % 2) for size in pictures.shape[1:3]), (0, 0)], mode="edge")
    temporary = path.with_name(f"{TEMPORARY}{path.stem}-{os.getpid()}.mp4")
    size = f"{even.shape[2]}x{even.shape[1]}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    made = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", f"file:{temporary.absolute()}"]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, *made]
        sent = even.data.cast("B")
        done = subprocess.run(command, input=sent, capture_output=True, check=False, timeout=LONGEST)
        if done.returncode:
            words = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(PREFIX.sub("", words[0]) if words else f"ffmpeg ended with {done.returncode}")
        content = temporary.read_bytes()
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{path} was not written: ffmpeg had not ended after {LONGEST} s") from error
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"{path} was not written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(path, content)


class Videos:
    """A folder of films and PNGs named `<kind>-<env step>`; only the newest `keep` of each kind stay.

    A film is a GIF and, where imageio-ffmpeg is installed, the same as mp4: both stay or go together.

    Args:
        folder: made when the first file is written.
        keep: films, and PNGs, per kind.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1 (got {keep})")
        self.folder = folder
        self.keep = keep
        if folder.is_dir():
            clear_temporaries(folder)  # of a film that a kill cut off

    def film(self, kind: str, env_step: int, pictures: NDArray[np.uint8], *, fps: float) -> Path:
        """Writes pictures u8 [T, H, W, 3], for example of `strip`, as a GIF that repeats, and as mp4 where that can be.

        Returns: the GIF's path.
        """
        path = write_pictures(self._place(kind, env_step, ".gif"), pictures, fps=fps)
        if find_spec("imageio_ffmpeg") is not None:
            try:
                write_mp4(path.with_suffix(".mp4"), pictures, fps=fps)
            except RuntimeError as error:
                log.warning("WARNING: %s; the GIF is there", error)
        self._rotate(kind, (".gif", ".mp4"))
        return path

    def png(self, kind: str, env_step: int, picture: NDArray[np.uint8]) -> Path:
        """Writes one picture u8 [H, W, 3], for example of `sheet`."""
        path = write_pictures(self._place(kind, env_step, ".png"), picture[None])
        self._rotate(kind, (".png",))
        return path

    def _place(self, kind: str, env_step: int, suffix: str) -> Path:
        if not KIND.fullmatch(kind):
            raise ValueError(f"kind must be of a-z, 0-9 and _ (got {kind!r})")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{kind}-{env_step:09d}{suffix}"

    def _rotate(self, kind: str, suffixes: Sequence[str]) -> None:
        """Deletes the files of a kind but those of the newest `keep` env steps."""
        steps: dict[int, list[Path]] = {}
        for file in self.folder.glob(f"{kind}-*"):
            step = file.stem.removeprefix(f"{kind}-")
            if file.suffix in suffixes and step.isdigit():
                steps.setdefault(int(step), []).append(file)
        for old in sorted(steps, reverse=True)[self.keep :]:
            for file in steps[old]:
                file.unlink()


def _enlarge(clip_TCHW: Tensor) -> NDArray[np.uint8]:
    """u8 [T, 3, H, W] -> [T, H * SCALE, W * SCALE, 3]."""
    frames = clip_TCHW.detach().cpu().numpy().astype(np.uint8, copy=False).transpose(0, 2, 3, 1)
    return frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def _cut(name: str, ending: str, most: int) -> str:
    """As much of the name's end as leaves room for the ending, in so many pixels."""
    font = ImageFont.load_default(size=11)
    while name and font.getlength(name + ending) > most:
        name = name[1:]
    return (name + ending).strip()


def _write_texts(picture: NDArray[np.uint8], texts: Sequence[tuple[int, int, str]]) -> NDArray[np.uint8]:
    """White text at (x, y) of u8 [H, W, 3]."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=11)
    for x, y, text in texts:
        draw.text((x, y), text, fill="white", font=font)
    return np.asarray(image)
