"""LeRobot datasets on disk, versions 2.0, 2.1 and 3.0: parquet rows beside mp4 videos, or pictures in the rows.

`meta/info.json` names features and where files lie. Version 2 has one parquet file and one video of a camera for each
episode, listed in `meta/episodes.jsonl`; version 3 has many episodes in each, and `meta/episodes/**.parquet` says
where an episode lies (huggingface/lerobot, "LeRobotDataset v3.0"). In row i are the observation i, the action that was
taken in it, and under `next.` what followed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert import ffmpeg, parquet
from mbrl.data.convert.arrays import one_a_step
from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, collected, lost, rows_of
from mbrl.data.convert.files import listed
from mbrl.data.convert.pictures import picture
from mbrl.data.dataset import DamagedSet
from mbrl.files import MOST_ROWS, MOST_TEXT, NotPlain, read_plain

INFO, EPISODES = "meta/info.json", "meta/episodes"
VERSIONS = ("v2.0", "v2.1", "v3.0")
FIELD = re.compile(r"\{(episode_chunk|episode_index|chunk_index|file_index|video_key)(?::0(\d)d)?\}")
"""What stands in a path of info.json for an episode's own."""
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every set has."""
MOST_EPISODES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Info:
    """What of `meta/info.json` is read.

    Attributes:
        folder: of the dataset.
        version: one of `VERSIONS`.
        fps: frames a second.
        features: by name, each with its `dtype`.
        data_path: of a parquet file, with fields in braces.
        video_path: of a video, likewise; empty where there is none.
        chunks_size: episodes of a chunk (version 2).
    """

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    chunks_size: int

    @property
    def cameras(self) -> list[str]:
        """Features that are frames in colour."""
        return [name for name, feature in self.features.items() if feature["dtype"] in ("image", "video")
                and not any(_depth(feature.get(part)) for part in ("info", "video_info"))]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an episode lies.

    Attributes:
        index: its `episode_index`.
        length: rows.
        data: for the fields of `data_path`.
        video: for those of `video_path`.
        begin: where it begins in its video, in seconds; None if the whole video is this episode.
    """

    index: int
    length: int
    data: Mapping[str, int]
    video: Mapping[str, int] = field(default_factory=dict)
    begin: float | None = None


def lerobot(folder: Path, *, key: str, action: str | None) -> tuple[Items, float]:
    """Every episode, in order of `episode_index`, and the frames a second.

    Args:
        key: the camera; empty: the only one.
        action: the feature of the actions; empty for none; None: `action` where there is such a feature.
    Raises: ValueError without pyarrow or ffmpeg, for a key that is not clear or not there; DamagedSet for what is not
        right in meta/.
    """
    parquet.check_installed()
    info = read_info(folder)
    if not key and len(info.cameras) != 1:
        raise ValueError(f"key= is missing: which frames; {folder} has {', '.join(info.cameras) or 'none'}")
    camera = key or info.cameras[0]
    taken = ("action" if "action" in info.features else "") if action is None else action
    for word, name, known in (("key", camera, info.cameras), ("action", taken, info.features)):
        if name and name not in known:
            raise ValueError(f"{word}={name} is not in {INFO}; it has {', '.join(known)}")
    if info.features[camera]["dtype"] == "video":
        ffmpeg.check_installed()
    try:
        places = sorted(_places_of_2(info) if info.version < "v3" else _places_of_3(info, camera), key=_index)
    except Unreadable as error:
        raise DamagedSet(f"{folder / EPISODES}: {error}") from error
    if twice := [one.index for one, other in pairwise(places) if one.index == other.index]:
        raise DamagedSet(f"{folder / EPISODES}: episode {twice[0]} is listed twice")
    try:
        fatal = parquet.fatal(path_of(info, info.data_path, place.data) for place in places)
    except Unreadable as error:
        raise DamagedSet(f"{folder / INFO}: {error}") from error

    def read(place: Place) -> Clip:
        if path_of(info, info.data_path, place.data) in fatal:
            raise Unreadable("its file is damaged, so that pyarrow cannot go on after it")
        return episode(info, place, camera=camera, action=taken)

    return [Item(f"episode {place.index}", lambda place=place: read(place)) for place in places], info.fps  # type: ignore[misc]


