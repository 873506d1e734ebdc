"""Writes a data set of ours as a LeRobot dataset of version 3.0, the one that LeRobot's current loaders open.

Frames are PNG in the rows, which those loaders take as well as videos, and which loses nothing. An episode of L
decisions has L + 1 frames, so L + 1 rows: in the last, where nothing was done any more, the action is the one before
again and the reward is 0. Read back (`mbrl/data/convert/lerobot.py`) both fall away again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mbrl.data.convert.lerobot import EPISODES, INFO
from mbrl.data.convert.parquet import check_installed
from mbrl.data.dataset import DamagedSet, DataSet
from mbrl.files import TEMPORARY, becoming, fsync_folder, write_durably
from mbrl.io.lock import RunLock
from mbrl.replay.episode import Episode

CAMERA = "observation.image"
FILE_BYTES, FILES_OF_A_CHUNK = 100 * 2**20, 1000
"""As large as LeRobot makes its parquet files, and so many in a folder."""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
Rows = dict[str, NDArray[Any]]
"""Columns of one episode by name, [L + 1] or [L + 1, n]."""


def export(
    data: DataSet, to: Path, *, fps: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Writes all episodes into `to`, whole or not at all.

    Args:
        to: a folder that is not there, or empty.
        fps: frames a second; timestamps follow from it.
        on_progress: called with how many episodes are done, and of how many.
    Raises: ValueError without pyarrow, for a folder that holds something, for frames of several sizes; DamagedSet,
        DamagedEpisode.
    """
    check_installed()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"to={to} holds something; give a new or an empty folder")
    if data.card.image is None:
        raise ValueError(f"the frames of {data.folder} differ in size, and LeRobot has one: convert it with image=64")
    if not len(data):
        raise ValueError(f"{data.folder} holds no episode")
    with _whole(to) as folder:
        written = Written(folder=folder, task=data.card.tasks[0] if len(data.card.tasks) == 1 else data.card.name)
        for index in range(len(data)):
            episode = data.episode(index)
            if index == 0:
                written.features = features_of(episode)
            elif (other := features_of(episode)) != written.features:
                name = next(
                    name for name in {**other, **written.features} if other.get(name) != written.features.get(name)
                )
                raise DamagedSet(f"{data.folder / data.names[index]}: {name} is not as in {data.names[0]}")
            written.add(episode, fps=fps)
            on_progress(index + 1, len(data))
        written.finish(fps=fps)


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A folder beside `to` that becomes `to` when all is in it, and leaves nothing where something fails."""
    to.parent.mkdir(parents=True, exist_ok=True)
    folder = to.parent / f"{TEMPORARY}{to.name}"
    with becoming(to, folder), RunLock(folder):
        try:
            for left in folder.iterdir():  # of one that was killed
                if left.is_dir():
                    shutil.rmtree(left)
            yield folder
            (folder / "run.lock").unlink()
            folder.rename(to)
        except BaseException:
            shutil.rmtree(folder)
            raise
    fsync_folder(to.parent)


def features_of(episode: Episode) -> dict[str, dict[str, Any]]:
    """What info.json says of the columns of an episode."""
    height, width = episode.pixels.shape[2:]
    vectors = {
        "action": episode.action,
        "observation.state": episode.proprio,
        "observation.environment_state": episode.state,
    }
    shapes = {name: ("float32", [array.shape[1]]) for name, array in vectors.items() if array.shape[1]}
    shapes |= {"next.reward": ("float32", [1])} if episode.rewarded else {}
    shapes |= {f"next.{name}": ("bool", [1]) for name in ("done", "truncated", "success")}
    shapes |= {name: (dtype, [1]) for name, dtype in COUNTERS.items()}
    camera = {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    return {CAMERA: camera} | {
        name: {"dtype": dtype, "shape": shape, "names": None} for name, (dtype, shape) in shapes.items()
    }


def rows_of(episode: Episode, *, index: int, begin: int, fps: int) -> Rows:
    """All columns but the pictures; `begin`: rows that the episodes before have."""
    place = np.arange(len(episode) + 1)
    rows: Rows = {
        "action": again(episode.action),
        "observation.state": episode.proprio,
        "observation.environment_state": episode.state,
        "next.reward": np.append(episode.reward, np.float32(0)),
        "next.done": again(episode.terminated | episode.truncated),
        "next.truncated": again(episode.truncated),
        "next.success": again(episode.success),
        "timestamp": (place / fps).astype(np.float32),
        "frame_index": place,
        "episode_index": np.full_like(place, index),
        "index": begin + place,
        "task_index": np.zeros_like(place),
    }
    return rows


def again(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows, and the last of them again."""
    return np.concatenate([rows, rows[-1:]])


TASK_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ],
    "pandas_version": "2.2.0",
}
"""Tells pandas, with which LeRobot reads its tasks, that their names are the index."""


