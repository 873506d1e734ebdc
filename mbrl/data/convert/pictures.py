"""Folders of videos (GIF, mp4 and what else ffmpeg reads) and folders of folders of frames."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, collected
from mbrl.data.convert.ffmpeg import check_installed, decoded
from mbrl.data.convert.files import listed

VIDEOS = (".gif", ".mp4", ".webm", ".avi", ".mov", ".mkv")
FRAMES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def videos(folder: Path) -> Items:
    """Every video directly in `folder`, by name. Raises: ValueError if there is none, or without what reads it."""
    paths = listed(folder, lambda path: path.suffix.lower() in VIDEOS)
    if not paths:
        raise ValueError(f"from={folder} holds no video ({', '.join(VIDEOS)})")
    if any(path.suffix.lower() != ".gif" for path in paths):
        check_installed()
    return [Item(path.name, lambda path=path: video(path)) for path in paths]  # type: ignore[misc]


def frame_folders(folder: Path) -> Items:
    """Every folder with frames directly in `folder`, by name. Raises: ValueError if there is none."""
    held = {
        inside.name: listed(inside, lambda path: path.suffix.lower() in FRAMES)
        for inside in listed(folder, Path.is_dir)
    }
    clips = [
        Item(name, lambda paths=paths: Clip(frames=collected(pictures(paths), what="frames")))  # type: ignore[misc]
        for name, paths in held.items()
        if paths
    ]
    if not clips:
        raise ValueError(f"from={folder} holds no folder with frames ({', '.join(FRAMES)}): one folder for each clip")
    return clips


def video(path: Path) -> Clip:
    """One video. Raises: Unreadable."""
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
            return rgb(Image.open(io.BytesIO(content)))
    except UnidentifiedImageError as error:
        raise Unreadable("it is no picture, or only a part of one") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"it is no picture ({error})") from error
    except Image.DecompressionBombWarning as error:
        raise Unreadable(str(error)) from error


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A picture's numbers u8 [H, W, 3]. Raises: Unreadable for a range that cannot be told."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # 16 bits of gray
        gray = np.asarray(image).astype(np.float64) / 257
        return np.round(gray).astype(np.uint8)[..., None].repeat(3, axis=-1)
    if image.mode in ("I", "F"):
        raise Unreadable(f"it holds numbers of mode {image.mode}, whose range is not known; store it with 8 bits")
    return np.asarray(image.convert("RGB"))


def gif(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames of a GIF. Raises: Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                for frame in ImageSequence.Iterator(image):
                    yield rgb(frame)
    except UnidentifiedImageError as error:
        raise Unreadable("it is no GIF, or only a part of one") from error
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"it is no GIF ({error})") from error
    except Image.DecompressionBombWarning as error:
        raise Unreadable(str(error)) from error
