"""Episodes in npz files, one each: frames under a key of the data set, perhaps actions and rewards; and DrQ-v2's."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import Clip, Item, Items, UnclearRow, Unreadable, check_row, frames_of, rows_of
from mbrl.data.convert.files import FAILURES, listed
from mbrl.replay.episode import MAX_BYTES

Arrays = Mapping[str, Any]
"""The arrays of an npz by name, each read when it is asked for."""
Made = TypeVar("Made")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Under which names an episode's arrays lie.

    Attributes:
        image: its frames.
        action: its actions; empty for none; None: `action` where there is such a key.
        reward: its rewards; empty for none.
        row: with as many rows as frames, whether row i was taken `from` frame i or led `into` it; None: as nothing
            speaks against `from`.
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


def drqv2(folder: Path, *, key: str) -> Items:
    """Every npz of `folder`, by name, as DrQ-v2 stores episodes. Raises: ValueError if there is none."""
    return _items(folder, lambda arrays: unstacked(arrays, key))


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
    if "is_first" in arrays and len(begins := np.flatnonzero(np.asarray(arrays["is_first"]).reshape(-1)[1:]) + 1):
        raise Unreadable(f"it holds several episodes (is_first marks row {begins[0]} too); chunks of DreamerV3's "
                         "replay are format=dreamerv3")  # fmt: skip
    frames = frames_of(held(arrays, keys.image), what=keys.image)
    action_key = keys.action if keys.action is not None else "action" if "action" in arrays else ""
    rows = {key: held(arrays, key) for key in (action_key, keys.reward) if key}
    alignment = {action_key: keys.row, keys.reward: keys.reward_row or ("into" if keys.row == "into" else None)}
    if action_key and keys.row is None:
        check_row(rows[action_key], len(frames), what=action_key, is_first="is_first" in arrays)
    if keys.reward and alignment[keys.reward] is None and len(rows[keys.reward]) == len(frames):
        raise UnclearRow(
            f"reward_row= is missing: {keys.reward} has as many rows as there are frames; write reward_row=into if "
            "reward i came with frame i, reward_row=from if it followed the action taken there"
        )
    numbers = {key: rows_of(rows[key], len(frames), what=key, row=alignment[key] or "from") for key in rows}
    action = numbers.get(action_key)
    if action is not None and action.ndim != 2:
        raise Unreadable(f"{action_key} must be [L, A] (got {list(action.shape)})")
    unread = sorted(set(arrays) - {keys.image, *rows})
    return Clip(
        frames=frames,
        action=action,
        reward=one_a_step(numbers[keys.reward], what=keys.reward) if keys.reward else None,
        terminated=bool(keys.reward) and ends(arrays),
        note=f"not read: {', '.join(unread)}" if unread else "",
    )


def unstacked(arrays: Arrays, key: str = "observation") -> Clip:
    """An episode as DrQ-v2's replay stores it, of which the paper's demonstrations are, and as TD-MPC2's holds it.

    `key` (there `observation`, here `obs`) u8 [L, 3 n, H, W]: the n newest frames, oldest first, at the beginning the
    first one repeated. Row i of `action` [L, A], `reward` and `discount` came with observation i, so the first is a
    filler (facebookresearch/drqv2, `ExtendedTimeStepWrapper` and `FrameStackWrapper` in dmc.py; nicklashansen/tdmpc2,
    `to_td` in online_trainer.py).
    Raises: Unreadable.
    """
    stacked = held(arrays, key)
    if stacked.dtype != np.uint8 or stacked.ndim != 4 or stacked.shape[1] % 3 or not stacked.shape[1]:
        raise Unreadable(f"{key} must be uint8 [L, 3 n, H, W] (got {stacked.dtype} {list(stacked.shape)})")
    if (stacked[1:, :-3] != stacked[:-1, 3:]).any():
        raise Unreadable(f"{key} is no stack of frames, oldest first: what follows does not repeat what was")
    frames = frames_of(stacked[:, -3:].transpose(0, 2, 3, 1), what=key)
    action, reward = (rows_of(held(arrays, name), len(frames), what=name, row="into") for name in ("action", "reward"))
    if action.ndim != 2:
        raise Unreadable(f"action must be [L, A] (got {list(action.shape)})")
    return Clip(frames=frames, action=action, reward=one_a_step(reward, what="reward"), terminated=ends(arrays))


def one_a_step(numbers: NDArray[np.float32], *, what: str) -> NDArray[np.float32]:
    """[L] or [L, 1] as [L]. Raises: Unreadable."""
    if numbers.shape != (len(numbers),) and numbers.shape != (len(numbers), 1):
        raise Unreadable(f"{what} must have one number a row (got {list(numbers.shape)})")
    return numbers.reshape(-1)


def ends(arrays: Arrays) -> bool:
    """Whether an episode says that its task ended with it: by `is_terminal`, or by a last `discount` of 0."""
    if "is_terminal" in arrays:
        return bool(np.asarray(arrays["is_terminal"]).reshape(-1)[-1:].any())
    return "discount" in arrays and bool((np.asarray(arrays["discount"]).reshape(-1)[-1:] == 0).any())
