"""What every reader gives: a clip of frames with or without actions, checked before anything is made of it.

Knows arrays only: no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.data.augment import resized
from mbrl.replay.episode import MAX_BYTES, MAX_DECISIONS, MAX_SIDE, Episode


class Unreadable(ValueError):
    """An item of a foreign archive that must not be used; the message says why."""


class UnclearRow(ValueError):
    """Whether an action was taken from its frame or led into it cannot be told: who converts must say."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A foreign episode.

    Attributes:
        frames: u8 [L, H, W, 3].
        action: f32 [L - 1, A], row i leads from frame i to the next; None where there are none.
        reward: f32 [L - 1]; None where they are unknown.
        success: bool [L - 1]; None where nobody says.
        terminated: whether the task ended with the last frame; otherwise the episode was cut there.
        note: what a person should know of how it was read; empty for nothing.
    """

    frames: NDArray[np.uint8]
    action: NDArray[np.float32] | None = None
    reward: NDArray[np.float32] | None = None
    success: NDArray[np.bool_] | None = None
    terminated: bool = False
    note: str = ""


@dataclass(frozen=True)
class Item:
    """One episode of an archive: what it is called there, and how it is read. Raises on reading: Unreadable."""

    name: str
    read: Callable[[], Clip]


Items = Iterable[Item]
"""A reader's whole answer, in an order that is the same each time."""


def raising(error: Exception) -> Callable[[], Clip]:
    """What reads an item that was found to be unreadable before: raises Unreadable with the same words."""

    def read() -> Clip:
        raise Unreadable(str(error))

    return read


def frames_of(array: Any, *, what: str) -> NDArray[np.uint8]:
    """Frames u8 [L, H, W, 3] from numbers of any kind that mean the same: 0..255, or real ones in [0, 1].

    Every reader's frames come through here, an episode at a time. Real numbers of which none is above 1 are in [0, 1].
    Whole numbers of which the largest in the whole episode is 1 may be black and white, or nearly black: refused.
    Raises: Unreadable.
    """
    frames = np.asarray(array)
    check_frames(frames.shape, frames.dtype, what=what, least=2)
    low, high, real = float(frames.min()), float(frames.max()), frames.dtype.kind == "f"
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 255):
        raise Unreadable(f"{what} must be within 0..255 (got {low} to {high})")
    if high == 1 and not real:
        raise Unreadable(
            f"{what} holds 0 and 1 only as {frames.dtype}, which may be black and white, or nearly black: store white "
            "as 255, or all as real numbers; damaged=skip goes on without it"
        )
    if frames.dtype == np.uint8:
        return frames
    scale, found = 255.0 if real and high <= 1 else 1.0, np.empty(frames.shape, np.uint8)
    for place, frame in enumerate(frames):  # one by one: numbers of 64 bits are held once
        exact = frame * np.float64(scale)
        found[place] = np.round(exact)
        if real and scale == 1 and (exact != found[place]).any():
            raise Unreadable(f"{what} must be whole numbers 0..255 or real ones in [0, 1] (got {low} to {high})")
    return found


def check_frames(shape: tuple[int, ...], dtype: np.dtype[Any], *, what: str, least: int = 1) -> None:
    """Raises: Unreadable unless these are frames, within the caps; asked before they are read."""
    if len(shape) != 4 or shape[-1] != 3 or dtype.kind not in "uif":
        raise Unreadable(f"{what} must be frames [L, h, w, 3] (got {list(shape)} of {dtype})")
    if not least <= shape[0] <= MAX_DECISIONS or not all(1 <= side <= MAX_SIDE for side in shape[1:3]):
        raise Unreadable(f"{what} must be {least} to {MAX_DECISIONS} frames of at most {MAX_SIDE} pixels a side "
                         f"(got {list(shape)})")  # fmt: skip


def rows_of(array: Any, frames: int, *, what: str, row: str = "from") -> NDArray[np.float32]:
    """Numbers that belong to steps, f32 [L - 1, ...].

    Args:
        row: with as many rows as frames, row i was taken `from` frame i, and the last led nowhere; or it led `into`
            frame i, and the first is a filler.
    Raises: Unreadable.
    """
    rows = np.asarray(array)
    if rows.dtype.kind not in "uifb" or rows.ndim < 1 or len(rows) not in (frames, frames - 1):
        raise Unreadable(f"{what} must have {frames - 1} or {frames} rows of numbers, as there are {frames} frames "
                         f"(got {list(rows.shape)} of {rows.dtype})")  # fmt: skip
    first = int(row == "into" and len(rows) == frames)
    with np.errstate(over="ignore"):
        numbers = rows[first : first + frames - 1].astype(np.float32)
    if not np.isfinite(numbers).all():
        raise Unreadable(f"{what} must be finite")
    return numbers


def lost(what: str) -> str:
    """For a note: the last rows of `what` have no frame to lead to, as there are as many of both; empty for nothing."""
    return f"the last of {what} led to a frame that is not stored, and is left out; " if what else ""