def read_info(folder: Path) -> Info:
    """Raises: ValueError if there is no `meta/info.json`; DamagedSet naming what is not right in it."""
    path = folder / INFO
    if not path.is_file():
        raise ValueError(f"from={folder} holds no {INFO}: it is no LeRobot dataset")
    try:
        found = json.loads(read_plain(path, most=MOST_TEXT))
    except (ValueError, RecursionError, NotPlain) as error:
        raise DamagedSet(f"{path} is not JSON ({error})") from error
    said: dict[str, Any] = {"chunks_size": 1000} | (found if isinstance(found, dict) else {})
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "codebase_version": ("one of " + ", ".join(VERSIONS), lambda v: v in VERSIONS),
        "fps": ("a number > 0", lambda v: _number(v) and 0 < v < 1e6),
        "features": ("names, each with a dtype", _features),
        "data_path": ("a path in the folder", lambda v: isinstance(v, str) and _inside(v)),
        "video_path": ("a path in the folder, or null", lambda v: v is None or (isinstance(v, str) and _inside(v))),
        "chunks_size": ("a whole number > 0", lambda v: _number(v) and v > 0 and v == int(v)),
    }
    for name, (rule, right) in rules.items():
        if not right(said.get(name)):
            raise DamagedSet(f"{path}: {name} must be {rule} (got {str(said.get(name))[:80]})")
    return Info(
        folder=folder,
        version=said["codebase_version"],
        fps=float(said["fps"]),
        features=said["features"],
        data_path=said["data_path"],
        video_path=said.get("video_path") or "",
        chunks_size=int(said["chunks_size"]),
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _features(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, dict) and isinstance(v.get("dtype"), str) for v in value.values()
    )


def _depth(said: Any) -> bool:
    return isinstance(said, dict) and bool(said.get("is_depth_map") or said.get("video.is_depth_map"))


def _index(place: Place) -> int:
    return place.index


def _inside(path: str) -> bool:
    """Whether a path with fields stays in its folder, and has no fields but the known ones."""
    plain = FIELD.sub("0", path)
    return not (set("{}\0\\") & set(plain)) and not PurePosixPath(plain).is_absolute() and ".." not in plain.split("/")


