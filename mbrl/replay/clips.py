"""Random clips and transitions of real experience: what world model and agents draw from replay.

Draws are numbered and depend on the stored episodes alone. Knows nothing of networks; codes come from a given function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.replay.cut import Indices, clips_of, transitions_of
from mbrl.replay.episode import Episode
from mbrl.replay.store import EpisodeStore, OnDamage, Stored
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec, ObsKey, Subset

Tokenize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(context u8 [B, t, 3, H, W], frames u8 [B, T, 3, H, W]) -> (context codes i64 [B, t*N], codes i64 [B, T, K])."""

BEST_OF = 8
"""Candidates of a row that is the best of several."""
ENCODE_FRAMES = 128
"""Frames per call of the tokenizer when an episode is encoded; fixed, so that codes never depend on the request."""


NOUNS = {"all": "stored episode", "demos": "demonstration", "recent": "stored episode"}
"""What the episodes of a subset are called in messages."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Settings of the replay.

    Attributes:
        capacity: decisions kept in memory; the oldest episodes beyond it are dropped (demonstrations never).
        recent_fraction: share of the rows of a draw that come from the newest episodes only.
        recent_episodes: how many episodes count as the newest; demonstrations are the oldest.
        return_prioritised_fraction: share of the rows of a draw that are the best, by the clip's rewards, of
            `BEST_OF` candidates; the others are drawn as above. Optimistic: what pays is rare at first, and an agent
            whose model has seen it more often than it happened tries it again.
        on_damage: what a resumed run does about a damaged episode file: `stop`, or `skip` it with a warning.
    """

    capacity: int
    recent_fraction: float
    recent_episodes: int
    return_prioritised_fraction: float
    on_damage: OnDamage

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity must be >= 1 (got {self.capacity})")
        if not 0 <= self.recent_fraction <= 1:
            raise ValueError(f"recent_fraction must be in [0, 1] (got {self.recent_fraction})")
        if not 0 <= self.return_prioritised_fraction <= 1:
            raise ValueError(f"return_prioritised_fraction must be in [0, 1] (got {self.return_prioritised_fraction})")
        if self.recent_episodes < 1:
            raise ValueError(f"recent_episodes must be >= 1 (got {self.recent_episodes})")
        if self.on_damage not in get_args(OnDamage):
            raise ValueError(f"on_damage must be one of {', '.join(get_args(OnDamage))} (got {self.on_damage})")

    def build(
        self,
        *,
        folder: Path,
        spec: ModelSpec,
        seeds: Seeds,
        tokenize: Tokenize | None = None,
        version: Callable[[], int] = lambda: 0,
        demos: int = 0,
        lent: Sequence[Stored] = (),
    ) -> ClipReplay:
        """The replay whose files lie in `folder`; `tokenize` gives codes, valid as long as `version()` stays
        (None: a model without codes).

        `demos`: the run's first episodes are demonstrations, so many: kept for ever, on top of `capacity`.
        `lent`: episodes of data sets, likewise, which are read where they lie.
        """
        store = EpisodeStore(folder, capacity=self.capacity, on_damage=self.on_damage, protected=demos, lent=lent)
        return ClipReplay(self, store=store, spec=spec, seeds=seeds, tokenize=tokenize, version=version)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """All codes of one episode (int32, half the memory of ids), and the tokenizer version that made them."""

    version: int
    context: Tensor  # [t*N]
    frames: Tensor  # [L+1, K]


