"""RoboNet-like HDF5 archives: one trajectory each, through h5py where it is installed.

`env/cam<n>_video` holds `frames` (an mp4 in bytes, or an array) or `frame0`, `frame1`, ... (pictures in bytes);
`policy/actions` [L - 1, A], `env/state` [L, S]; `metadata` has the attributes `primitives`, `low_bound`, `high_bound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, check_frames, collected, frames_of, rows_of
from mbrl.data.convert.ffmpeg import check_installed, decoded
from mbrl.data.convert.hdf5 import archives, array, group, member, opened, pictures
from mbrl.data.convert.pictures import picture

WIDTH = 5
"""Numbers of an action: three of place, one of turn, one of the gripper."""


def robonet(folder: Path, *, camera: int) -> Items:
    """Every .hdf5 of `folder`, by name.

    Raises: ValueError without h5py, if there is none, or without ffmpeg where the first one holds a video.
    """
    paths = archives(folder)
    dimensions = 0
    with suppress(Unreadable), opened(paths[0]) as file:  # (what cannot be read is told as an item)
        dimensions = len(getattr(file.get(f"env/cam{camera}_video/frames"), "shape", ()))
    if dimensions == 1:
        check_installed()
    return [Item(path.name, lambda path=path: read(path, camera=camera)) for path in paths]  # type: ignore[misc]


def read(path: Path, *, camera: int) -> Clip:
    """One file. Raises: Unreadable."""
    with opened(path) as file:
        return trajectory(file, camera=camera)


def trajectory(file: Any, *, camera: int) -> Clip:
    """One trajectory of anything that is indexed like an HDF5 file. Raises: Unreadable."""
    name = f"cam{camera}_video"
    env = group(member(file, "env", what="it"), what="env", wanted=name)
    metadata = dict(file["metadata"].attrs) if "metadata" in file else {}
    frames = in_rgb(video(group(member(env, name, what="env"), what=f"env/{name}", wanted="frames")), metadata)
    policy = group(file.get("policy", {}), what="policy", wanted="actions")
    if "actions" not in policy:
        return Clip(frames=frames)
    actions = array(policy["actions"], what="policy/actions")
    state = array(env["state"], what="env/state") if "state" in env else None
    lengths = {"frames": len(frames), "policy/actions": len(actions) + 1}
    lengths |= {} if state is None else {"env/state": len(state)}
    length = min(lengths.values())
    frames, actions = frames[:length], actions[: length - 1]
    check_frames(frames.shape, frames.dtype, what="frames", least=2)
    longer = [name for name, found in lengths.items() if found > length + (name == "policy/actions")]
    return Clip(
        frames=frames,
        action=rows_of(five(actions, state, metadata), length, what="policy/actions"),
        note=f"cut to {length} frames, its shortest part; {' and '.join(longer)} went on" if longer else "",
    )


def in_rgb(frames: NDArray[np.uint8], metadata: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Frames whose `image_format` may be BGR, whatever they are packed in (as RoboNet's own hdf5_loader reads them).

    Raises: Unreadable for another format.
    """
    said = np.asarray(metadata.get("image_format", "RGB")).reshape(-1)[0]
    order = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    if order not in ("RGB", "BGR"):
        raise Unreadable(f"image_format must be RGB or BGR (got {order})")
    return frames if order == "RGB" else np.ascontiguousarray(frames[..., ::-1])


def video(group: Any) -> NDArray[np.uint8]:
    """Frames of one camera."""
    if "frames" in group:
        held = group["frames"]
        if len(getattr(held, "shape", ())) == 4:
            return frames_of(pictures(held, what="frames"), what="frames")
        return collected(decoded(array(held, what="frames").astype(np.uint8).tobytes()), what="frames")
    names = [f"frame{place}" for place in range(len(group)) if f"frame{place}" in group]
    shown = (picture(array(group[name], what=name).astype(np.uint8).tobytes()) for name in names)
    return collected(shown, what="frames")


def five(actions: NDArray, state: NDArray | None, metadata: Mapping[str, Any]) -> NDArray:
    """Actions of 5 numbers (spec 10.6): wider ones are cut, narrower ones filled with zeros.

    With a gripper that closed by itself (`autograsp`) 4 numbers get a fifth: the upper or lower bound of the gripper,
    as the next state's last number is above or below their middle. Raises: Unreadable for 4 numbers without that.
    """
    if actions.ndim != 2:
        raise Unreadable(f"policy/actions must be [L, A] (got {list(actions.shape)})")
    rows, width = actions.shape
    if width == WIDTH - 1:
        if "autograsp" not in str(metadata.get("primitives", "")):
            raise Unreadable("actions have 4 numbers and no autograsp says what the gripper did")
        if state is None or len(state) < rows + 1 or not {"low_bound", "high_bound"} <= metadata.keys():
            raise Unreadable("autograsp needs env/state and the bounds of the gripper, which are missing")
        low, high = (float(np.asarray(metadata[name]).reshape(-1)[-1]) for name in ("low_bound", "high_bound"))
        gripper = np.where(state[1 : rows + 1, -1] > (low + high) / 2, high, low)
        return np.concatenate([actions, gripper[:, None]], axis=1)
    filled = np.zeros((rows, max(0, WIDTH - width)))
    return np.concatenate([actions[:, :WIDTH], filled], axis=1)
