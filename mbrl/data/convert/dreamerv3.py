"""The replay of DreamerV3 (danijar/dreamerv3): npz files of up to 1024 steps each, whichever episodes they are of.

Every worker writes a chain of chunks `<time>-<name>-<name of the next>-<steps>.npz`: an episode begins where `is_first`
is set, wherever in a chunk, and goes on in the next. Row i holds observation i, what came with it (`reward`,
`is_terminal`), and the action that was taken in it (embodied/core: chunk.py, replay.py, driver.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.arrays import Arrays, ends, held, npz_in, one_a_step, read
from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, frames_of, raising, rows_of
from mbrl.replay.episode import MAX_BYTES, MAX_DECISIONS

NAME = re.compile(r"(?P<time>[^-]+)-(?P<name>[^-]+)-(?P<next>[^-]+)-(?P<steps>\d{1,9})\.npz")


@dataclass(frozen=True)
class Chunk:
    """What the name of a file says."""

    path: Path
    name: str
    next: str
    steps: int


@dataclass(frozen=True)
class Piece:
    """Steps `begin` to `end` of a chunk."""

    path: Path
    begin: int
    end: int


def dreamerv3(folder: Path, *, key: str, action: str | None) -> Items:
    """Every episode in the chunks of `folder`, worker by worker, in order of time; single steps are left out.

    Args:
        key: of the frames.
        action: of the actions; empty for none; None: `action` where there is such a key.
    Raises: ValueError if there is no chunk, a file of another name, or a name twice.
    """
    items: list[Item] = []
    for chain in chains(npz_in(folder)):
        pieces: list[Piece] = []  # of the episode that may go on in the next chunk
        for chunk in chain:
            try:
                begins = read(chunk.path, lambda arrays, chunk=chunk: beginnings(arrays, chunk.steps))  # type: ignore[misc]
            except Unreadable as error:
                items += [*item_of(pieces, key, action), Item(chunk.path.name, raising(error))]
                pieces = []
                continue
            for begin, end in zip([0, *begins], [*begins, chunk.steps], strict=True):
                if begin in begins:
                    items += item_of(pieces, key, action)
                    pieces = []
                if begin < end:
                    pieces.append(Piece(chunk.path, begin, end))
        items += item_of(pieces, key, action)
    return items


def chains(paths: list[Path]) -> Iterator[list[Chunk]]:
    """The chunks of each worker, one after the other, the oldest chain first. Raises: ValueError for a wrong name."""
    chunks: dict[str, Chunk] = {}
    for path in sorted(paths):  # by time
        if (match := NAME.fullmatch(path.name)) is None:
            raise ValueError(f"{path} is not called as DreamerV3 does it: <time>-<name>-<next>-<steps>.npz")
        if (other := chunks.get(match["name"])) is not None:
            raise ValueError(
                f"{other.path.name} and {path.name} are both called {match['name']}: take one of them away"
            )
        chunks[match["name"]] = Chunk(path, match["name"], match["next"], int(match["steps"]))
    follow = {chunk.next for chunk in chunks.values()}
    left = {name: chunk for follows in (False, True) for name, chunk in chunks.items() if (name in follow) is follows}
    while left:
        chain, name = [], next(iter(left))
        while name in left:  # each once: names may lead in a circle
            chain.append(left.pop(name))
            name = chain[-1].next
        yield chain


def beginnings(arrays: Arrays, steps: int) -> list[int]:
    """Where in a chunk episodes begin. Raises: Unreadable."""
    first, last = (held(arrays, name) for name in ("is_first", "is_last"))
    if first.shape != (steps,) or last.shape != (steps,):
        raise Unreadable(f"is_first and is_last must be [{steps}], as its name says (got {list(first.shape)})")
    return sorted({*np.flatnonzero(first).tolist(), *(np.flatnonzero(last[:-1]) + 1).tolist()})


def item_of(pieces: list[Piece], key: str, action: str | None) -> list[Item]:
    """The episode that lies in these pieces, if any step is in it that led anywhere."""
    if sum(piece.end - piece.begin for piece in pieces) < 2:
        return []
    name = f"{pieces[0].path.name}#{pieces[0].begin}"
    return [Item(name, lambda pieces=tuple(pieces): episode(pieces, key, action))]  # type: ignore[misc]


def episode(pieces: tuple[Piece, ...], key: str, action: str | None) -> Clip:
    """One episode. Raises: Unreadable."""
    if sum(piece.end - piece.begin for piece in pieces) > MAX_DECISIONS:
        raise Unreadable(f"it is longer than {MAX_DECISIONS} steps")
    rows, unread = joined(pieces, key, action)
    frames = frames_of(rows[key], what=key)
    name = "action" if action is None else action
    taken = rows_of(rows[name], len(frames), what=name) if name in rows else None
    if taken is not None and taken.ndim != 2:
        raise Unreadable(f"{name} must be [L, A] (got {list(rows[name].shape)})")
    reward = rows_of(rows["reward"], len(frames), what="reward", row="into") if "reward" in rows else None
    said = [f"not read: {', '.join(unread)}"] if unread else []
    said += [] if rows["is_first"][0] else ["it begins in the middle of an episode, whose begin is not stored"]
    said += [] if rows["is_last"][-1] else ["it ends in the middle of an episode, whose end is not stored"]
    return Clip(
        frames=frames,
        action=taken,
        reward=None if reward is None else one_a_step(reward, what="reward"),
        terminated=ends(rows, len(frames), row="into", rows=len(frames)),
        note="; ".join(said),
    )


def joined(pieces: tuple[Piece, ...], key: str, action: str | None) -> tuple[dict[str, NDArray], list[str]]:
    """The arrays of an episode by name, and the names that are not read. Raises: Unreadable."""
    parts: list[dict[str, NDArray]] = []
    unread: list[str] = []
    total = 0
    for piece in pieces:
        part, unread = read(piece.path, lambda arrays, piece=piece: cut(arrays, piece, key, action))  # type: ignore[misc]
        parts.append(part)
        total += sum(array.nbytes for array in part.values())
        if total > MAX_BYTES:
            raise Unreadable(f"it is larger than {MAX_BYTES} bytes")
        if kinds(part) != kinds(parts[0]):
            raise Unreadable(f"{piece.path.name} has other arrays than the chunk before")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, unread


def cut(arrays: Arrays, piece: Piece, key: str, action: str | None) -> tuple[dict[str, NDArray], list[str]]:
    """The rows of a piece by name, and the names that are not read. Raises: Unreadable."""
    optional = [name for name in ("reward", "is_terminal", *(["action"] if action is None else [])) if name in arrays]
    names = [key, "is_first", "is_last", *([action] if action else []), *optional]
    rows = {name: held(arrays, name)[piece.begin : piece.end].copy() for name in names}
    if short := [name for name, array in rows.items() if len(array) != piece.end - piece.begin]:
        raise Unreadable(f"{short[0]} has fewer rows than is_first")
    return rows, sorted(set(arrays) - set(names))


def kinds(arrays: dict[str, NDArray]) -> dict[str, tuple[object, ...]]:
    """The type and the shape of a row of each array."""
    return {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