class ClipReplay:
    """The `Replay` of agents/api.py over an `EpisodeStore`; only finished episodes are ever drawn.

    Tensors are on the CPU. With `context: first_frame` the context is the episode's first frame, t times (all that an
    actor knows when the episode begins), and codes are kept per episode; with `sliding` it is the t frames before the
    clip, and codes are made for each draw, because every clip has its own context.
    """

    def __init__(
        self,
        config: ReplayConfig,
        *,
        store: EpisodeStore,
        spec: ModelSpec,
        seeds: Seeds,
        tokenize: Tokenize | None,
        version: Callable[[], int],
    ) -> None:
        self.config = config
        self.store = store
        self._spec = spec
        self._seeds = seeds
        self._tokenize = tokenize
        self._version = version
        self._codes: dict[str, Codes] = {}

    def __len__(self) -> int:
        """Stored decisions."""
        return len(self.store)

    def append(self, episode: Episode) -> str:
        """Takes a finished episode; its file is on disk when this returns. Returns the file's name.

        Raises: ValueError where frames or actions are not those of the model; OSError where the disk refuses.
        """
        frame, actions = (3, self._spec.image, self._spec.image), self._spec.action_dim
        if episode.pixels.shape[1:] != frame or episode.action.shape[1] != actions:
            raise ValueError(
                f"episode {episode.number} has frames {list(episode.pixels.shape[1:])} and "
                f"{episode.action.shape[1]} actions, the model wants {list(frame)} and {actions}: "
                "task and worldmodel configs disagree"
            )
        if not episode.rewarded:
            raise ValueError(
                f"episode {episode.number} has no rewards (NaN), and replay is what an agent learns them from: "
                "keep it in a data set (mbrl pretrain reads videos)"
            )
        missing = [key for key in self._spec.obs_keys if not getattr(episode, key).shape[1]]
        if missing:
            raise ValueError(
                f"episode {episode.number} has no {' and no '.join(missing)}, which the world model reads: the "
                "environments do not tell it, or were made without snapshots"
            )
        name = self.store.append(episode)
        self._forget_evicted()
        return name

    def clips(
        self,
        n: int,
        length: int,
        *,
        stream: str,
        draw: int,
        codes: bool = False,
        subset: Subset = "all",
        rank: int = 0,
        world: int = 1,
    ) -> TensorDict:
        """`n` clips of `length` frames; batch [n]; keys as in worldmodel.spec.

        Every clip of the subset is equally likely; of `all`, some rows are drawn as `ReplayConfig` says instead.

        Args:
            n: rows.
            length: frames T of the clip; with `context: first_frame` the first of them may open the episode.
            stream: who draws.
            draw: number of the draw; the same number gives the same rows from the same episodes.
            codes: `context_codes` and `codes` instead of `context` and `pixels`.
            subset: episodes to draw from: `all`, demonstrations alone, or the `recent_episodes` newest.
            rank, world: of the `world` equal parts of these rows only number `rank`; batch [n / world].

        Raises: ValueError if no such episode is long enough, for codes without a tokenizer, or without equal parts.
        """
        own = own_rows(n, rank=rank, world=world)
        stored, first_W = self._draw(n, length, stream=stream, draw=draw, subset=subset)
        stored, first_W = stored[own], first_W[own]
        codes, sliding = codes and "pixels" in self._spec.obs_keys, self._spec.context == "sliding"
        made = map(self._encoded, stored) if codes and not sliding else None
        memoised = None if made is None else [(one.context, one.frames) for one in made]
        clip = clips_of([one.episode for one in stored], self._spec, first_W, length=length, codes=memoised)
        if codes and sliding:  # every clip has a context of its own
            context, ids = self._tokenized(clip.pop("context"), clip.pop("pixels"))
            clip["context_codes"], clip["codes"] = context.cpu(), ids.cpu()
        return clip

    def transitions(
        self,
        n: int,
        *,
        n_step: int,
        stack: int,
        stream: str,
        draw: int,
        subset: Subset = "all",
        keys: Sequence[ObsKey] = ("pixels",),
    ) -> TensorDict:
        """`n` transitions (worldmodel.spec); every decision of the subset's episodes is equally likely; batch [n].

        Args:
            n: rows.
            n_step: decisions of a transition; fewer, `next.steps`, where the episode ends before.
            stack: frames of `keys` that stand behind each other, oldest first; before an episode frame 0 repeats.
            stream: who draws.
            draw: number of the draw; the same number gives the same rows from the same episodes.
            subset: as for `clips`; `ReplayConfig`'s fractions do not count here.
            keys: what is seen of each frame; no world model has to read it.

        Raises: ValueError if there is no such episode, or one of them lacks a key.
        """
        if min(n, n_step, stack) < 1:
            raise ValueError(f"n, n_step and stack must be >= 1 (got n={n}, n_step={n_step}, stack={stack})")
        pool = self._pool(subset)
        ends = np.cumsum([len(one.episode) for one in pool], dtype=np.int64)
        if not pool:
            raise ValueError(f"there is no {NOUNS[subset]} to draw from. Collect more before this draw")
        flat = self._seeds.numpy(f"replay/{stream}", draw).integers(0, ends[-1], n)
        index, decision_W = _located(flat, ends)
        episodes = [pool[one].episode for one in index]
        if missing := [key for key in keys if not all(getattr(episode, key).shape[1] for episode in episodes)]:
            raise ValueError(f"replay holds no {' and no '.join(missing)}: the environments do not tell it")
        return transitions_of(episodes, decision_W, n_step=n_step, stack=stack, keys=keys)

    def _pool(self, subset: Subset) -> list[Stored]:
        """The episodes of a subset, oldest first."""
        if subset not in NOUNS:
            raise ValueError(f"subset must be one of {', '.join(NOUNS)} (got {subset})")
        if subset == "recent":
            return self.store.stored[-self.config.recent_episodes :]
        return self.store.lasting() if subset == "demos" else self.store.all

    def _draw(self, n: int, length: int, *, stream: str, draw: int, subset: Subset) -> tuple[list[Stored], Indices]:
        """The episode of each clip, and the index in it of the clip's first frame."""
        context = self._spec.context_frames if self._spec.context == "sliding" else 0
        least = 0 if context else 1  # none behind a context, one where the clip itself is the start
        if n < 1 or length < least:
            raise ValueError(f"n must be >= 1 and length >= {least} (got n={n}, length={length})")
        frames, pool = context + length, self._pool(subset)
        starts = np.array([max(0, len(one.episode) + 2 - frames) for one in pool], dtype=np.int64)
        ends = np.cumsum(starts)
        if not starts.sum():
            longest = max((len(one.episode) + 1 for one in pool), default=0)
            raise ValueError(
                f"no {NOUNS[subset]} has the {frames} frames that a clip of {length} needs: there are {len(pool)} "
                f"finished episodes, the longest of {longest} frames. Collect more before this draw, or draw shorter "
                "clips"
            )
        generator = self._seeds.numpy(f"replay/{stream}", draw)
        # by chance row by row: right on average for every n
        recent = generator.random(n) < (self.config.recent_fraction if subset == "all" else 0)
        # the newest episodes whose starts count; all of them where the newest are too short
        older = max(len(self.store.lent), len(starts) - self.config.recent_episodes)
        lowest = starts[:older].sum() if starts[older:].sum() else 0
        index, start = _located(generator.integers(np.where(recent, lowest, 0), starts.sum()), ends)
        if subset == "all" and self.config.return_prioritised_fraction:
            contested = generator.random(n) < self.config.return_prioritised_fraction
            candidates = generator.integers(0, starts.sum(), (n, BEST_OF))
            for row in np.flatnonzero(contested):
                places = zip(*_located(candidates[row], ends), strict=True)
                index[row], start[row] = max(
                    places, key=lambda place: _return(pool[place[0]].episode, int(place[1]) + context, length)
                )
        return [pool[one] for one in index], start + context

    def episode_codes(self, index: int) -> Codes:
        """Codes of the whole stored episode `index` (context `first_frame`) under the tokenizer's version of now.

        Encoded again where that has moved.
        """
        return self._encoded(self.store.stored[index])

    def _encoded(self, stored: Stored) -> Codes:
        version, known = self._version(), self._codes.get(stored.name)
        if known is not None and known.version == version:
            return known
        # alone and in fixed pieces: float sums inside the tokenizer may depend on what shares a batch
        pixels = torch.from_numpy(np.array(stored.episode.pixels))[None]
        context = pixels[:, :1].expand(-1, self._spec.context_frames, -1, -1, -1)
        pieces = [self._tokenized(context, piece) for piece in pixels.split(ENCODE_FRAMES, dim=1)]
        frames = torch.cat([codes[0].cpu() for _, codes in pieces])
        made = Codes(version=version, context=pieces[0][0][0].cpu().int(), frames=frames.int())
        self._codes[stored.name] = made
        return made

    def _tokenized(self, context_BtCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        if self._tokenize is None:
            raise ValueError("codes=True needs a world model with a tokenizer (this replay has none)")
        with torch.no_grad():
            return self._tokenize(context_BtCHW, frames_BTCHW)

    def _forget_evicted(self) -> None:
        """Codes live no longer than their episode."""
        if len(self._codes) > len(self.store.all):
            there = {stored.name for stored in self.store.all}
            self._codes = {name: codes for name, codes in self._codes.items() if name in there}

    def adopt(self, listing: Sequence[Sequence[str]]) -> None:
        """Takes over the episodes of a process that writes the same folder (`EpisodeStore.adopt`)."""
        self.store.adopt(listing)
        self._forget_evicted()

    def prune(self, kept: Iterable[Mapping[str, Any]]) -> int:
        """Deletes files of evicted episodes that none of the `kept` states (of this replay, in checkpoints) needs."""
        return self.store.prune(kept)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the names and hashes of the stored episodes."""
        return self.store.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, exact. Raises: DamagedEpisode (see `EpisodeStore.restore`)."""
        self._codes = {}
        self.store.load_state_dict(state)


class OwnRows:
    """A replay as one of several processes draws from it: its rows of every draw. Alone it draws them all."""

    def __init__(self, replay: ClipReplay, *, rank: int, world: int, codes: bool = False) -> None:
        """`codes`: what a draw gives that does not say whether it wants codes or pixels."""
        self._replay, self._rank, self._world, self._codes = replay, rank, world, codes

    def __len__(self) -> int:
        """Stored decisions."""
        return len(self._replay)

    def clips(
        self, n: int, length: int, *, stream: str, draw: int, codes: bool | None = None, subset: Subset = "all"
    ) -> TensorDict:
        """This process's rows of `n` (`ClipReplay.clips`); batch [n / processes]."""
        how: dict[str, Any] = {"codes": self._codes if codes is None else codes, "subset": subset}
        return self._replay.clips(n, length, stream=stream, draw=draw, rank=self._rank, world=self._world, **how)

    def transitions(self, n: int, **how: Any) -> TensorDict:
        """This process's rows of `n` (`ClipReplay.transitions`); batch [n / processes]."""
        return self._replay.transitions(n, **how)[own_rows(n, rank=self._rank, world=self._world)]


def own_rows(n: int, *, rank: int, world: int) -> slice:
    """Rows of part `rank` of `world` equal parts. Raises: ValueError if there are none."""
    if n % world:
        raise ValueError(f"n must be a multiple of {world} processes (got {n})")
    return slice(rank * n // world, (rank + 1) * n // world)


def _located(flat: Indices, ends: Indices) -> tuple[Indices, Indices]:
    """Places in rows of episodes laid end to end, `ends` their cumulated lengths -> episode, place in it."""
    index = np.searchsorted(ends, flat, side="right")
    return index, flat - np.concatenate([[0], ends])[index]


def _return(episode: Episode, first: int, length: int) -> float:
    """Sum of the rewards that a clip shows."""
    return float(episode.reward[max(0, first - 1) : first - 1 + length].sum())
