"""Writes what a reader gives as a data set: whole or not at all, and from where it was interrupted.

Item i becomes episode i, so a second start knows what is done; `items.jsonl` says which item that was, since an
archive may change in between. `dataset.json` comes last: until then the folder is no data set, and `converting.json`
says what it is to become.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.data.convert.clip import Items, Unreadable, episode_of
from mbrl.data.dataset import CARD, Card, DamagedSet, read_card, write_card
from mbrl.data.reach import MEND, Reach
from mbrl.files import clear_temporaries, named, read_plain, write_atomically
from mbrl.replay.episode import NAME, Episode, read_episode, write_episode

MARK = "converting.json"
ITEMS = "items.jsonl"
"""What was asked for, then number and name of each item that became an episode."""
MOST_ITEMS = 2**28
"""Bytes of that list: millions of items."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is converted into what.

    Attributes:
        source: where it comes from and how it is read, in words; a second start must say the same.
        folder: the data set.
        side: resize frames to this square; None keeps their sizes.
        crop: cut the central square out first.
        rate: for the card.
        skip: go on without items that cannot be read.
        limit: convert the first so many items only; 0: all.
    """

    source: str
    folder: Path
    side: int | None
    crop: bool
    rate: float
    skip: bool
    limit: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a conversion did.

    Attributes:
        episodes: how many there are now.
        written: how many of them are new.
        damaged: (item, why) of what was left out.
        notes: (items, what) that one should know of how the new ones were read.
    """

    episodes: int
    written: int
    damaged: list[tuple[str, str]]
    notes: list[tuple[str, str]]


def convert(items: Items, job: Job, *, on_progress: Callable[[int], None] = lambda done: None) -> Outcome:
    """Reads all items and writes those that are not there yet.

    Args:
        on_progress: called with the number of items that are done.
    A start that fails bars no other: without an episode nothing stays, and another conversion may take its place.
    Raises: ValueError if the folder holds something else; UnclearRow; DamagedSet with a table of what cannot be read,
        unless `job.skip`; what was readable is kept for the next start.
    """
    begin(job)
    try:
        return _converted(items, job, on_progress)
    except BaseException as error:
        if not any(job.folder.glob("ep-*.npz")):
            (job.folder / MARK).unlink()
            (job.folder / ITEMS).unlink(missing_ok=True)
        elif (job.folder / CARD).exists():  # it stays the data set that it was
            (job.folder / MARK).unlink()
        elif isinstance(error, Exception):
            with suppress(OSError):  # of a disk that is full already; then only the same words go on
                _mark(job, failed=True)
        raise


def _converted(items: Items, job: Job, on_progress: Callable[[int], None]) -> Outcome:
    there = {
        int(match[1]): path for path in job.folder.glob("ep-*.npz") if (match := NAME.fullmatch(path.name)) is not None
    }
    names = read_names(job.folder)
    kinds: dict[tuple[Any, ...], str] = {}
    damaged: list[tuple[str, str]] = []
    notes: dict[str, list[str]] = {}
    reach = Reach()
    written = done = 0
    for number, item in enumerate(items):
        if job.limit and number >= job.limit:
            break
        if number in there and names.get(number, item.name) != item.name:
            raise ValueError(
                f"to={job.folder} has {names[number]} as episode {number}, where {item.name} stands now: what is "
                "converted has changed since; give a new folder"
            )
        try:
            if number in there and kinds:
                episode = None  # of the kind that was found before
            elif number in there:
                episode = read_episode(there[number])
            else:
                clip = item.read()
                episode = episode_of(clip, number=number, side=job.side, crop=job.crop)
                same(kinds, kind_of(episode), item.name)
                write_episode(job.folder, episode)
                append(job.folder / ITEMS, [number, item.name])
                written += 1
                reach.add(episode.action)
                if clip.note:
                    notes.setdefault(clip.note, []).append(item.name)
            if episode is not None:
                kinds.setdefault(kind_of(episode), item.name)
            done += 1
        except Unreadable as error:
            damaged.append((item.name, str(error)))
        on_progress(number + 1)
    if damaged and not job.skip:
        raise DamagedSet(
            f"{len(damaged)} of {done + len(damaged)} items cannot be converted: mend them, or damaged=skip goes on "
            f"without them ({done} are done and stay)",
            rows=damaged,
        )
    if not kinds:
        raise DamagedSet(f"nothing of {job.source} could be converted", rows=damaged)
    finish(job, next(iter(kinds)))
    told = [(names[0] if len(names) == 1 else f"{len(names)} items", note) for note, names in notes.items()]
    told += [("actions", f"{reach}; {MEND}")] if reach.beyond else []
    return Outcome(episodes=done, written=written, damaged=damaged, notes=told)


