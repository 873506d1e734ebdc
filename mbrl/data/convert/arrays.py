"""Episodes in npz files, one each: frames under a key of the data set, perhaps actions and rewards; and DrQ-v2's."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import (
    MEANS,
    Clip,
    Item,
    Items,
    UnclearRow,
    Unreadable,
    action_row,
    frames_of,
    reward_row,
    rows_of,
)
from mbrl.data.convert.files import FAILURES, listed
from mbrl.replay.episode import MAX_BYTES

Arrays = Mapping[str, Any]
"""The arrays of an npz by name, each read when it is asked for."""
Made = TypeVar("Made")
MARKS = {"is_first": 0, "is_last": -1, "is_terminal": -1}
"""Flags of frames, and the only one of an episode that they may mark."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Under which names an episode's arrays lie.

    Attributes:
        image: its frames.
        action: its actions; empty for none; None: `action` where there is such a key.
        reward: its rewards; empty for none.
        row: with as many rows as frames, whether row i was taken `from` frame i or led `into` it; None: as is usual
            in the format, where nothing speaks against it.
        reward_row: whether reward i followed `from` frame i or came with it (`into`); None: as actions that led `into`.
    """

    image: str
    action: str | None = None
    reward: str = ""
    row: str | None = None
    reward_row: str | None = None


def published_npz(folder: Path, keys: Keys) -> Items:
    """Every npz of `folder`, by name. Raises: ValueError if there is none."""
    return _items(folder, lambda arrays: clip_of(arrays, keys))


def drqv2(folder: Path, keys: Keys) -> Items:
    """Every npz of `folder`, by name, as DrQ-v2 stores episodes. Raises: ValueError if there is none."""
    return _items(folder, lambda arrays: unstacked(arrays, keys))


def _items(folder: Path, clip: Callable[[Arrays], Clip]) -> Items:
    return [Item(path.name, lambda path=path: read(path, clip)) for path in npz_in(folder)]  # type: ignore[misc]


def npz_in(folder: Path) -> list[Path]:
    """Every npz of `folder`, in natural order. Raises: ValueError if there is none, and what to do with pickles."""
    paths = listed(folder, lambda path: path.suffix == ".npz")
    if not paths and (pickles := listed(folder, lambda path: path.suffix in PICKLES)):
        raise ValueError(
            f"from={folder} holds pickles ({pickles[0].name}), which may run code when they are opened, and no .npz "
            "file: if you trust them, store each episode with numpy.savez (docs/data.md, Converting, has the lines)"
        )
    if not paths:
        raise ValueError(f"from={folder} holds no .npz file")
    return paths


def read(path: Path, make: Callable[[Arrays], Made]) -> Made:
    """What `make` makes of the arrays in a file. Raises: Unreadable."""
    try:
        with zipfile.ZipFile(path) as archive:  # before numpy allocates anything
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise Unreadable(f"it unpacks to more than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as file:
            return make(file)
    except (Unreadable, UnclearRow):
        raise
    except FAILURES as error:
        raise Unreadable(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error


def held(arrays: Arrays, key: str) -> NDArray[Any]:
    """The numbers of this name. Raises: Unreadable naming those that there are, or what it is instead."""
    if key not in arrays:
        raise Unreadable(f"it has no key {key}; it has {', '.join(sorted(arrays)) or 'none'}")
    array = np.asarray(arrays[key])
    if array.dtype.kind not in "uifb":
        raise Unreadable(f"{key} must be an array of numbers (got {array.dtype} {list(array.shape)})")
    return array


def clip_of(arrays: Arrays, keys: Keys) -> Clip:
    """An episode as `keys` say. Raises: Unreadable; UnclearRow."""
    return _clip(arrays, keys, frames_of(held(arrays, keys.image), what=keys.image), usual="from")


DRQV2 = Keys(image="observation", action="action", reward="reward")


def unstacked(arrays: Arrays, keys: Keys = DRQV2) -> Clip:
    """An episode as DrQ-v2's replay stores it, of which the paper's demonstrations are, and as TD-MPC2's holds it.

    The frames (there `observation`, here `obs`) u8 [L, 3 n, H, W]: the n newest, oldest first, at the beginning the
    first one repeated. Row i of `action` [L, A], `reward` and `discount` came with observation i, so the first is a
    filler (facebookresearch/drqv2, `ExtendedTimeStepWrapper` and `FrameStackWrapper` in dmc.py; nicklashansen/tdmpc2,
    `to_td` in online_trainer.py).
    Raises: Unreadable; UnclearRow where no filler shows that it is so.
    """
    key, stacked = keys.image, held(arrays, keys.image)
    if stacked.dtype != np.uint8 or stacked.ndim != 4 or stacked.shape[1] % 3 or not stacked.shape[1]:
        raise Unreadable(f"{key} must be uint8 [L, 3 n, H, W] (got {stacked.dtype} {list(stacked.shape)})")
    if (stacked[1:, :-3] != stacked[:-1, 3:]).any():
        raise Unreadable(f"{key} is no stack of frames, oldest first: what follows does not repeat what was")
    return _clip(arrays, keys, frames_of(stacked[:, -3:].transpose(0, 2, 3, 1), what=key), usual="into")


def _clip(arrays: Arrays, keys: Keys, frames: NDArray[np.uint8], *, usual: str) -> Clip:
    """The frames and what belongs to them; `usual`: which way actions lie in files of this kind."""
    count = len(frames)
    marks = [name for name in ("is_first", "is_last") if name in arrays]
    for name in marks:
        marked(arrays, name, count)
    taken = ("action" if "action" in arrays else "") if keys.action is None else keys.action
    key = {"action": taken, "reward": keys.reward}
    rows = {part: held(arrays, name) for part, name in key.items() if name}
    if usual == "into" and len({len(array) for array in rows.values()}) > 1:
        told = " and ".join(f"{key[part]} {list(array.shape)}" for part, array in rows.items())
        raise Unreadable(f"{told} must have equally many rows: which one is missing cannot be told")
    said = {"action": keys.row, "reward": keys.reward_row}
    row = {"action": said["action"] or usual, "reward": said["reward"] or usual}
    if key["action"] and not said["action"]:
        first = "is_first" in marks
        row["action"] = action_row(rows["action"], count, what=key["action"], usual=usual, is_first=first)
    if key["reward"] and not said["reward"]:
        known = row["action"] if key["action"] else said["action"]
        row["reward"] = reward_row(rows["reward"], count, what=key["reward"], action=known)
    steps = {part: rows_of(rows[part], count, what=key[part], row=row[part]) for part in rows}
    if "action" in steps and steps["action"].ndim != 2:
        raise Unreadable(f"{key['action']} must be [L, A] (got {list(rows['action'].shape)})")
    read = {keys.image, *marks, *key.values(), *(("is_terminal", "discount") if keys.reward else ())}
    unread = ", ".join(sorted(set(arrays) - read))
    notes = [
        f"{part}_row={row[part]}{'' if said[part] else ' assumed'}: {MEANS[part, row[part]].format(key[part])}"
        for part in rows
        if len(rows[part]) == count
    ]
    return Clip(
        frames=frames,
        action=steps.get("action"),
        reward=one_a_step(steps["reward"], what=keys.reward) if keys.reward else None,
        terminated=bool(keys.reward) and ends(arrays, count, row=row["reward"], rows=len(rows["reward"])),
        note="; ".join([*notes, *([f"not read: {unread}"] if unread else [])]),
    )


def one_a_step(numbers: NDArray[np.float32], *, what: str) -> NDArray[np.float32]:
    """[L] or [L, 1] as [L]. Raises: Unreadable."""
    if numbers.shape != (len(numbers),) and numbers.shape != (len(numbers), 1):
        raise Unreadable(f"{what} must have one number a row (got {list(numbers.shape)})")
    return numbers.reshape(-1)


def marked(arrays: Arrays, name: str, frames: int) -> bool:
    """Whether a flag of frames (`MARKS`) marks where it may. Raises: Unreadable if it marks other frames."""
    flags = held(arrays, name)
    if flags.ndim < 1 or len(flags) != frames:
        raise Unreadable(f"{name} must have {frames} rows, as there are {frames} frames (got {list(flags.shape)})")
    places = np.flatnonzero(one_a_step(flags, what=name)).tolist()
    if wrong := [place for place in places if place != MARKS[name] % frames]:
        if name == "is_terminal":
            raise Unreadable(f"is_terminal marks row {wrong[0]}, and the episode goes on after it")
        raise Unreadable(f"it holds several episodes ({name} marks row {wrong[0]} too); chunks of DreamerV3's "
                         "replay are format=dreamerv3")  # fmt: skip
    return bool(places)


def ends(arrays: Arrays, frames: int, *, row: str, rows: int) -> bool:
    """Whether an episode says that its task ended with it: by `is_terminal`, or by a last `discount` of 0.

    Args:
        row: which way the rows of `discount` lie, as those of rewards.
        rows: how many rewards there are.
    Raises: Unreadable where it says so before its last frame.
    """
    ended = False
    if "discount" in arrays:
        discount = held(arrays, "discount")
        one_a_step(rows_of(discount, frames, what="discount", row=row), what="discount")
        if len(discount) != rows:
            raise Unreadable(f"discount must have {rows} rows, as there are {rows} rewards (got {len(discount)})")
        filled = row if rows == frames else ""  # whether the first row, or the last, belongs to no step
        zeros = [place for place in np.flatnonzero(discount.reshape(-1) == 0).tolist() if place or filled != "into"]
        if zeros and zeros[0] < len(discount) - 1 - (filled == "from"):
            raise Unreadable(f"discount is 0 in row {zeros[0]}, and the episode goes on after it")
        ended = bool(zeros)
    return marked(arrays, "is_terminal", frames) if "is_terminal" in arrays else ended