@dataclass(kw_only=True)
class Written:
    """A dataset as far as it is written.

    Attributes:
        folder: of the dataset.
        task: what was to be done, in words.
        features: columns, as info.json will say.
        episodes: rows of `meta/episodes`.
        stats: of all rows so far.
        rows: how many.
        files: how many parquet files of data are done.
    """

    folder: Path
    task: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    stats: dict[str, Stats] = field(default_factory=dict)
    rows: int = 0
    files: int = 0
    _open: tuple[io.BytesIO, Any] | None = None

    @property
    def place(self) -> dict[str, int]:
        """Of the file that is written now."""
        return {"chunk_index": self.files // FILES_OF_A_CHUNK, "file_index": self.files % FILES_OF_A_CHUNK}

    def add(self, episode: Episode, *, fps: int) -> None:
        """One episode, as a row group of the file that is open."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        index, length = len(self.episodes), len(episode) + 1
        rows = rows_of(episode, index=index, begin=self.rows, fps=fps)
        rows = {name: rows[name].astype(of["dtype"]) for name, of in self.features.items() if name != CAMERA}
        picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        pictures = pa.array([{"bytes": png(frame), "path": None} for frame in episode.pixels], picture)
        table = pa.table({CAMERA: pictures} | {name: column(values) for name, values in rows.items()})
        if self._open is None:
            stream = io.BytesIO()
            self._open = stream, pq.ParquetWriter(stream, table.schema)
        self._open[1].write_table(table)
        self.episodes.append(
            {"episode_index": index, "tasks": [self.task], "length": length}
            | {f"data/{name}": value for name, value in self.place.items()}
            | {"dataset_from_index": self.rows, "dataset_to_index": self.rows + length}
            | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        )
        self.rows += length
        for name, values in rows.items():
            self.stats.setdefault(name, Stats()).add(values)
        for frame in episode.pixels:
            self.stats.setdefault(CAMERA, Stats()).add(frame[None])
        if self._open[0].tell() >= FILE_BYTES:
            self._close()

    def _close(self) -> None:
        """Ends the file that is open, if any."""
        if self._open is not None:
            self._open[1].close()
            self._write(DATA_PATH.format(**self.place), self._open[0].getvalue())
            self._open, self.files = None, self.files + 1

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
        fsync_folder(path.parent)

    def finish(self, *, fps: int) -> None:
        """The last file of data, and `meta/`."""
        import pyarrow as pa

        self._close()
        self._write(f"{EPISODES}/chunk-000/file-000.parquet", parquet(pa.Table.from_pylist(self.episodes)))
        tasks = pa.table({"task_index": [0], "task": [self.task]}).replace_schema_metadata(
            {"pandas": json.dumps(TASK_INDEX)}
        )
        self._write("meta/tasks.parquet", parquet(tasks))
        stats = {name: one.said(image=name == CAMERA) for name, one in self.stats.items()}
        self._write("meta/stats.json", json.dumps(stats, indent=4).encode())
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.rows,
            "total_tasks": 1,
            "chunks_size": FILES_OF_A_CHUNK,
            "data_files_size_in_mb": FILE_BYTES // 2**20,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": self.features,
        }
        self._write(INFO, json.dumps(info, indent=4).encode())


def png(frame: NDArray[np.uint8]) -> bytes:
    """A frame [3, H, W] as a picture."""
    stream = io.BytesIO()
    Image.fromarray(frame.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()


def column(values: NDArray[Any]) -> Any:
    """[n] or [n, A] as LeRobot stores it: lists of a fixed size; those of one number as numbers."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.size > len(values) else flat


def parquet(table: Any) -> bytes:
    """A table as a file."""
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


@dataclass
class Stats:
    """Smallest, largest, mean and deviation of rows, of each number or of each colour of frames."""

    count: int = 0
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    total: Any = 0.0
    squares: Any = 0.0
    each: int = 1

    def add(self, rows: NDArray[Any]) -> None:
        """Rows [n], [n, A] or frames [n, 3, H, W]."""
        axes = (0, 2, 3) if rows.ndim == 4 else (0,)
        low, high = (np.atleast_1d(of(rows, axis=axes)).astype(np.float64) for of in (np.min, np.max))
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.total = self.total + np.atleast_1d(rows.sum(axis=axes, dtype=np.float64))
        self.squares = self.squares + np.atleast_1d(np.square(rows, dtype=np.float64).sum(axis=axes))
        self.count, self.each = self.count + len(rows), rows[0, 0].size if rows.ndim == 4 else 1

    def said(self, *, image: bool) -> dict[str, Any]:
        """As stats.json has them; of frames in [0, 1] and [3, 1, 1]."""
        mean = self.total / (self.count * self.each)
        std = np.sqrt(np.maximum(self.squares / (self.count * self.each) - mean**2, 0))
        numbers = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        shaped = {name: (v / 255)[:, None, None] if image else v for name, v in numbers.items()}
        return {name: value.tolist() for name, value in shaped.items()} | {"count": [self.count]}
