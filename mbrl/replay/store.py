"""All finished episodes of a run: append-only files in one folder, and the newest of them in memory.

Knows nothing of clips, models or checkpoints: whoever keeps a listing tells the store to go back to it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mbrl.files import clear_temporaries, fsync_folder, set_aside, sized
from mbrl.progress import told
from mbrl.replay.episode import NAME, DamagedEpisode, Episode, read_episode, write_episode

log = logging.getLogger(__name__)
OnDamage = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An episode in memory, the name of its file, and the sha256 of the file's bytes."""

    name: str
    digest: str
    episode: Episode


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a replay needs at most: `ram` when full, `disk` for its files (deflate usually saves most of it)."""

    ram: int
    disk: int

    def require_room(self, folder: Path) -> None:
        """Refuses at the start what could not be held at the end.

        Raises: ValueError with needed and available bytes.
        """
        while not folder.exists():
            folder = folder.parent
        for what, needed, free in (
            ("memory", self.ram, available_ram()),
            (f"disk at {folder}", self.disk, shutil.disk_usage(folder).free),
        ):
            if needed > free:
                raise ValueError(
                    f"replay needs {sized(needed)} of {what}, {sized(free)} are free: "
                    "lower replay.capacity or the run's length"
                )


def expected_bytes(
    decisions: int, *, image: int, action_dim: int, widths: Mapping[str, int], episode_decisions: int
) -> Footprint:
    """What `decisions` stored decisions take, in episodes of `episode_decisions` with frames of `image` x `image`.

    Args:
        widths: how many numbers of `proprio`, `state` and `snapshot` are stored with each frame, where they are.

    >>> expected_bytes(100, image=64, action_dim=4, widths={"proprio": 7, "state": 42}, episode_decisions=100).ram
    1263184
    """
    episodes = -(-decisions // episode_decisions)
    frames = decisions + episodes
    beside = sum(np.dtype(Episode.DTYPES[key]).itemsize * width for key, width in widths.items())
    arrays = frames * (3 * image * image + beside) + decisions * (4 * action_dim + 4 + 3)
    return Footprint(ram=arrays, disk=arrays + episodes * 4096)


def available_ram() -> int:
    """Bytes that this process may still take: what the machine has free, or less where a control group is tighter."""
    machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        machine = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        return min(machine, int(limit.read_text()) - int(used.read_text()))
    return machine


class EpisodeStore:
    """Episodes in the order in which they ended.

    A fresh store takes nothing from its folder: the first `append` or `restore` moves files that are not its own to
    `orphans/` (they come from a run that was killed behind its last checkpoint, and will be made again).

    Args:
        folder: made if missing; belongs to this store alone.
        capacity: decisions kept in memory; the oldest whole episodes beyond it are dropped, the newest never.
        on_damage: whether `restore` stops at a damaged or missing episode, or goes on without it and says so.
        protected: episodes with numbers below this one are never dropped; they are kept on top of `capacity`.
        lent: episodes of others, older than all of its own; they are kept on top of `capacity` too, and their files are
            never touched. The store only remembers which they were.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int,
        on_damage: OnDamage = "stop",
        protected: int = 0,
        lent: Sequence[Stored] = (),
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1 (got {capacity})")
        self.folder = folder
        self.capacity = capacity
        self.on_damage = on_damage
        self.protected = protected
        self.lent = list(lent)
        self.stored: list[Stored] = []
        self._decisions = 0
        self._claimed = False

    def __len__(self) -> int:
        """Decisions in memory, lent ones too."""
        return self._decisions + sum(len(one.episode) for one in self.lent)

    @property
    def all(self) -> list[Stored]:
        """Lent and own episodes, oldest first."""
        return [*self.lent, *self.stored]

    def append(self, episode: Episode) -> str:
        """Writes the episode's file, then takes it into memory; returns the file's name.

        Raises: ValueError if its number does not grow; OSError where the disk refuses (nothing is taken then).
        """
        if not self._claimed:
            self.restore([])
        if self.stored and episode.number <= self.stored[-1].episode.number:
            raise ValueError(
                f"episode numbers must grow (got {episode.number} after {self.stored[-1].episode.number}): "
                "take them from one counter for all environments"
            )
        name, digest = write_episode(self.folder, episode)
        self._take(Stored(name=name, digest=digest, episode=episode))
        return name

    def _take(self, stored: Stored) -> None:
        self.stored.append(stored)
        self._decisions += len(stored.episode)
        lasting = self.lasting()
        limit = self.capacity + sum(len(stored.episode) for stored in lasting)
        while self._decisions > limit and len(self.stored) > len(lasting) + 1:
            self._decisions -= len(self.stored.pop(len(lasting)).episode)

    def lasting(self) -> list[Stored]:
        """Those of the store's own episodes that are never dropped; they stand first."""
        return [stored for stored in self.stored if stored.episode.number < self.protected]

    def listing(self) -> list[list[str]]:
        """`[name, sha256]` of every own episode in memory, in order; plain JSON, for `restore`."""
        return _listing(self.stored)

    def restore(self, listing: Iterable[Sequence[str]]) -> None:
        """Makes memory and folder what they were when `listing` was taken.

        Files that the listing does not name move to `orphans/`, and come back where an older listing names them;
        damaged ones move to `quarantine/`.

        Raises: DamagedEpisode naming every damaged or missing file, unless `on_damage` is `skip`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = [(str(name), str(digest)) for name, digest in listing]
        for name, _ in wanted:
            if not NAME.fullmatch(name):
                raise DamagedEpisode(f"the listing of {self.folder} names {name!r}, which is no episode file")
        clear_temporaries(self.folder)
        read, damage = self._read(wanted)
        if damage and self.on_damage == "stop":
            raise DamagedEpisode(
                f"{len(damage)} of {len(wanted)} replay episodes cannot be restored: {'; '.join(damage)}. "
                "replay.on_damage=skip goes on without them; the run is then no longer the one that was interrupted"
            )
        for message in damage:
            log.warning("replay goes on without an episode: %s", message)
        named = {name for name, _ in wanted}
        for path in sorted(self.folder.glob("ep-*.npz")):
            if path.name not in named:
                log.info("%s is newer than the checkpoint: moved to orphans/", path.name)
                # the same name has the same bytes: an older orphan may be replaced, so orphans stay bounded
                (self.folder / "orphans").mkdir(exist_ok=True)
                path.rename(self.folder / "orphans" / path.name)
        fsync_folder(self.folder)
        self.stored, self._decisions, self._claimed = [], 0, True
        for stored in read:
            self._take(stored)

    def _read(self, listing: Sequence[tuple[str, str]]) -> tuple[list[Stored], list[str]]:
        read, damage, tell = [], [], told("episodes of the replay read")
        for place, (name, digest) in enumerate(listing):
            tell(place, len(listing))
            path = self.folder / name
            if (there := self._file(name)) != path:
                there.rename(path)
            try:
                read.append(Stored(name=name, digest=digest, episode=read_episode(path, digest=digest)))
            except DamagedEpisode as error:
                damage.append(str(error))
                if path.exists():
                    set_aside(path, self.folder / "quarantine")
        return read, damage

    def _file(self, name: str) -> Path:
        """Where an episode lies: a restart from a newer checkpoint, which is damaged by now, may have moved it."""
        path, aside = self.folder / name, self.folder / "orphans" / name
        return aside if aside.exists() and not path.exists() else path

    def adopt(self, listing: Sequence[Sequence[str]]) -> None:
        """Holds in memory what another process holds, which alone drops and writes; the folder stays as it is.

        Args:
            listing: what that process holds.
        Raises: DamagedEpisode if a file is not what the listing says.
        """
        held = {(stored.name, stored.digest): stored for stored in self.stored}
        self.stored = [
            held.get((name, digest))
            or Stored(name=name, digest=digest, episode=read_episode(self._file(name), digest=digest))
            for name, digest in listing
        ]
        self._decisions = sum(len(stored.episode) for stored in self.stored)

    def prune(self, kept: Iterable[Mapping[str, Any]]) -> int:
        """Deletes the files of evicted episodes that no kept checkpoint needs; returns how many.

        Args:
            kept: this store's state in every checkpoint that is kept.
        """
        needed = {name for name, _ in self.listing()} | {name for state in kept for name, _ in state["episodes"]}
        unneeded = [path for path in self.folder.glob("ep-*.npz") if path.name not in needed] if self._claimed else []
        for path in unneeded:
            path.unlink()
        return len(unneeded)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: which episodes there are. Their bytes stay where they are."""
        return {"episodes": self.listing(), "lent": _listing(self.lent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`: `restore`. Raises: ValueError if other episodes were lent then."""
        then, now = dict(state["lent"]), dict(_listing(self.lent))
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                what = "is missing" if name not in now else "is new" if name not in then else "has other bytes"
                raise ValueError(
                    f"rehearsal has changed since this run was saved: {name} {what}; put it back as it was, or begin "
                    "a new run"
                )
        self.restore(state["episodes"])


def _listing(stored: Sequence[Stored]) -> list[list[str]]:
    return [[one.name, one.digest] for one in stored]
