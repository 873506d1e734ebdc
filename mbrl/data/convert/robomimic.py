"""Demonstrations in the HDF5 layout of robomimic, which LIBERO and MimicGen write too: many in one file.

Each group in `data`, called `demo_<i>`, holds `actions` [L, A], `rewards` [L] and `obs/<key>` [L, H, W, 3]: action i
was taken in frame i, and reward i followed it. `next_obs/<key>` is `obs/<key>` one step later; its last frame is the
only one that `obs` lacks (robomimic's documentation, "Dataset Structure").
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.arrays import one_a_step
from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, frames_of, lost, raising, rows_of
from mbrl.data.convert.files import natural
from mbrl.data.convert.hdf5 import archives, array, group, member, opened, pictures

DEMO = re.compile(r"demo_\d+")
"""How robomimic calls a demonstration; one of another name is read too."""


def robomimic(folder: Path, *, key: str) -> Items:
    """Every demonstration of every .hdf5 of `folder`, in natural order of files and demonstrations.

    Args:
        key: of the frames in `obs`; empty: refused with the keys that there are.
    Raises: ValueError without h5py, without a file, or without a key.
    """
    items: list[Item] = []
    for path in archives(folder):
        try:
            names = demos(path, needs_key=not key)
        except Unreadable as error:
            items.append(Item(path.name, raising(error)))  # one row of the table for the whole file
            continue
        items += [Item(f"{path.name}/{name}", lambda path=path, name=name: read(path, name, key)) for name in names]  # type: ignore[misc]
    return items


def demos(path: Path, *, needs_key: bool) -> list[str]:
    """All that lies in `data`. Raises: Unreadable; ValueError that names the keys where one `needs_key`."""
    each = "one group for each demonstration (demo_0, ...)"
    with opened(path) as file:
        data = group(member(file, "data", what="it"), what="data", wanted=each)
        names = sorted(data, key=lambda name: natural(Path(name)))
        if not names:
            raise Unreadable(f"its group data is empty: it has {each}")
        obs = member(data[names[0]], "obs", what=f"data/{names[0]}") if needs_key else {}
        frames = [name for name in obs if len(getattr(obs[name], "shape", ())) == 4]
    if needs_key:
        raise ValueError(f"key= is missing: which frames of obs; {path.name} has {', '.join(sorted(frames)) or 'none'}")
    return names


def read(path: Path, name: str, key: str) -> Clip:
    """One demonstration. Raises: Unreadable."""
    with opened(path) as file:
        clip = demonstration(group(file["data"][name], what=f"data/{name}", wanted="obs"), key)
    return clip if DEMO.fullmatch(name) else replace(clip, note=f"it is not called demo_<i>; {clip.note}")


def demonstration(demo: Any, key: str) -> Clip:
    """One demonstration of anything that is indexed like a group of an HDF5 file. Raises: Unreadable."""
    obs = pictures(member(member(demo, "obs", what="it"), key, what="obs"), what=f"obs/{key}")
    steps = {"actions": array(member(demo, "actions", what="it"), what="actions")}
    if "rewards" in demo:
        steps["rewards"] = array(demo["rewards"], what="rewards")
    for name, rows in steps.items():
        if len(rows) != len(obs):
            raise Unreadable(f"{name} must have as many rows as obs/{key} has frames (got {len(rows)} and {len(obs)})")
    after = group(demo.get("next_obs", {}), what="next_obs", wanted=key)
    ends = key in after
    frames = frames_of(followed(obs, pictures(after[key], what=f"next_obs/{key}")) if ends else obs, what=f"obs/{key}")
    numbers = {name: rows_of(rows, len(frames), what=name) for name, rows in steps.items()}
    if numbers["actions"].ndim != 2:
        raise Unreadable(f"actions must be [L, A] (got {list(steps['actions'].shape)})")
    unread = [name for name in demo if name not in (*steps, "obs", "next_obs")]
    unread += [f"obs/{name}" for name in demo["obs"] if name != key]
    return Clip(
        frames=frames,
        action=numbers["actions"],
        reward=one_a_step(numbers["rewards"], what="rewards") if "rewards" in numbers else None,
        note=("" if ends else lost(" and ".join(steps))) + f"not read: {', '.join(sorted(unread)) or 'nothing'}",
    )


def followed(obs: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """The frames [L, ...] and the one after the last [L + 1, ...]. Raises: Unreadable if they do not follow."""
    same = after.shape == obs.shape and after.dtype == obs.dtype
    if not same or any((one != other).any() for one, other in zip(after[:-1], obs[1:], strict=True)):
        raise Unreadable("next_obs does not repeat obs one step later: its frames are not consecutive")
    return np.concatenate([obs, after[-1:]])