MEANS = {
    ("action", "from"): "row i of {} was taken in frame i, the last is left out",
    ("action", "into"): "row i of {} led into frame i, the first is left out",
    ("reward", "from"): "row i of {} followed frame i, the last is left out",
    ("reward", "into"): "row i of {} came with frame i, the first is left out",
}
"""What `action_row=from` and the like say of as many rows as frames."""
FAINT = 1e-3
"""Of what the other rows typically hold: an action that is nowhere larger is none."""


def filler(rows: NDArray[Any], place: int) -> str:
    """Why row `place` was put there and not done: NaN, zero, nearly zero beside the others; empty for a real row."""
    flat = rows.reshape(len(rows), -1)
    low, high = (bound(flat, axis=1, initial=0).astype(np.float64) for bound in (np.min, np.max))
    sizes = np.maximum(high, -low)
    others = np.delete(sizes, place)
    if np.isnan(sizes[place]):
        return "NaN"
    if sizes[place] == 0:
        return "zero"
    return "nearly zero" if (others > 0).any() and sizes[place] <= FAINT * np.median(others[others > 0]) else ""


def action_row(array: Any, frames: int, *, what: str, usual: str, is_first: bool = False) -> str:
    """Which way actions lie of which nobody said it, `from` or `into`: as usual, where nothing speaks against it.

    Args:
        usual: in files of this kind. Against `from` speaks a first row that is a filler; against `into` one that is
            none, or a last row of NaN, which nobody can do.
        is_first: the episode marks its first frame, as archives do in which a row came with its frame.
    Raises: UnclearRow: it must be said.
    """
    rows = np.asarray(array)
    if rows.ndim < 1 or len(rows) != frames or rows.dtype.kind not in "uifb":
        return usual
    first, last = filler(rows, 0), filler(rows, -1)
    if usual == "from":
        against = f"the first row is {first}" if first and rows.any() else "is_first marks the first frame"
        unclear = bool(first and rows.any()) or is_first
    else:
        against = "the last row is NaN" if first else "the first row is an action, no filler"
        unclear = not first or (first != "NaN" and last == "NaN")
    if unclear:
        raise UnclearRow(
            f"action_row= is missing: {what} has as many rows as there are frames, and {against}; write "
            "action_row=into if row i led into frame i (files of Dreamer, DrQ-v2, TD-MPC2), action_row=from if it was "
            "taken in frame i"
        )
    return usual


def reward_row(array: Any, frames: int, *, what: str, action: str | None) -> str:
    """Which way rewards lie of which nobody said it: `into`, as actions that led `into` their frames, after a filler.

    Raises: UnclearRow: it must be said.
    """
    rows = np.asarray(array)
    if rows.ndim < 1 or len(rows) != frames or rows.dtype.kind not in "uifb":
        return action or "from"
    if action != "into" or not filler(rows, 0):
        against = " and a first one that is no filler" if action == "into" else ""
        raise UnclearRow(
            f"reward_row= is missing: {what} has as many rows as there are frames{against}; write reward_row=into if "
            "reward i came with frame i, reward_row=from if it followed the action taken there"
        )
    return "into"


def collected(frames: Iterator[NDArray[np.uint8]], *, what: str) -> NDArray[np.uint8]:
    """Frames that come one by one, as one array, within the caps. Raises: Unreadable."""
    held: list[NDArray[np.uint8]] = []
    total = 0
    for frame in frames:
        if held and frame.shape != held[0].shape:
            raise Unreadable(f"{what}: frame {len(held)} is {frame.shape}, the first is {held[0].shape}")
        held.append(frame)
        total += frame.nbytes
        if total > MAX_BYTES or len(held) > MAX_DECISIONS:
            raise Unreadable(f"{what} is longer than {MAX_DECISIONS} frames or {MAX_BYTES} bytes")
    if not held:
        raise Unreadable(f"{what} holds no frame")
    return frames_of(np.stack(held), what=what)


def episode_of(clip: Clip, *, number: int, side: int | None, crop: bool) -> Episode:
    """The clip as an episode.

    Args:
        side: resize to this square (antialiased, aspect not kept); None keeps the size.
        crop: cut the central square out first.
    Raises: Unreadable.
    """
    frames = clip.frames
    if crop:
        height, width = frames.shape[1:3]
        shorter = min(height, width)
        top, left = (height - shorter) // 2, (width - shorter) // 2
        frames = frames[:, top : top + shorter, left : left + shorter]
    pixels = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    pixels = resized(pixels, height=side, width=side) if side else pixels
    decisions = len(frames) - 1
    last = np.arange(decisions) == decisions - 1
    try:
        return Episode(
            pixels=pixels.numpy(),
            proprio=np.zeros((decisions + 1, 0), np.float32),
            state=np.zeros((decisions + 1, 0), np.float32),
            snapshot=np.zeros((decisions + 1, 0)),
            action=np.zeros((decisions, 0), np.float32) if clip.action is None else clip.action,
            reward=np.full(decisions, np.nan, np.float32) if clip.reward is None else clip.reward,
            terminated=last & clip.terminated,
            truncated=last & (not clip.terminated),
            success=last & False if clip.success is None else clip.success,
            env=0,
            number=number,
        )
    except ValueError as error:
        raise Unreadable(str(error)) from error
