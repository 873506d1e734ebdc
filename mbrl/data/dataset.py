"""A data set: a folder of episode files exactly as replay writes them, and one `dataset.json` that says what they are.

Knows nothing of clips or models. Files are found by name and read one by one, when they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.files import DamagedFile, read_plain, write_atomically
from mbrl.replay.episode import NAME, Episode, OtherFormat, read_episode

CARD = "dataset.json"
FORMAT = 1


class DamagedSet(DamagedFile):
    """A data set that must not be used as it is; `rows` holds (where, what) of each fault, where there are several."""

    def __init__(self, message: str, rows: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What `dataset.json` says.

    Attributes:
        name: of the data set.
        source: where it comes from, in words.
        tasks: names of tasks, where there are any.
        protocol: how the worlds were seen and stepped (the fields of a ProtocolConfig); None for foreign data.
        action_dim: numbers per action; 0 where there are none.
        rewards: whether they are known.
        image: height and width of the frames in pixels; None where they differ from episode to episode.
        rate: nominal rate of the frames in the sense of the paper's mixture (spec 10.3); 1 if nothing is known.
        policies: who acted, by the row that an episode's name gives (`ep-000007-e01-...` is of `policies[1]`).
    """

    name: str
    source: str
    tasks: tuple[str, ...]
    protocol: Mapping[str, Any] | None
    action_dim: int
    rewards: bool
    image: tuple[int, int] | None
    rate: float
    policies: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        for field, right in KINDS.items():
            if not right[1](getattr(self, field)):
                raise ValueError(f"{field} must be {right[0]} (got {getattr(self, field)!r})")