def kind_of(episode: Episode) -> tuple[Any, ...]:
    """What the episodes of one set have in common: numbers of an action, whether rewards are known, frame size."""
    return episode.action.shape[1], episode.rewarded, episode.pixels.shape[2:]


def same(kinds: dict[tuple[Any, ...], str], kind: tuple[Any, ...], name: str) -> None:
    """Raises: Unreadable for an item that does not go together with the first; sizes may differ if one is given."""
    if not kinds:
        return
    (first, where), *_ = kinds.items()
    for what, one, other in zip(("actions", "known rewards", "frame size"), first, kind, strict=True):
        if one != other:
            mend = "; image=64 makes them one size" if what == "frame size" else ""
            raise Unreadable(f"{what} {shown(other)}, but {where} has {shown(one)}{mend}")


def shown(value: Any) -> str:
    """A size as 48x64."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def begin(job: Job) -> None:
    """Marks the folder as this conversion's. Raises: ValueError if it holds something else."""
    check_target(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    if not (job.folder / CARD).exists() and _other(job):  # a start that failed
        for path in job.folder.glob("ep-*.npz"):
            if NAME.fullmatch(path.name):
                path.unlink()
        (job.folder / ITEMS).unlink(missing_ok=True)
    _mark(job, failed=False)
    clear_temporaries(job.folder)
    if not (job.folder / ITEMS).exists():
        append(job.folder / ITEMS, asked_of(job))


def append(path: Path, entry: Any) -> None:
    """One more line. It begins with the line's end: what a kill left of the one before does not swallow it."""
    line = f"\n{json.dumps(entry)}"
    with named(path, needed=len(line)), path.open("a", encoding="utf-8") as file:
        file.write(line)


def read_items(folder: Path) -> list[Any]:
    """The lines of `items.jsonl`; none where there is no such file."""
    path = folder / ITEMS
    lines = read_plain(path, most=MOST_ITEMS).decode("utf-8", "replace").splitlines() if path.exists() else []
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # the first, which is empty, or one cut off by a kill
            entries.append(json.loads(line))
    return entries


def read_names(folder: Path) -> dict[int, str]:
    """The item that each episode was made of, as far as it was written down."""
    return {entry[0]: entry[1] for entry in read_items(folder) if isinstance(entry, list) and len(entry) == 2}


def asked_of(job: Job) -> dict[str, Any]:
    """What a conversion that goes on must have in common with the one that began."""
    return {"source": job.source, "side": job.side, "crop": job.crop}


def _mark(job: Job, *, failed: bool) -> None:
    write_atomically(job.folder / MARK, json.dumps({**asked_of(job), "failed": failed}).encode())


def _other(job: Job) -> str:
    """Whether another conversion is unfinished in the folder: `failed` or `interrupted`; else empty.

    Raises: ValueError for a mark that is none.
    """
    path = job.folder / MARK
    if not path.exists():
        return ""
    try:
        said = json.loads(read_plain(path))
        failed = said.pop("failed", False)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the mark of a conversion ({error}); delete {job.folder}") from error
    return "" if said == asked_of(job) else "failed" if failed else "interrupted"


def check_target(job: Job) -> None:
    """Raises: ValueError if the folder holds something else."""
    if (job.folder / CARD).exists():
        if read_card(job.folder).source != job.source:
            raise ValueError(f"to={job.folder} is a data set of another source; give a new or an empty folder")
        asked = next((entry for entry in read_items(job.folder) if isinstance(entry, dict)), asked_of(job))
        for key, value in asked_of(job).items():
            if asked.get(key) != value:
                word = {"side": "image"}.get(key, key)
                raise ValueError(f"to={job.folder} was converted with another {word}=; give a new folder")
    elif _other(job) == "interrupted":
        raise ValueError(f"to={job.folder} holds another conversion ({MARK}); give a new folder, or delete that one")
    elif not (job.folder / MARK).exists() and any(job.folder.glob("*.npz")):
        raise ValueError(f"to={job.folder} holds .npz files of its own; give a new or an empty folder")


def finish(job: Job, kind: tuple[Any, ...]) -> None:
    """The card, and no mark any more."""
    actions, rewards, (height, width) = kind
    write_card(
        job.folder,
        Card(
            name=job.folder.resolve().name,
            source=job.source,
            tasks=(),
            protocol=None,
            action_dim=actions,
            rewards=rewards,
            image=(height, width),
            rate=job.rate,
            policies=(),
        ),
    )
    (job.folder / MARK).unlink()
