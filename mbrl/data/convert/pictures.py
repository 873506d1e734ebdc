"""Folders of videos (GIF, mp4 and what else imageio reads) and folders of folders of frames."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, collected

VIDEOS = (".gif", ".mp4", ".webm", ".avi", ".mov", ".mkv")
FRAMES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def natural(path: Path) -> list[Any]:
    """A key that puts frame 10 behind frame 9."""
    return [
        (0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", path.name) if piece
    ]


def videos(folder: Path) -> Items:
    """Every video directly in `folder`, by name. Raises: ValueError if there is none."""
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in VIDEOS), key=natural)
    if not paths:
        raise ValueError(f"from={folder} holds no video ({', '.join(VIDEOS)})")
    return [Item(path.name, lambda path=path: video(path)) for path in paths]  # type: ignore[misc]


def frame_folders(folder: Path) -> Items:
    """Every folder with frames directly in `folder`, by name. Raises: ValueError if there is none."""
    clips = []
    for inside in sorted((path for path in folder.iterdir() if path.is_dir()), key=natural):
        paths = sorted((path for path in inside.iterdir() if path.suffix.lower() in FRAMES), key=natural)
        if paths:
            clips.append(Item(inside.name, lambda paths=paths: Clip(frames=collected(pictures(paths), what="frames"))))  # type: ignore[misc]
    if not clips:
        raise ValueError(f"from={folder} holds no folder with frames ({', '.join(FRAMES)}): one folder for each clip")
    return clips


def video(path: Path) -> Clip:
    """One video. Raises: Unreadable; ValueError where what reads its kind is not installed."""
    frames = gif(path) if path.suffix.lower() == ".gif" else decoded(path)
    return Clip(frames=collected(frames, what="video"))


def pictures(paths: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """Frames of files. Raises: Unreadable naming the file."""
    for path in paths:
        try:
            yield picture(path.read_bytes())
        except Unreadable as error:
            raise Unreadable(f"{path.name}: {error}") from error


def picture(content: bytes) -> NDArray[np.uint8]:
    """One picture in RGB, u8 [H, W, 3]. Raises: Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"it is no picture ({error})") from error
    except Image.DecompressionBombWarning as error:
        raise Unreadable(str(error)) from error


def gif(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames of a GIF. Raises: Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                for frame in ImageSequence.Iterator(image):
                    yield np.asarray(frame.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"it is no GIF ({error})") from error
    except Image.DecompressionBombWarning as error:
        raise Unreadable(str(error)) from error


def decoded(source: Path | bytes) -> Iterator[NDArray[np.uint8]]:
    """Frames of a video in any other format, through imageio's ffmpeg plugin.

    Raises: ValueError if that is not installed; Unreadable.
    """
    import imageio.v3 as imageio

    try:
        import imageio_ffmpeg  # noqa: F401 - imageio asks for it by name, and late
    except ImportError as error:
        raise ValueError("videos other than GIF need ffmpeg: pip install imageio-ffmpeg, or extract frames") from error
    try:
        named = {} if isinstance(source, Path) else {"extension": ".mp4"}
        yield from imageio.imiter(source, plugin="FFMPEG", **named)
    except (OSError, ValueError, IndexError, RuntimeError, StopIteration) as error:
        raise Unreadable(f"it is no video that ffmpeg reads ({error})") from error