def _number(value: Any, kind: type | tuple[type, ...] = int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


KINDS = {
    "name": ("text", lambda v: isinstance(v, str) and v != ""),
    "source": ("text", lambda v: isinstance(v, str)),
    "tasks": ("a list of names", lambda v: isinstance(v, tuple) and all(isinstance(task, str) for task in v)),
    "protocol": ("the fields of a protocol, or null", lambda v: v is None or isinstance(v, Mapping)),
    "action_dim": ("a whole number >= 0", lambda v: _number(v) and v >= 0),
    "rewards": ("true or false", lambda v: isinstance(v, bool)),
    "image": (
        "[height, width], or null",
        lambda v: v is None or (isinstance(v, tuple) and len(v) == 2 and all(_number(side) and side > 0 for side in v)),
    ),
    "rate": ("a number > 0", lambda v: _number(v, (int, float)) and 0 < v < 1e6),
    "policies": ("a list of groups", lambda v: isinstance(v, tuple) and all(isinstance(p, Mapping) for p in v)),
}


def write_card(folder: Path, card: Card) -> None:
    """Writes or replaces `dataset.json`: a reader sees the old one or the new one. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"format": FORMAT, **dataclasses.asdict(card)}
    write_atomically(folder / CARD, (json.dumps(plain, indent=1) + "\n").encode())


def read_card(folder: Path) -> Card:
    """Reads and checks `dataset.json`.

    Raises: DamagedSet naming the field that is wrong; OtherFormat for one that another version wrote.
    """
    path = folder / CARD
    try:
        plain = json.loads(read_plain(path))
    except OSError as error:
        raise DamagedSet(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedSet(f"{path} is not JSON ({error})") from error
    if not isinstance(plain, dict):
        raise DamagedSet(f"{path} must hold one group of fields (it holds a {type(plain).__name__})")
    if (written := plain.pop("format", None)) != FORMAT:
        raise OtherFormat(f"{path} is of format {written}, this version reads {FORMAT}: use the version that wrote it")
    known = {field.name for field in dataclasses.fields(Card)}
    if plain.keys() != known:
        wrong = [f"lacks {name}" for name in sorted(known - plain.keys())]
        wrong += [f"has {name}, which is unknown" for name in sorted(plain.keys() - known)]
        raise DamagedSet(f"{path} {', '.join(wrong)}")
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    try:
        return Card(**lists)
    except ValueError as error:
        raise DamagedSet(f"{path}: {error}") from error


class EpisodeCache:
    """The episodes read last, up to `limit` bytes of arrays; data sets and threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._episodes: OrderedDict[Path, Episode] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> Episode:
        """The episode of this file, from memory where it is. Raises: DamagedEpisode, OtherFormat."""
        with self._lock:
            if path in self._episodes:
                self._episodes.move_to_end(path)
                return self._episodes[path]
        episode = read_episode(path)  # outside the lock: others may go on meanwhile
        with self._lock:
            if path not in self._episodes and episode.nbytes <= self.limit:
                self._episodes[path] = episode
                self.held += episode.nbytes
                while self.held > self.limit:
                    self.held -= self._episodes.popitem(last=False)[1].nbytes
        return episode


class DataSet:
    """The episodes of one folder, sorted by file name.

    Attributes:
        card: what they are.
        names: file names.
        frames: how many frames each has, as its name says.
    """

    def __init__(self, folder: Path, *, cache: EpisodeCache) -> None:
        """`folder`: with `dataset.json`, or the `replay/` of a training run, or that run's folder.

        Raises: ValueError if there is no data set; DamagedSet, DamagedEpisode.
        """
        self.folder = located(folder)
        self._cache = cache
        found = [(path.name, match) for path in self.folder.glob("ep-*.npz") if (match := NAME.fullmatch(path.name))]
        found.sort(key=lambda pair: pair[0])
        self.names = [name for name, _ in found]
        self.frames = [int(match[3]) + 1 for _, match in found]
        self.card = read_card(self.folder) if (self.folder / CARD).exists() else self._card_of_replay()

    def __len__(self) -> int:
        """Episodes."""
        return len(self.names)

    def episode(self, index: int) -> Episode:
        """Reads episode `index`, or finds it in the cache.

        Raises: DamagedEpisode; DamagedSet if it is not what `dataset.json` says.
        """
        episode = self._cache.get(self.folder / self.names[index])
        if wrong := unlike(self.card, episode):
            raise DamagedSet(f"{self.folder / self.names[index]}: {wrong}; `mbrl data check {self.folder}` lists all")
        return episode

    def _card_of_replay(self) -> Card:
        """What a training run's replay is, by its newest episode and the run's own record."""
        if not self.names:
            raise ValueError(f"{self.folder} holds no episode and no {CARD}: it is no data set")
        newest = self._cache.get(self.folder / self.names[-1])
        record = self.folder.parent / "run.json"
        record_json = json.loads(read_plain(record)) if record.is_file() else {}
        task = record_json.get("task") if isinstance(record_json, dict) else None
        return Card(
            name=self.folder.parent.name or "replay",
            source="the replay of a training run",
            tasks=(task,) if isinstance(task, str) else (),
            protocol=None,
            action_dim=newest.action.shape[1],
            rewards=newest.rewarded,
            image=(newest.pixels.shape[2], newest.pixels.shape[3]),
            rate=1.0,
            policies=(),
        )


def unlike(card: Card, episode: Episode) -> str:
    """In which way an episode is not what its data set says; empty if it is."""
    height, width = episode.pixels.shape[2:]
    if card.image is not None and tuple(card.image) != (height, width):
        return f"frames are {height}x{width}, {CARD} says {card.image[0]}x{card.image[1]}"
    if episode.action.shape[1] != card.action_dim:
        return f"it has {episode.action.shape[1]} actions, {CARD} says {card.action_dim}"
    if episode.rewarded is not card.rewards:
        return f"rewards are {'known' if episode.rewarded else 'unknown'}, {CARD} says otherwise"
    return ""


def located(folder: Path) -> Path:
    """Where the episode files of `folder` lie: in it, or in its `replay/` if it is a run folder.

    Raises: ValueError naming what is there instead.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a data set: a folder with {CARD}, or a run folder")
    if (folder / CARD).exists() or any(folder.glob("ep-*.npz")):
        return folder
    if any((folder / "replay").glob("ep-*.npz")):
        return folder / "replay"
    raise ValueError(
        f"{folder} is no data set: it holds neither {CARD} nor episode files (ep-*.npz), nor does a replay/ in it; "
        "make one with `mbrl data collect` or `mbrl data convert`"
    )


def sets_in(folder: Path) -> list[Path]:
    """The data sets that `folder` names: itself, or, where it is none, those directly inside it, by name.

    Raises: ValueError if there is none, or both.
    """
    inside = inside_of(folder)
    if not inside:
        return [located(folder)]
    if is_set(folder):
        raise ValueError(
            f"{folder} is a data set and has others in it ({inside[0].name}, ...): it is not clear which are meant; "
            "move its own episodes and card to a folder beside them"
        )
    return inside


def is_set(folder: Path) -> bool:
    """Whether `folder` itself is a data set, or a run folder with a replay."""
    return (folder / CARD).exists() or any(folder.glob("ep-*.npz")) or has_replay(folder)


def has_replay(folder: Path) -> bool:
    """Whether `folder` is that of a training run with episodes in its replay."""
    replay = folder / "replay"
    return any(replay.glob("ep-*.npz")) and not (replay / CARD).exists()  # not a data set that happens to be called so


def inside_of(folder: Path) -> list[Path]:
    """The data sets directly inside a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{CARD}"))


def check_beside(to: Path) -> None:
    """Raises: ValueError if a data set in `to` would lie in another one, or around others: one would hide the other."""
    if inside := inside_of(to):
        raise ValueError(f"to={to} is a folder of data sets ({inside[0].name}, ...); give one inside it, or a new one")
    if has_replay(to):
        raise ValueError(f"to={to} is the folder of a run, whose replay would be hidden; give a folder beside it")
    if is_set(to.absolute().parent):
        raise ValueError(f"to={to} lies in a data set (or a run); give a folder beside it")
