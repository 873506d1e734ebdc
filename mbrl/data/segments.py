"""Which frames of an episode make a segment: the four ways of the paper (spec 10.3), as functions of a generator.

Knows integers only. L is the number of frames of the episode, T of the segment, t of its context; indices are i64.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["plain", "select", "shuffle", "goal"]
Indices = NDArray[np.int64]

BASE_RATE = 3
"""The rate of fractal20220817_data, in whose steps the paper counts."""


def frame_step(rate: float, stepsize: float) -> int:
    """How many raw frames a data set of this nominal rate goes on per step (half to even, at least 1).

    >>> [frame_step(rate, 1) for rate in (3, 5, 10, 12.5, 15, 20, 30, 1)]
    [1, 2, 3, 4, 5, 7, 10, 1]
    """
    return max(round(stepsize * rate / BASE_RATE), 1)


def adapted(step: int, *, frames: int, span: int) -> int:
    """The step, or a smaller one where `span` steps of it do not fit into the episode.

    >>> adapted(5, frames=40, span=12), adapted(5, frames=7, span=12), adapted(1, frames=12, span=12)
    (3, 1, 1)
    """
    return step if step * span <= frames else max(1, frames // span)


def _start(random: np.random.Generator, frames: int, window: int) -> int:
    return int(random.integers(max(frames - window + 1, 1)))


def plain(random: np.random.Generator, *, frames: int, length: int, step: int) -> Indices:
    """[T]: start, start + s, ...; behind the end of the episode its last frame is repeated."""
    step = adapted(step, frames=frames, span=length)
    start = _start(random, frames, step * length)
    return np.minimum(start + step * np.arange(length), frames - 1)


def select(random: np.random.Generator, *, frames: int, length: int, context: int, step: int, horizon: int) -> Indices:
    """[T]: t context frames in steps, then T - t frames from anywhere in the rest of a window of `horizon` steps.

    Chosen without replacement, in the order of time; the last is repeated where the rest holds too few.
    """
    step = adapted(step, frames=frames, span=horizon)
    start = _start(random, frames, step * horizon)
    end = min(start + step * horizon, frames)
    known = np.minimum(start + step * np.arange(context), frames - 1)
    rest = np.arange(min(start + step * context, end), end)
    wanted = length - context
    chosen = np.sort(random.choice(rest, min(wanted, len(rest)), replace=False)) if len(rest) else rest
    missing = np.full(wanted - len(chosen), chosen[-1] if len(chosen) else frames - 1)
    return np.concatenate([known, chosen, missing]).astype(np.int64)


def shuffle(random: np.random.Generator, *, frames: int, length: int, step: int, horizon: int) -> Indices:
    """[T]: distinct places among `horizon` steps of a window, in random order (goal-conditioned tokenizer)."""
    step = adapted(step, frames=frames, span=horizon)
    start = _start(random, frames, step * horizon)
    places = random.choice(horizon, length, replace=False)  # in random order, as NumPy shuffles by default
    return np.minimum(start + step * places, frames - 1).astype(np.int64)


def goal(random: np.random.Generator, *, frames: int, length: int, step: int) -> Indices:
    """[T]: a plain segment of T - 1 frames behind its own last frame (goal-conditioned transformer)."""
    segment = plain(random, frames=frames, length=length - 1, step=step)
    return np.concatenate([segment[-1:], segment])


def sampled(
    random: np.random.Generator,
    how: Sampling,
    *,
    frames: int,
    length: int,
    context: int,
    step: int,
    horizon: int,
) -> Indices:
    """A segment as `how` says, [length]; `horizon` (0: as long as the segment) counts for `select` and `shuffle` only.

    Raises: ValueError if the segment is shorter than its context, or longer than the horizon.
    """
    least = max(context, 1 + (how == "goal"))
    if length < least:
        raise ValueError(f"a segment must have at least {least} frames with sampling={how} (got {length})")
    horizon = horizon or length
    if how in ("select", "shuffle") and horizon < length:
        raise ValueError(f"horizon must be 0 or >= {length}, the frames of a segment (got {horizon})")
    if how == "plain":
        return plain(random, frames=frames, length=length, step=step)
    if how == "goal":
        return goal(random, frames=frames, length=length, step=step)
    if how == "shuffle":
        return shuffle(random, frames=frames, length=length, step=step, horizon=horizon)
    return select(random, frames=frames, length=length, context=context, step=step, horizon=horizon)