def path_of(info: Info, template: str, fields: Mapping[str, int | str]) -> Path:
    """A file of the dataset. Raises: Unreadable for a path that lacks something or leads out of the folder."""

    def filled(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise Unreadable(f"{template} has {match[0]}, which {info.version} does not know")
        value = fields[match[1]]
        return value if isinstance(value, str) else f"{value:0{int(match[2] or 1)}d}"

    path = FIELD.sub(filled, template)
    if not path or not _inside(path):
        raise Unreadable(f"{path or 'video_path'} is no path in the folder")
    return info.folder / path


def _places_of_2(info: Info) -> Iterator[Place]:
    """Version 2: `meta/episodes.jsonl`. Raises: Unreadable."""
    path = info.folder / "meta" / "episodes.jsonl"
    try:
        for line in read_plain(path, most=MOST_ROWS).splitlines():
            said = json.loads(line)
            index, length = (said.get(name) if isinstance(said, dict) else None for name in ("episode_index", "length"))
            if not (isinstance(index, int) and isinstance(length, int) and 0 <= index < 2**40 and length >= 0):
                raise Unreadable(f"a line of {path.name} has no episode_index and length")
            fields = {"episode_chunk": index // info.chunks_size, "episode_index": index}
            yield Place(index=index, length=length, data=fields, video=fields)
    except Unreadable:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} cannot be read ({error})") from error


def _places_of_3(info: Info, camera: str) -> Iterator[Place]:
    """Version 3: `meta/episodes/chunk-000/file-000.parquet`, ... Raises: Unreadable."""
    folder = info.folder / EPISODES
    paths = listed(folder, lambda path: path.suffix == ".parquet", deep=True) if folder.is_dir() else []
    if not paths:
        raise Unreadable("it holds no .parquet file")
    video = info.features[camera]["dtype"] == "video"
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names += [f"videos/{camera}/chunk_index", f"videos/{camera}/file_index"] if video else []
    if fatal := parquet.fatal(paths):
        raise Unreadable(f"{min(fatal).name} is damaged, so that pyarrow cannot go on after it")
    for path in paths:
        with parquet.opened(path) as file:
            if file.metadata.num_rows > MOST_EPISODES:
                raise Unreadable(f"{path.name} says {file.metadata.num_rows} episodes: more than {MOST_EPISODES}")
            columns = [parquet.integers(file, name).tolist() for name in names]
            begins = (
                parquet.numbers(file, f"videos/{camera}/from_timestamp").tolist() if video else [None] * len(columns[0])
            )
        for index, length, chunk, number, *of_video, begin in zip(*columns, begins, strict=True):
            place = dict(zip(("chunk_index", "file_index"), of_video, strict=False))
            yield Place(
                index=index, length=length, data={"chunk_index": chunk, "file_index": number}, video=place, begin=begin
            )


def episode(info: Info, place: Place, *, camera: str, action: str) -> Clip:
    """One episode. Raises: Unreadable."""
    names = [
        name for name in (action, "next.reward", "next.done", "next.truncated", "next.success") if name in info.features
    ]
    with parquet.opened(path_of(info, info.data_path, place.data)) as file:
        first, last = rows_of_episode(file, place)
        rows = {name: parquet.numbers(file, name, first, last) for name in names}
        frames = None
        if info.features[camera]["dtype"] == "image":
            frames = collected(map(picture, parquet.pictures(file, camera, first, last)), what=camera)
    frames = video(info, place, camera) if frames is None else frames
    if len(frames) != place.length:
        raise Unreadable(f"{camera} has {len(frames)} frames, and there are {place.length} rows")
    steps = {name: rows_of(numbers, len(frames), what=name) for name, numbers in rows.items()}
    if action and steps[action].ndim == 1:  # LeRobot stores lists of one number as numbers
        steps[action] = steps[action][:, None]
    if action and steps[action].ndim != 2:
        raise Unreadable(f"{action} must be [L, A] (got {list(rows[action].shape)})")
    flags = {name: one_a_step(numbers, what=name) for name, numbers in steps.items() if name != action}
    unread = sorted(info.features.keys() - {camera, *names, *COUNTERS})
    cut = " and ".join(name for name in names if name in (action, "next.reward"))
    return Clip(
        frames=frames,
        action=steps[action] if action else None,
        reward=flags.get("next.reward"),
        success=flags["next.success"] != 0 if "next.success" in flags else None,
        terminated={"next.done", "next.truncated"} <= flags.keys()
        and bool(flags["next.done"][-1] and not flags["next.truncated"][-1]),
        note=lost(cut) + f"not read: {', '.join(unread) or 'nothing'}",
    )


def rows_of_episode(file: Any, place: Place) -> tuple[int, int]:
    """Which rows of a file are an episode's: one after the other, from frame 0. Raises: Unreadable."""
    found = np.flatnonzero(parquet.integers(file, "episode_index") == place.index)
    if len(found) != place.length or not len(found) or found[-1] - found[0] != len(found) - 1:
        raise Unreadable(f"it must have {place.length} rows one after the other (there are {len(found)})")
    first, last = int(found[0]), int(found[-1]) + 1
    if (parquet.numbers(file, "frame_index", first, last) != np.arange(place.length)).any():
        raise Unreadable("frame_index must count its rows from 0: frames are missing, or in another order")
    return first, last


def video(info: Info, place: Place, camera: str) -> NDArray[np.uint8]:
    """The frames of an episode in its video. Raises: Unreadable."""
    path = path_of(info, info.video_path, {**place.video, "video_key": camera})
    if not path.is_file():
        raise Unreadable(f"{path.relative_to(info.folder)} is not there")
    if place.begin is None:
        return collected(ffmpeg.decoded(path), what=camera)
    if not (math.isfinite(place.begin) and 0 <= place.begin < 1e9):
        raise Unreadable(f"videos/{camera}/from_timestamp must be seconds (got {place.begin})")
    # from half a frame before its first to half a frame before the next episode's: rounding moves none in or out
    begin, end = max(place.begin - 0.5 / info.fps, 0.0), place.begin + (place.length - 0.5) / info.fps
    return collected(ffmpeg.decoded(path, window=(begin, end - begin)), what=camera)
