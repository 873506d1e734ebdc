"""Writes small datasets in LeRobot's layouts on disk, as its versions 2.1 and 3.0 write them."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CAMERA, FPS = "observation.images.top", 10
Episode = dict[str, Any]
"""`frames` u8 [L, H, W, 3], and under the names of features what else a row holds, [L, ...]."""


def png(frame: np.ndarray) -> dict[str, Any]:
    """A picture as a column of Hugging Face's `datasets` holds it."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def column(values: Any) -> Any:
    """A column as LeRobot stores it: lists of a fixed size; those of one number as numbers."""
    import pyarrow as pa

    if not isinstance(values, np.ndarray):
        return values
    if values.ndim == 2 and values.shape[1] > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values.reshape(-1) if values.ndim == 2 else values)


def table(episodes: Sequence[Episode], first: int, *, image: bool, begin: int = 0) -> Any:
    """The rows of some episodes; `first`: the number of the first, `begin`: of its first row."""
    import pyarrow as pa

    tables = []
    for index, one in enumerate(episodes, first):
        rows = len(one["frames"])
        members = {name: column(values) for name, values in one.items() if name != "frames"}
        members |= {CAMERA: pa.array([png(frame) for frame in one["frames"]])} if image else {}
        counters = {
            "timestamp": pa.array(np.arange(rows, dtype=np.float32) / FPS),
            "frame_index": pa.array(np.arange(rows)),
            "episode_index": pa.array(np.full(rows, index)),
            "index": pa.array(begin + np.arange(rows)),
            "task_index": pa.array(np.zeros(rows, np.int64)),
        }
        tables.append(pa.table(counters | members))
        begin += rows
    return pa.concat_tables(tables)


def encode(path: Path, frames: np.ndarray, *, fps: float = FPS) -> None:
    """A video without loss."""
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    made = ["-c:v", "libx264rgb", "-qp", "0", "-g", "2", "-pix_fmt", "rgb24", str(path)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, *made]
    subprocess.run(command, input=np.ascontiguousarray(frames).tobytes(), check=True)


def info(episodes: Sequence[Episode], version: str, *, image: bool, **other: Any) -> dict[str, Any]:
    """`meta/info.json`; `other` replaces fields."""
    frame = episodes[0]["frames"]
    features: dict[str, Any] = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in episodes[0].items()
        if name != "frames"
    }
    features[CAMERA] = {
        "dtype": "image" if image else "video",
        "shape": list(frame.shape[1:]),
        "names": ["height", "width", "channels"],
    }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    rows = sum(len(one["frames"]) for one in episodes)
    said = {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": rows,
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
    }
    if version == "v3.0":
        said["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        said["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    else:
        said["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        said["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    return said | ({"video_path": None} if image else {}) | other


def write(folder: Path, episodes: Sequence[Episode], version: str, *, image: bool, **other: Any) -> Path:
    """A whole dataset; `other` replaces fields of info.json."""
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info(episodes, version, image=image, **other), indent=4))
    (_write_3 if version == "v3.0" else _write_2)(folder, episodes, image)
    return folder


def _write_2(folder: Path, episodes: Sequence[Episode], image: bool) -> None:
    """One parquet file and one video for each episode."""
    import pyarrow.parquet as pq

    lines, begin = [], 0
    for index, one in enumerate(episodes):
        path = folder / "data" / "chunk-000" / f"episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table([one], index, image=image, begin=begin), path)
        if not image:
            encode(folder / "videos" / "chunk-000" / CAMERA / f"episode_{index:06d}.mp4", one["frames"])
        begin += len(one["frames"])
        lines.append({"episode_index": index, "tasks": ["push the block"], "length": len(one["frames"])})
    (folder / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "push the block"}\n')


def _write_3(folder: Path, episodes: Sequence[Episode], image: bool) -> None:
    """All episodes but the last in one file of each kind, the last in the next."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, begin, meta = [episodes[:-1], episodes[-1:]], 0, []
    for number, of_file in enumerate(files):
        first = number * (len(episodes) - 1)
        path = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(of_file, first, image=image, begin=begin), path, row_group_size=7)
        if not image:
            encode(
                folder / "videos" / CAMERA / "chunk-000" / f"file-{number:03d}.mp4",
                np.concatenate([one["frames"] for one in of_file]),
            )
        shown = 0
        for index, one in enumerate(of_file, first):
            rows = len(one["frames"])
            place = {"chunk_index": 0, "file_index": number}
            line = {"episode_index": index, "tasks": ["push the block"], "length": rows}
            line |= {f"data/{name}": value for name, value in place.items()}
            line |= {"dataset_from_index": begin, "dataset_to_index": begin + rows}
            if not image:
                line |= {f"videos/{CAMERA}/{name}": value for name, value in place.items()}
                line |= {f"videos/{CAMERA}/from_timestamp": shown / FPS}
                line |= {f"videos/{CAMERA}/to_timestamp": (shown + rows) / FPS}
            meta.append(line)
            begin, shown = begin + rows, shown + rows
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(meta), path)
    pq.write_table(pa.table({"task_index": [0], "task": ["push the block"]}), folder / "meta" / "tasks.parquet")
