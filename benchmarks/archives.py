"""Small archives in the layouts that `mbrl data convert` reads, and what may be wrong in their arrays and columns.

For `python -m benchmarks.fuzz`, which mutates them. Needs h5py, pyarrow and imageio-ffmpeg.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH, SIDE = 10, 16
WORDS = {
    "drqv2": ("format=drqv2",),
    "tdmpc2": ("format=drqv2", "key=obs"),
    "dreamerv3": ("format=dreamerv3",),
    "robomimic": ("format=robomimic", "key=agentview_image"),
    "lerobot-2": ("format=lerobot",),
    "lerobot-3": ("format=lerobot",),
    "video": ("format=video",),
}
"""The archives, and the words that convert each."""


def write(folder: Path) -> None:
    """Writes each of `WORDS` under its name."""
    frames = np.random.default_rng(0).integers(0, 256, (LENGTH, SIDE, SIDE, 3), np.uint8)
    action = np.random.default_rng(1).uniform(-1, 1, (LENGTH, 2)).astype(np.float32)
    reward = np.arange(LENGTH, dtype=np.float32)
    for name in WORDS:
        (folder / name).mkdir(parents=True)
    for number in (0, 1):
        stacked, led = _stacked(frames.transpose(0, 3, 1, 2)), action.copy()
        led[0] = 0
        ends: dict[str, Any] = {"reward": reward[:, None], "discount": np.ones((LENGTH, 1), np.float32)}
        np.savez(folder / "drqv2" / f"ep-{number}.npz", observation=stacked, action=led, **ends)
        led[0] = np.nan
        np.savez(folder / "tdmpc2" / f"{number}.npz", obs=stacked, action=led, reward=reward)
    for name, following, begins in (("aa", "bb", [0, 6]), ("bb", "0", [4])):
        first = np.isin(np.arange(LENGTH), begins)
        flags: dict[str, Any] = {
            "is_first": first,
            "is_last": np.roll(first, -1),
            "is_terminal": np.zeros(LENGTH, bool),
        }
        chunk = folder / "dreamerv3" / f"20260101T00000{len(begins)}-{name}-{following}-{LENGTH}.npz"
        np.savez(chunk, image=frames, action=action, reward=reward, **flags)
    _robomimic(folder / "robomimic" / "demo.hdf5", frames, action, reward)
    _lerobot(folder, frames, action, reward)
    import imageio.v3 as imageio

    imageio.imwrite(folder / "video" / "clip.mp4", frames.repeat(2, 1).repeat(2, 2), plugin="FFMPEG", fps=10)


def _stacked(frames: NDArray[Any]) -> NDArray[Any]:
    """Three frames, oldest first, in each row."""
    padded = np.concatenate([frames[:1], frames[:1], frames])
    return np.concatenate([padded[place : place + len(frames)] for place in range(3)], axis=1)


def _robomimic(path: Path, frames: NDArray[Any], action: NDArray[Any], reward: NDArray[Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for demo in ("demo_0", "demo_1"):
            group = file.create_group(f"data/{demo}")
            group["actions"], group["rewards"] = action.astype(np.float64), reward
            group.create_dataset("obs/agentview_image", data=frames, compression="gzip", chunks=(2, SIDE, SIDE, 3))
            group["obs/robot0_eef_pos"] = np.zeros((LENGTH, 3))


def _lerobot(folder: Path, frames: NDArray[Any], action: NDArray[Any], reward: NDArray[Any]) -> None:
    """Versions 2.1 and 3.0, with pictures in the rows: one parquet file for each episode, or one for all."""
    import imageio.v3 as imageio
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{
        "observation.image": {"bytes": imageio.imwrite("<bytes>", frame, extension=".png"), "path": None},
        "action": action[place].tolist(), "next.reward": float(reward[place]), "next.done": place == LENGTH - 1,
        "timestamp": place / 10, "frame_index": place, "index": place, "task_index": 0,
    } for place, frame in enumerate(frames)]  # fmt: skip
    episodes = [[row | {"episode_index": number} for row in rows] for number in (0, 1)]
    features = {name: {"dtype": "float32", "shape": [1]} for name in rows[0] if "image" not in name}
    features |= {"observation.image": {"dtype": "image", "shape": [SIDE, SIDE, 3]}}
    of_2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    of_3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    for version, path in (("v2.1", of_2), ("v3.0", of_3)):
        base = folder / f"lerobot-{version[1]}"
        for place in (base / "meta" / "episodes", base / "data" / "chunk-000"):
            place.mkdir(parents=True)
        said = {"codebase_version": version, "fps": 10, "chunks_size": 1000, "features": features, "data_path": path}
        (base / "meta" / "info.json").write_text(json.dumps(said | {"video_path": None}))
    base = folder / "lerobot-2"
    listing: list[dict[str, Any]] = [
        {"episode_index": number, "tasks": ["push"], "length": LENGTH} for number in (0, 1)
    ]
    (base / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in listing))
    for number, episode in enumerate(episodes):
        pq.write_table(pa.Table.from_pylist(episode), base / f"data/chunk-000/episode_{number:06d}.parquet")
    base = folder / "lerobot-3"
    listing = [line | {"data/chunk_index": 0, "data/file_index": 0} for line in listing]
    pq.write_table(pa.Table.from_pylist(episodes[0] + episodes[1]), base / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(listing), base / "meta/episodes/file-000.parquet")


# -- mutations ---------------------------------------------------------------------------------------------------------

OTHER: dict[str, Callable[[NDArray[Any]], Any]] = {
    "shorter": lambda a: a[:-1],
    "empty": lambda a: a[:0],
    "one dimension less": lambda a: a[0],
    "one dimension more": lambda a: a[None],
    "turned": lambda a: a.T,
    "of 64 bits": lambda a: a.astype(np.float64),
    "not finite": lambda a: np.full(a.shape, np.nan),
    "huge": lambda a: np.full(a.shape, 1e300),
    "complex": lambda a: a.astype(complex),
    "text": lambda a: a.astype("S8"),
    "objects": lambda a: a.astype(object),
    "a number": lambda a: np.float32(1),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "records": lambda a: np.zeros(len(a), [("x", "f4"), ("y", "i8")]),
}
"""Another array in the place of one."""


def rearrayed(path: Path, random: Random) -> str:
    """One array of an npz is another, or has another name."""
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    name, kind = random.choice(sorted(arrays)), random.choice(("renamed", *OTHER))
    array = arrays.pop(name)
    if kind == "renamed":
        arrays[name + random.choice(("s", "/..", "é"))] = array
    else:
        arrays[name] = OTHER[kind](np.atleast_1d(array))
    np.savez(path, **arrays)
    return f"{name} {kind}"


def relinked(path: Path, random: Random) -> str:
    """One member of an HDF5 file is another array, a link, or says that it is larger than it is."""
    import h5py

    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name, kind = (
            random.choice(sorted(names)),
            random.choice(("link", "circle", "outside", "large", "group", *OTHER)),
        )
        array = np.asarray(file[name]) if isinstance(file[name], h5py.Dataset) else np.zeros((LENGTH, 2))
        del file[name]
        if kind in ("link", "circle"):
            file[name] = h5py.SoftLink("/nowhere" if kind == "link" else "/data")
        elif kind == "outside":
            file[name] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "large":
            file.create_dataset(name, (2 ** random.randrange(20, 45), 64), np.uint8, chunks=(64, 64))
        elif kind == "group":
            file.create_group(name)
        else:
            try:
                file[name] = OTHER[kind](array)
            except TypeError:  # HDF5 has no such type
                file[name] = 0
    return f"{name} {kind}"


def recolumned(path: Path, random: Random) -> str:
    """One column of a parquet file is another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    place, rows = random.randrange(table.num_columns), table.num_rows
    columns: dict[str, Callable[[], Any]] = {
        "nulls": lambda: pa.nulls(rows),
        "text": lambda: pa.array(["x"] * rows),
        "negative": lambda: pa.array([-1] * rows),
        "huge": lambda: pa.array([2**62] * rows),
        "not finite": lambda: pa.array([float("nan")] * rows),
        "lists": lambda: pa.array([[1.0] * (row % 3) for row in range(rows)]),
        "bytes": lambda: pa.array([b"\x89PNG\r\n"] * rows),
        "other rows": lambda: table.column(place).take(pa.array([random.randrange(rows) for _ in range(rows)])),
    }
    name, kind = table.column_names[place], random.choice(("missing", "twice", *columns))
    if kind == "missing":
        table = table.remove_column(place)
    elif kind == "twice":
        table = table.append_column(name, table.column(place))
    else:
        table = table.set_column(place, name, columns[kind]())
    pq.write_table(table, path)
    return f"{name} {kind}"
