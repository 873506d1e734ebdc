"""Which data sets make a mixture, with which weights and frame steps, and which of them are found on disk.

Knows folders and numbers; draws nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mbrl.data.dataset import CARD, DataSet, EpisodeCache, sets_in
from mbrl.data.segments import frame_step
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

log = logging.getLogger("mbrl")

SPLITS = ("train", "validation", "all")


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One data set of a mixture that is known by name.

    Attributes:
        weight: share of the drawn rows, relative to those of the other parts; 0 leaves it out.
        rate: nominal rate; the frame step is max(round(stepsize * rate / 3), 1).
        image_key: where the published per-episode files keep their frames; for the converter.
        augment: whether its clips are augmented where those of the mixture are.
    """

    weight: float
    rate: float
    image_key: str
    augment: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be >= 0 (got {self.weight})")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be > 0 (got {self.rate})")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set that is there, as a mixture draws from it.

    Attributes:
        data: the set.
        weight: share of the drawn rows; those of all parts sum to 1.
        step: frame step.
        augment: whether its clips may be augmented.
        indices: the episodes that may be drawn, by their places in `data`.
    """

    data: DataSet
    weight: float
    step: int
    augment: bool
    indices: tuple[int, ...]

    @property
    def files(self) -> list[Path]:
        """The episodes that may be drawn."""
        return [self.data.folder / self.data.names[index] for index in self.indices]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A part of a named mixture and whether it lies on disk: `folder` is None if it does not."""

    name: str
    config: PartConfig
    folder: Path | None
    state: str
    """`found`, `missing`, or what must be done first."""


def survey(parts: Mapping[str, PartConfig], root: Path) -> list[Found]:
    """Looks for every part with a weight at `root/<name>`."""
    found = []
    for name, config in parts.items():
        folder = root / name
        if config.weight == 0:
            continue
        if (folder / CARD).is_file():
            found.append(Found(name=name, config=config, folder=folder, state="found"))
        elif any(folder.glob("*_eps_*.npz")):
            found.append(Found(name=name, config=config, folder=None, state="published npz: convert it first"))
        else:
            found.append(Found(name=name, config=config, folder=None, state="missing"))
    return found


def split_of(names: Sequence[str], split: str, *, every: int) -> list[int]:
    """Places of the files of a split: of the sorted names every `every`-th, from the first, is validation.

    >>> split_of(["c", "a", "b", "d", "e"], "validation", every=3), split_of(["c", "a"], "train", every=0)
    ([1, 3], [0, 1])
    """
    order = sorted(range(len(names)), key=lambda place: names[place])
    held = {place for rank, place in enumerate(order) if every and rank % every == 0}
    return sorted(place for place in order if split == "all" or (place in held) == (split == "validation"))


def few(indices: Sequence[int], episodes: int, *, seeds: Seeds, name: str) -> list[int]:
    """`episodes` of these, chosen without replacement by the stream of this data set's name (0: all of them).

    Raises: ValueError if there are not as many.
    """
    if not episodes:
        return list(indices)
    if episodes > len(indices):
        raise ValueError(f"episodes must be <= {len(indices)}, which {name} has for training (got {episodes})")
    chosen = seeds.numpy(f"data/few/{name}").choice(len(indices), episodes, replace=False)
    return sorted(indices[place] for place in chosen)


def folders_of(folders: Sequence[str], holdout: Sequence[str], cache: EpisodeCache) -> list[DataSet]:
    """The data sets of these folders, but for those of held-out tasks.

    Raises: ValueError for a folder that is no data set, for one that is named twice, or if nothing is left.
    """
    paths = [path for folder in folders for path in sets_in(Path(folder).expanduser())]
    resolved = [path.resolve() for path in paths]
    if twice := [str(path) for path in paths if resolved.count(path.resolve()) > 1]:
        raise ValueError(f"folders names {twice[0]} twice; name every data set once")
    sets = [DataSet(path, cache=cache) for path in paths]
    known = sorted({task for data in sets for task in data.card.tasks})
    if unknown := [task for task in holdout if task not in known]:
        raise ValueError(f"holdout must be tasks of these data sets: {', '.join(known) or 'none'} (got {unknown[0]})")
    mixed = [data for data in sets if set(data.card.tasks) & set(holdout) and not set(data.card.tasks) <= set(holdout)]
    if mixed:
        raise ValueError(
            f"{mixed[0].folder} holds held-out and other tasks together: collect them into one folder each"
        )
    left = [data for data in sets if not set(data.card.tasks) & set(holdout)]
    if not left:
        raise ValueError(f"holdout={list(holdout)} leaves no data set of folders={list(folders)}")
    return left


def named_parts(
    parts: Mapping[str, PartConfig], root: Path, *, skip: bool, cache: EpisodeCache
) -> list[tuple[DataSet, PartConfig]]:
    """The parts of a named mixture that are on disk.

    Raises: ValueError naming those that are not, unless `skip`.
    """
    places = survey(parts, root)
    there = [place for place in places if place.folder is not None]
    absent = [f"{place.name} ({place.state})" for place in places if place.folder is None]
    if not there:
        raise ValueError(f"none of the {len(places)} data sets of the mixture lies in root={root}; convert some first")
    if absent:
        share = sum(place.config.weight for place in there) / sum(place.config.weight for place in places)
        text = f"{len(absent)} of {len(places)} data sets are not in root={root}: {', '.join(absent)}"
        if not skip:
            raise ValueError(f"{text}; missing=skip goes on with the others, {share:.0%} of the mixture by weight")
        log.warning("WARNING: %s; the others, %.0f %% of the mixture, share their weight", text, 100 * share)
    return [(DataSet(place.folder, cache=cache), place.config) for place in there if place.folder is not None]


def weighed(
    sets: Sequence[tuple[DataSet, PartConfig | None, float]],
    *,
    split: str,
    every: int,
    episodes: int,
    stepsize: float,
    seeds: Seeds,
) -> list[Part]:
    """Parts with weights that sum to 1, each with the episodes of its split; sets without any are left out.

    Args:
        sets: data set, what the mixture says of it (None: what its own card says), weight (0: by its episodes).
    Raises: ValueError if no episode is left.
    """
    made = []
    for data, config, weight in sets:
        indices = split_of(data.names, split, every=every)
        if split == "train":
            indices = few(indices, episodes, seeds=seeds, name=data.card.name)
        if indices:
            made.append((data, config, weight or float(len(indices)), indices))
    if not made:
        held = sum(len(data) for data, _, _ in sets)
        raise ValueError(
            f"no episode is left for split {split}: there are {held}, and validation_every={every} takes "
            f"{'every one' if every == 1 else 'some' if every else 'none'} for validation"
        )
    total = sum(weight for _, _, weight, _ in made)
    return [
        Part(
            data=data,
            weight=weight / total,
            step=frame_step(config.rate if config else data.card.rate, stepsize),
            augment=config.augment if config else True,
            indices=tuple(indices),
        )
        for data, config, weight, indices in made
    ]


def check_fit(parts: Sequence[Part], spec: ModelSpec) -> None:
    """Refuses data that the model cannot read, in one line that names every set that does not fit."""
    wrong = []
    for part in parts:
        card, first = part.data.card, None
        if spec.action_dim and card.action_dim != spec.action_dim:
            wrong.append(f"{card.name} has {card.action_dim} actions, the model wants {spec.action_dim}")
        for key in spec.obs_keys:
            if key == "pixels":
                continue
            first = first or part.data.episode(part.indices[0])
            if not getattr(first, key).shape[1]:
                wrong.append(f"{card.name} has no {key}, which the model reads")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: choose other data, or a model without what is missing")
