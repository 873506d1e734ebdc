"""The published per-episode files: one npz each, frames under a key of the data set, perhaps actions."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, frames_of, rows_of
from mbrl.replay.episode import MAX_BYTES


def published_npz(folder: Path, *, image_key: str, action_key: str) -> Items:
    """Every npz of `folder`, by name. `action_key`: empty for no actions, or a key that is taken where it is there.

    Raises: ValueError if there is no npz.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ValueError(f"from={folder} holds no .npz file")
    return [Item(path.name, lambda path=path: read(path, image_key=image_key, action_key=action_key)) for path in paths]  # type: ignore[misc]


def read(path: Path, *, image_key: str, action_key: str) -> Clip:
    """One episode. Raises: Unreadable."""
    try:
        with zipfile.ZipFile(path) as archive:  # before numpy allocates anything
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES * 8:  # int64 frames take 8 bytes a number
            raise Unreadable(f"it unpacks to more than {MAX_BYTES * 8} bytes")
        with np.load(path, allow_pickle=False) as file:
            if image_key not in file.files:
                raise Unreadable(f"it has no key {image_key}; it has {', '.join(sorted(file.files)) or 'none'}")
            frames = frames_of(file[image_key], what=image_key)
            has = bool(action_key) and action_key in file.files
            action = rows_of(file[action_key], len(frames), what=action_key) if has else None
    except Unreadable:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise Unreadable(f"it cannot be read ({error})") from error
    if action is not None and action.ndim != 2:
        raise Unreadable(f"{action_key} must be [L, A] (got {list(action.shape)})")
    return Clip(frames=frames, action=action)
