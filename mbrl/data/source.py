"""Clips of data sets: what pre-training and prediction draw from. Draws are numbered, row by row.

Knows no network. A row is a function of (seed, split, stream, draw, row, data): not of ranks, caches or other rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.data.augment import Look, Strength, applied, draw
from mbrl.data.dataset import EpisodeCache
from mbrl.data.mixture import SPLITS, Part, PartConfig, check_fit, folders_of, named_parts, weighed
from mbrl.data.segments import Indices, Sampling, adapted, sampled
from mbrl.replay.cut import numbers_of
from mbrl.replay.episode import Episode
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

Split = Literal["train", "validation", "all"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how they are drawn.

    Attributes:
        folders: data sets of ours, run folders, or folders of data sets.
        weights: of `folders`, one each (a folder of data sets shares its own by episodes); empty: by their episodes.
        root: the folder of the named `parts`; empty without any.
        parts: the data sets of a named mixture, by name; empty where `folders` are meant.
        missing: what to do about parts that are not on disk: `stop`, or `skip` them.
        holdout: tasks whose data sets are left out.
        validation_every: of each set's files, sorted by name, every n-th is for validation; 0: none.
        episodes: few-shot: this many training episodes of each data set; 0: all.
        sampling: `plain`, `select`, `shuffle` or `goal` (mbrl/data/segments.py).
        horizon: steps of the window of `select` and `shuffle`; 0: as many as the segment has frames.
        stepsize: multiplies the frame rates.
        augment: `none`, `weak` or `strong`, for training alone.
        cache: megabytes of decoded episodes kept in memory.
        prefetch: draws of coming updates that training has under way in threads (see `prefetch.py`); 0: none.
    """

    folders: tuple[str, ...]
    weights: tuple[float, ...]
    root: str
    parts: Mapping[str, PartConfig]
    missing: Literal["stop", "skip"]
    holdout: tuple[str, ...]
    validation_every: int
    episodes: int
    sampling: Sampling
    horizon: int
    stepsize: float
    augment: Strength
    cache: int
    prefetch: int

    def __post_init__(self) -> None:
        for field in ("folders", "holdout"):
            value = getattr(self, field)
            if isinstance(value, str):
                object.__setattr__(self, field, (value,) if value else ())
            elif not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{field} must be a list like [a,b] (got {value!r})")
        if bool(self.folders) == bool(self.parts):
            raise ValueError(
                "folders must name at least one data set where the mixture has no parts, and none where it has; "
                f"for example data=folder data.folders=[a,b] (got folders={list(self.folders)} "
                f"and {len(self.parts)} parts)"
            )
        if self.parts and not self.root:
            raise ValueError("root must be the folder that holds the mixture's data sets (got nothing)")
        if self.weights and (len(self.weights) != len(self.folders) or min(self.weights) <= 0):
            raise ValueError(
                f"weights must be one number > 0 for each of the {len(self.folders)} folders (got {list(self.weights)})"
            )
        choices = {"missing": ("stop", "skip"), "sampling": get_args(Sampling), "augment": get_args(Strength)}
        for field, right in choices.items():
            if getattr(self, field) not in right:
                raise ValueError(f"{field} must be one of {', '.join(right)} (got {getattr(self, field)})")
        for field in ("validation_every", "episodes", "horizon", "cache", "prefetch"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be >= 0 (got {getattr(self, field)})")
        if not (math.isfinite(self.stepsize) and self.stepsize > 0):
            raise ValueError(f"stepsize must be > 0 (got {self.stepsize})")

    def build(
        self,
        *,
        spec: ModelSpec,
        seeds: Seeds,
        split: Split = "train",
        rank: int = 0,
        world: int = 1,
        sampling: Sampling | None = None,
    ) -> ClipSource:
        """The clips of a split, for a model of this kind.

        Args:
            rank: which of `world` processes asks: it gets its own rows of the global batch.
            sampling: in place of the configured one.
        Raises: ValueError where data are missing or do not fit the model; DamagedSet, DamagedEpisode.
        """
        parts = self.drawn_from(seeds=seeds, split=split)
        check_fit(parts, spec)
        return ClipSource(
            self, parts, spec=spec, seeds=seeds, split=split, rank=rank, world=world, sampling=sampling or self.sampling
        )

    def drawn_from(self, *, seeds: Seeds, split: Split) -> list[Part]:
        """Data sets with their weights and the episodes of a split. Raises: as `build`."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)} (got {split})")
        return weighed(
            self._sets(EpisodeCache(self.cache * 2**20)),
            split=split,
            every=self.validation_every,
            episodes=self.episodes,
            stepsize=self.stepsize,
            seeds=seeds,
        )

    def _sets(self, cache: EpisodeCache) -> list:
        """Data set, what the mixture says of it, and weight (0: by its episodes)."""
        if self.parts:
            found = named_parts(self.parts, Path(self.root).expanduser(), skip=self.missing == "skip", cache=cache)
            return [(data, config, config.weight) for data, config in found]
        if not self.weights:
            return [(data, None, 0.0) for data in folders_of(self.folders, self.holdout, cache)]
        sets = []
        for folder, weight in zip(self.folders, self.weights, strict=True):
            inside = folders_of([folder], (), cache)
            kept = [data for data in inside if not set(data.card.tasks) & set(self.holdout)]
            held = sum(len(data) for data in kept) or 1
            sets += [(data, None, weight * len(data) / held) for data in kept if len(data)]
        return sets


@dataclass(frozen=True, kw_only=True)
class Row:
    """One drawn row: its episode and the frames of context and clip.

    `before` is the frame from which the clip's first one was reached, -1 where nothing led into it.
    """

    episode: Episode
    context: Indices
    clip: Indices
    before: int
    look: Look


class ClipSource:
    """Draws clips with the keys of `ClipReplay.clips` (worldmodel.spec); tensors are on the CPU.

    What replay has not: rewards that nobody knows, also that of a frame that repeats the last one because the episode
    is too short; with a frame step, `action` is the one taken in the frame before (those between are lost, as in the
    paper), and `reward` is the sum of all steps between.
    """

    def __init__(
        self,
        config: DataConfig,
        parts: list[Part],
        *,
        spec: ModelSpec,
        seeds: Seeds,
        split: Split,
        rank: int,
        world: int,
        sampling: Sampling,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1} (got {rank})")
        if sampling == "goal" and spec.context == "first_frame":
            raise ValueError(
                "sampling=goal needs a model with context=sliding: the goal stands in front of the context"
            )
        self.config, self.parts, self.sampling = config, parts, sampling
        self._spec, self._seeds, self._split = spec, seeds, split
        self._rank, self._world = rank, world
        self._bounds = np.cumsum([part.weight for part in parts])
        self._strength: Strength = config.augment if split == "train" else "none"
        self.episodes = [(part, index) for part in parts for index in part.indices]
        """(part, place in it) of every episode of the split, in order."""

    def __len__(self) -> int:
        """Decisions of the split."""
        return sum(part.data.frames[index] - 1 for part, index in self.episodes)

    def clips(self, n: int, length: int, *, stream: str, draw: int) -> TensorDict:
        """This rank's rows of `n` random clips of `length` frames behind their context; batch [n / world].

        Args:
            n: rows of all ranks together.
            length: frames T behind the context; with `context: first_frame` the first of them may open the episode.
            stream: who draws.
            draw: number of the draw; the same number gives the same rows.
        Raises: ValueError if `n` is no multiple of the ranks; DamagedEpisode, DamagedSet.
        """
        if n < 1 or n % self._world:
            raise ValueError(f"n must be a multiple of {self._world} rows, one part for each rank (got {n})")
        own = n // self._world
        return self._collated(
            [self._row(length, stream, draw, row) for row in range(self._rank * own, (self._rank + 1) * own)]
        )

    def _row(self, length: int, stream: str, number: int, row: int) -> Row:
        random = self._seeds.numpy(f"data/{self._split}/{stream}", number, row)
        place = min(int(np.searchsorted(self._bounds, random.random(), side="right")), len(self.parts) - 1)
        part = self.parts[place]
        episode = part.data.episode(part.indices[int(random.integers(len(part.indices)))])
        context = self._spec.context_frames if self._spec.context == "sliding" else 0
        frames = len(episode.pixels)
        found = sampled(
            random,
            self.sampling,
            frames=frames,
            length=context + length,
            context=context,
            step=part.step,
            horizon=self.config.horizon,
        )
        strength = self._strength if part.augment else "none"
        look = draw(random, strength, height=episode.pixels.shape[2], width=episode.pixels.shape[3])
        span = context + length if self.sampling == "plain" else self.config.horizon or context + length
        return self._cut(episode, found, step=adapted(part.step, frames=frames, span=span), look=look)

    def _cut(self, episode: Episode, found: Indices, *, step: int, look: Look) -> Row:
        """Context and clip of the frames `found`, which are `step` apart where they are regular."""
        t = self._spec.context_frames
        if self._spec.context == "sliding":
            return Row(episode=episode, context=found[:t], clip=found[t:], before=int(found[t - 1]), look=look)
        before = max(int(found[0]) - step, 0) if found[0] else -1
        return Row(episode=episode, context=np.zeros(t, np.int64), clip=found, before=before, look=look)

    def opening(self, first: int, n: int, length: int) -> TensorDict:
        """How episodes `first` to `first + n` of the split begin: context and `length` frames; batch [n].

        Frames follow each other in the data set's steps, unaugmented (the evaluation clips of spec 10.7). With
        `context: first_frame` the clip begins with the episode's first frame.
        Raises: ValueError if there are not as many episodes.
        """
        if first < 0 or n < 1 or first + n > len(self.episodes):
            raise ValueError(f"episodes must be within 0..{len(self.episodes) - 1} (got {first} to {first + n - 1})")
        rows, context = [], self._spec.context_frames if self._spec.context == "sliding" else 0
        for part, index in self.episodes[first : first + n]:
            episode = part.data.episode(index)
            frames, (height, width) = len(episode.pixels), episode.pixels.shape[2:]
            step = adapted(part.step, frames=frames, span=context + length)
            found = np.minimum(step * np.arange(context + length), frames - 1)
            look = Look(box=(0, 0, height, width), colours=())
            rows.append(self._cut(episode, found, step=step, look=look))
        return self._collated(rows)

    def _collated(self, rows: list[Row]) -> TensorDict:
        clip = numbers_of(
            [row.episode for row in rows],
            self._spec,
            np.stack([row.clip for row in rows]),
            before_W=np.array([row.before for row in rows]),
        )
        tensors = {key: torch.from_numpy(array) for key, array in clip.items()}
        if "pixels" in self._spec.obs_keys:
            frames = torch.stack([self._frames(row) for row in rows])
            tensors["context"], tensors["pixels"] = frames.split([self._spec.context_frames, len(rows[0].clip)], dim=1)
        return TensorDict(tensors, batch_size=[len(rows)])

    def _frames(self, row: Row) -> Tensor:
        """Context and clip as they look in this row, u8 [t+T, 3, S, S]."""
        pixels = row.episode.pixels[np.concatenate([row.context, row.clip])]
        return applied(torch.from_numpy(pixels), row.look, side=self._spec.image)
