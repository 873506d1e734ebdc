"""Random clips of real experience: what world model and agents draw from replay.

Draws are numbered and depend on the stored episodes alone. Knows nothing of networks; codes come from a given function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from mbrl.replay.episode import Episode
from mbrl.replay.store import EpisodeStore, OnDamage
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

Tokenize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(context u8 [B, t, 3, H, W], frames u8 [B, T, 3, H, W]) -> (context codes i64 [B, t*N], codes i64 [B, T, K])."""

BEST_OF = 8
"""Candidates of a row that is the best of several."""
ENCODE_FRAMES = 128
"""Frames per call of the tokenizer when an episode is encoded; fixed, so that codes never depend on the request."""


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
        tokenize: Tokenize,
        version: Callable[[], int],
        demos: int = 0,
    ) -> ClipReplay:
        """The replay whose files lie in `folder`; `tokenize` gives codes, valid as long as `version()` stays.

        `demos`: the run's first episodes are demonstrations, so many: kept for ever, on top of `capacity`.
        """
        return ClipReplay(self, folder=folder, spec=spec, seeds=seeds, tokenize=tokenize, version=version, demos=demos)


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
        folder: Path,
        spec: ModelSpec,
        seeds: Seeds,
        tokenize: Tokenize,
        version: Callable[[], int],
        demos: int = 0,
    ) -> None:
        self.config = config
        self.store = EpisodeStore(folder, capacity=config.capacity, on_damage=config.on_damage, protected=demos)
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
        missing = [key for key in self._spec.reads if not getattr(episode, key).shape[1]]
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
        demonstrated: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> TensorDict:
        """`n` clips of `length` frames, drawn as `ReplayConfig` says; batch [n]; keys as in worldmodel.spec.

        Args:
            n: rows.
            length: frames T of the clip; with `context: first_frame` the first of them may open the episode.
            stream: who draws.
            draw: number of the draw; the same number gives the same rows from the same episodes.
            codes: `context_codes` and `codes` instead of `context` and `pixels`.
            demonstrated: from demonstrations alone.
            rank, world: of the `world` equal parts of these rows only number `rank`; batch [n / world].

        Raises: ValueError if no such episode is long enough, or there are no equal parts.
        """
        if n % world:
            raise ValueError(f"n must be a multiple of {world} processes (got {n})")
        own = slice(rank * n // world, (rank + 1) * n // world)
        rows = self._draw(n, length, stream=stream, draw=draw, demonstrated=demonstrated)[own]
        if "pixels" not in self._spec.reads:
            frames = {}
        elif codes and self._spec.context == "first_frame":
            frames = self._memoised(rows, length)
        else:
            frames = self._frames(rows, length)
            if codes:
                with torch.no_grad():
                    context, ids = self._tokenize(frames["context"], frames["pixels"])
                frames = {"context_codes": context.cpu(), "codes": ids.cpu()}
        return TensorDict(frames | self._known(rows, length) | self._steps(rows, length), batch_size=[len(rows)])

    def _draw(self, n: int, length: int, *, stream: str, draw: int, demonstrated: bool) -> list[tuple[int, int]]:
        """`n` pairs (index of the episode, index k of its frame where context or clip begins)."""
        if n < 1 or length < self._least():
            raise ValueError(f"n must be >= 1 and length >= {self._least()} (got n={n}, length={length})")
        frames = length + (self._spec.context_frames if self._spec.context == "sliding" else 0)
        drawn = self.store.lasting() if demonstrated else self.store.stored
        starts = np.array([max(0, len(stored.episode) + 2 - frames) for stored in drawn], dtype=np.int64)
        if not starts.sum():
            longest = max((len(stored.episode) for stored in drawn), default=0)
            kind = "demonstration" if demonstrated else "stored episode"
            raise ValueError(
                f"no {kind} has the {frames} frames that a clip of {length} needs: there are {len(starts)} "
                f"finished episodes, the longest of {longest + 1 if longest else 0} frames. Collect more before this "
                "draw, or draw shorter clips"
            )
        generator = self._seeds.numpy(f"replay/{stream}", draw)
        # by chance row by row: right on average for every n
        recent = generator.random(n) < (0 if demonstrated else self.config.recent_fraction)
        # the newest episodes whose starts count; all of them where the newest are too short
        older = max(0, len(starts) - self.config.recent_episodes)
        lowest = starts[:older].sum() if starts[older:].sum() else 0
        flat = generator.integers(np.where(recent, lowest, 0), starts.sum())
        ends = np.cumsum(starts)

        def rows(flat: NDArray[np.int64]) -> list[tuple[int, int]]:
            episodes = np.searchsorted(ends, flat, side="right")
            return list(zip(episodes.tolist(), (flat - ends[episodes] + starts[episodes]).tolist(), strict=True))

        plain = rows(flat)
        if demonstrated or not self.config.return_prioritised_fraction:
            return plain
        contested = generator.random(n) < self.config.return_prioritised_fraction
        candidates = generator.integers(0, starts.sum(), (n, BEST_OF))
        return [
            max(rows(candidates[i]), key=lambda place: self._reward(place, length)) if contested[i] else plain[i]
            for i in range(n)
        ]

    def _reward(self, place: tuple[int, int], length: int) -> float:
        """Sum of the rewards that a clip shows."""
        index, k = place
        frame = self._first_frame(k)
        return float(self.store.stored[index].episode.reward[max(0, frame - 1) : frame - 1 + length].sum())

    def _least(self) -> int:
        """Frames that a clip must have: none behind a segment's context, one where the clip itself is the start."""
        return 0 if self._spec.context == "sliding" else 1

    def _first_frame(self, k: int) -> int:
        """Index in its episode of the clip's frame 0, for a row that begins at `k`."""
        return k + self._spec.context_frames if self._spec.context == "sliding" else k

    def _frames(self, rows: list[tuple[int, int]], length: int) -> dict[str, Tensor]:
        image, context = self._spec.image, self._spec.context_frames
        context_BtCHW = np.empty((len(rows), context, 3, image, image), np.uint8)
        pixels_BTCHW = np.empty((len(rows), length, 3, image, image), np.uint8)
        for row, (index, k) in enumerate(rows):
            pixels = self.store.stored[index].episode.pixels
            context_BtCHW[row] = pixels[k : k + context] if self._spec.context == "sliding" else pixels[:1]
            pixels_BTCHW[row] = pixels[self._first_frame(k) : self._first_frame(k) + length]
        return {"context": torch.from_numpy(context_BtCHW), "pixels": torch.from_numpy(pixels_BTCHW)}

    def _known(self, rows: list[tuple[int, int]], length: int) -> dict[str, Tensor]:
        """What the model reads of each frame beside its pixels."""
        keys = [key for key in self._spec.reads if key != "pixels"]
        firsts = [(self.store.stored[index].episode, self._first_frame(k)) for index, k in rows]
        return {
            key: torch.from_numpy(np.stack([getattr(episode, key)[k : k + length] for episode, k in firsts]))
            for key in keys
        }

    def _steps(self, rows: list[tuple[int, int]], length: int) -> dict[str, Tensor]:
        """What led into each frame of the clip; nothing led into the frame that opens an episode."""
        action_BTA = np.zeros((len(rows), length, self._spec.action_dim), np.float32)
        reward_BT = np.zeros((len(rows), length), np.float32)
        continue_BT = np.ones((len(rows), length), np.float32)
        first_BT = np.zeros((len(rows), length), np.bool_)
        for row, (index, k) in enumerate(rows):
            episode, frame = self.store.stored[index].episode, self._first_frame(k)
            opens = int(frame == 0)
            steps = slice(frame - 1 + opens, frame - 1 + length)  # step i leads into frame i + 1
            first_BT[row, :opens] = True
            action_BTA[row, opens:] = episode.action[steps]
            reward_BT[row, opens:] = episode.reward[steps]
            continue_BT[row, opens:] = ~episode.terminated[steps]
        arrays: dict[str, NDArray] = {
            "action": action_BTA,
            "reward": reward_BT,
            "continue": continue_BT,
            "first": first_BT,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _memoised(self, rows: list[tuple[int, int]], length: int) -> dict[str, Tensor]:
        made = [self.episode_codes(index) for index, _ in rows]
        return {
            "context_codes": torch.stack([codes.context for codes in made]).long(),
            "codes": torch.stack(
                [codes.frames[k : k + length] for codes, (_, k) in zip(made, rows, strict=True)]
            ).long(),
        }

    def episode_codes(self, index: int) -> Codes:
        """Codes of the whole stored episode `index` (context `first_frame`) under the tokenizer's version of now.

        Encoded again where that has moved.
        """
        stored, version = self.store.stored[index], self._version()
        known = self._codes.get(stored.name)
        if known is not None and known.version == version:
            return known
        # alone and in fixed pieces: float sums inside the tokenizer may depend on what shares a batch
        pixels = torch.from_numpy(np.array(stored.episode.pixels))[None]
        context = pixels[:, :1].expand(-1, self._spec.context_frames, -1, -1, -1)
        with torch.no_grad():
            pieces = [self._tokenize(context, piece) for piece in pixels.split(ENCODE_FRAMES, dim=1)]
        frames = torch.cat([codes[0].cpu() for _, codes in pieces])
        made = Codes(version=version, context=pieces[0][0][0].cpu().int(), frames=frames.int())
        self._codes[stored.name] = made
        return made

    def _forget_evicted(self) -> None:
        """Codes live no longer than their episode."""
        if len(self._codes) > len(self.store.stored):
            there = {stored.name for stored in self.store.stored}
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
        self._replay, self._share, self._codes = replay, {"rank": rank, "world": world}, codes

    def __len__(self) -> int:
        """Stored decisions."""
        return len(self._replay)

    def clips(
        self, n: int, length: int, *, stream: str, draw: int, codes: bool | None = None, demonstrated: bool = False
    ) -> TensorDict:
        """This process's rows of `n` (`ClipReplay.clips`); batch [n / processes]."""
        wanted = self._codes if codes is None else codes
        return self._replay.clips(
            n, length, stream=stream, draw=draw, codes=wanted, demonstrated=demonstrated, **self._share
        )
