"""TokenEngine: imagines token frames with one prefill per start and a few passes per frame; ids in, ids out.

It knows nothing of pixels, rewards or TensorDicts.
"""

# B rows, t context frames, N codes of a context frame, F future frames, K codes of a future frame, A action, D hidden

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.microbatch import RowNoise, Source
from worldmodel.rollout.fused import FusedTransformer, Precision, version_of
from worldmodel.rollout.graphs import Graphs
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.passes import draw_in_passes, numbers_for
from worldmodel.rollout.sampling import SamplingConfig, draw
from worldmodel.sequence import string_of_ids
from worldmodel.transformer.token_model import TokenModel

_next_call = itertools.count(int.from_bytes(os.urandom(4), "big")).__next__
"""Tickets are unique in the process, so engines cannot mistake each other's, and not those of a loaded state either."""
_ROWS = 2**20


class Frame(NamedTuple):
    """The newest frame of every row.

    Attributes:
        ids_BK: int64 [B, K] vocabulary ids (code + `layout.vocab_context`); [B, 0] if there is no future frame yet.
        hidden_BD: post-norm hidden state at the frame's last code, or at the last context position if there is none.
        tickets_B1: int64 [B, 1], unique names of these states; `TokenEngine.resident` understands them.
    """

    ids_BK: Tensor  # noqa: N815
    hidden_BD: Tensor  # noqa: N815
    tickets_B1: Tensor  # noqa: N815


class TokenEngine:
    """Keys and values of up to `rows` token strings that grow frame by frame; all rows have equally many frames.

    The engine is a memo: whatever it holds can be rebuilt by `prefill`. It lays the weights out anew at the first
    `prefill` after a change; `forget` says that there was one (`prefill`, `issued` and `resident` notice changes made
    in place by an optimizer or `load_state_dict` anyway). It works as in eval mode and leaves the model's mode alone.
    """

    def __init__(
        self,
        model: TokenModel,
        *,
        rows: int,
        frames: int,
        sampling: SamplingConfig,
        weights: FusedTransformer | None = None,
    ) -> None:
        """Nothing is allocated before the first prefill.

        Args:
            rows: most token strings at once.
            frames: most future frames.
            weights: the model's, shared with other engines of the same sampling; None: laid out for this one alone.
        Raises: ValueError if the transformer has too few positions for that many frames.
        """
        layout, positions = model.layout, model.llm.config.positions
        if rows < 1 or frames < 1:
            raise ValueError(f"rows and frames must be at least 1 (got {rows} and {frames})")
        if layout.length(frames) > positions:
            raise ValueError(
                f"{frames} frames need {layout.length(frames)} positions, the transformer has {positions}: at most "
                f"{(positions - layout.prelude) // layout.stride} frames fit"
            )
        self._model, self._layout, self._sampling = model, layout, sampling
        self._rows, self._frames = rows, frames
        self._weights = weights or laid_out(model, sampling)
        self._version = -1  # of the weights that the keys and values were made with
        self._cache: KVCache | None = None
        self.graphs = Graphs()
        self._held_rows = 0
        self._tickets: list[tuple[Tensor, float] | None] = []
        """For each frame count held: the state's tickets and their version counter; None where no state was named."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are allocated."""
        return 0 if self._cache is None else self._cache.nbytes

    @torch.no_grad()
    def prefill(
        self,
        context_codes_BtN: Tensor,
        ids_BFK: Tensor,
        actions_BFA: Tensor | None,
        *,
        tickets_B1: Tensor | None = None,
        copies: int = 1,
    ) -> Frame:
        """Read whole strings in one pass and forget what was held before.

        Args:
            context_codes_BtN: int64 [B, t*N] context codes.
            ids_BFK: int64 [B, F, K] vocabulary ids of the frames so far; F = 0 is possible.
            actions_BFA: [B, F, A] action that led into each frame; None for an action-free model.
            tickets_B1: names that the states have already (a state that is rebuilt keeps its own); None makes new ones.
            copies: how many rows go on from each string, which is read and held once. Row b becomes rows b * copies
                and on.
        Raises: ValueError on too many rows or frames.
        """
        rows, frames = len(ids_BFK) * copies, ids_BFK.shape[1]
        if rows > self._rows:
            raise ValueError(f"{rows} rows do not fit an engine made for {self._rows}")
        if frames > self._frames:
            raise ValueError(f"{frames} frames do not fit an engine made for {self._frames}")
        ids_BN = string_of_ids(context_codes_BtN, ids_BFK, self._layout)
        cache = self._empty()
        read = cache if copies == 1 else cache.empty(rows=len(ids_BFK), positions=ids_BN.shape[1])
        hidden_BD = self._weights(self._model.embed(ids_BN, actions_BFA), read, keep=1)[:, 0]
        newest_BK = ids_BFK[:, -1] if frames else ids_BFK.new_empty(len(ids_BFK), 0)
        if copies > 1:
            cache.take(read, rows=len(ids_BFK), copies=copies, positions=read.position)
            newest_BK, hidden_BD = (x.repeat_interleave(copies, 0) for x in (newest_BK, hidden_BD))
        self._held_rows, self._tickets = rows, [None] * frames
        return self._named(newest_BK, hidden_BD, tickets_B1)

    @torch.no_grad()
    def fork(self, source: TokenEngine, frame: int, copies: int) -> Tensor:
        """Go on from what `source` (of the same weights) holds of its first `frame` frames, each row `copies` times.

        Returns: tickets int64 [B * copies, 1].
        Raises: ValueError on too many rows, or frames that are not held.
        """
        rows = source._held_rows * copies
        if rows > self._rows:
            raise ValueError(f"{rows} rows do not fit an engine made for {self._rows}")
        if not 0 <= frame < len(source._tickets):
            raise ValueError(f"cannot fork {frame} future frames: {len(source._tickets) - 1} are held")
        assert source._cache is not None and source._weights is self._weights
        positions = self._layout.length(frame)
        self._empty().take(source._cache, rows=source._held_rows, copies=copies, positions=positions)
        self._held_rows, self._tickets = rows, [None] * frame
        return self._new_tickets()

    @torch.no_grad()
    def sample_frame(self, action_BA: Tensor | None, uniform_SB: Tensor | None) -> Frame:
        """Imagine the next frame as the model's decoding says (`worldmodel.transformer.decoding`).

        Args:
            action_BA: [B, A] action that leads into the frame; None for an action-free model.
            uniform_SB: [S, B], what `uniform` gives; None takes the most likely code each time.
        Raises: ValueError if the engine is full or holds nothing.
        """
        cache, added_B1D = self._resumed(), self._action(action_BA)
        way = self._in_passes if self._model.decoding.has_queries else self._one_by_one
        numbers = () if uniform_SB is None else (uniform_SB,)
        position = cache.position

        def frame(*given: Tensor) -> tuple[Tensor, Tensor]:
            cache.rewind(position)
            return way(*given)

        if cache.shares:  # memory that every fork has anew, and splits otherwise at the same position
            ids_BK, hidden_BD = frame(added_B1D, *numbers)
        else:
            ids_BK, hidden_BD = self.graphs(position, frame, added_B1D, *numbers, places=self._places)
        if cache.position == position:  # a graph that was played has moved nothing on the host
            cache.advance(self._layout.stride)
        return self._named(ids_BK, hidden_BD, None)

    def _in_passes(self, added_B1D: Tensor, uniform_SB: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids [B, K] from passes of queries, and the hidden state [B, D] of a pass that reads them."""
        cache, first = self._resumed(), self._weights.ids.start

        def guess(drawn_BK: Tensor, known_BK: Tensor) -> Tensor:
            """One pass of queries, which leaves nothing behind."""
            position, embedded_BKD = cache.position, F.embedding(drawn_BK + first, self._weights.embedding)
            x_BKD = self._model.queries(embedded_BKD, known_BK, added_B1D)
            hidden_BKD = self._weights(x_BKD, cache, keep=x_BKD.shape[1], mutual=True)
            cache.rewind(position)
            return hidden_BKD

        drawn_BK = draw_in_passes(
            guess,
            self._weights.logits,
            torch.zeros(self._held_rows, self._layout.codes_future, dtype=torch.int64, device=added_B1D.device),
            draws=self._model.draws,
            sampling=self._sampling,
            uniform_SB=uniform_SB,
        )
        return drawn_BK + first, self._read(added_B1D, drawn_BK + first)

    def _one_by_one(self, added_B1D: Tensor, uniform_KB: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """K + 1 passes of one position; logits only where a code is drawn. Ids [B, K] and hidden state [B, D]."""
        cache, weights = self._resumed(), self._weights
        x_BTD, drawn = self._opening() + added_B1D, []
        if self._model.heads.action == "slot":
            added_B1D = torch.zeros_like(added_B1D)
        for place in range(self._layout.codes_future):
            drawn.append(self._drawn(weights(x_BTD, cache, keep=1), uniform_KB, place))
            x_BTD = F.embedding(drawn[-1].unsqueeze(1), weights.embedding) + added_B1D
        return torch.stack(drawn, 1), weights(x_BTD, cache, keep=1)[:, 0]

    @torch.no_grad()
    def sample_string(self, ids: int, uniform_SB: Tensor | None) -> Tensor:
        """Imagine `ids` ids behind the `sdf` that comes next, separators drawn like any other id (spec 9.1): [B, ids].

        Whole frames are no longer told apart, so nothing is held afterwards. The sampling must allow separators.

        Raises: ValueError where the decoding is not autoregressive: queries draw whole frames.
        """
        if self._model.decoding.has_queries:
            raise ValueError(f"decoding={self._model.decoding.kind} draws whole frames: separators must be forced")
        cache, weights = self._resumed(), self._weights
        x_BTD, drawn = self._opening(), []
        for place in range(ids):
            drawn.append(self._drawn(weights(x_BTD, cache, keep=1), uniform_SB, place))
            x_BTD = F.embedding(drawn[-1].unsqueeze(1), weights.embedding)
        self._tickets = []
        return torch.stack(drawn, 1)

    def uniform(self, generator: Source | None, ids: int | None = None) -> Tensor | None:
        """The numbers in [0, 1) that a frame is drawn with, [S, B], or a string of `ids` ids; None without generator.

        They are drawn where the generator lives, before the frame, which draws nothing itself.
        """
        if generator is None:
            return None
        weight, count = self._model.llm.lm_head.weight, ids
        if count is None:
            codes = self._layout.codes_future
            count = numbers_for(codes) if self._model.decoding.has_queries else codes
        own = generator if isinstance(generator, RowNoise) else RowNoise.all(generator, self._held_rows)
        whole = torch.rand(count, own.rows, generator=own.generator, device=own.generator.device, dtype=weight.dtype)
        drawn = whole[:, own.first : own.first + self._held_rows].contiguous()
        return drawn.to(weight.device, non_blocking=True)

    @torch.no_grad()
    def force_frame(self, action_BA: Tensor | None, ids_BK: Tensor) -> Frame:
        """The next frame is given: one pass of K + 1 positions; otherwise as `sample_frame`."""
        self._resumed()
        if ids_BK.shape != (self._held_rows, self._layout.codes_future):
            raise ValueError(f"ids {tuple(ids_BK.shape)} must be {(self._held_rows, self._layout.codes_future)}")
        return self._named(ids_BK, self._read(self._action(action_BA), ids_BK), None)

    def _read(self, added_B1D: Tensor, ids_BK: Tensor) -> Tensor:
        """The hidden state [B, D] behind a frame of these ids."""
        codes_BKD = F.embedding(ids_BK, self._weights.embedding)
        if self._model.heads.action == "frame":
            codes_BKD = codes_BKD + added_B1D
        x_BTD = torch.cat([self._opening() + added_B1D, codes_BKD], 1)
        return self._weights(x_BTD, self._resumed(), keep=1)[:, 0]

    def issued(self, tickets_B1: Tensor) -> int | None:
        """Frames of the state whose tickets are this very tensor, if it is held, else None. No host sync.

        A tensor that was written to since it was given out (rows of a state changed in place) is not known any more.
        """
        if self._weights.holds(self._version):
            for frame, held in enumerate(self._tickets):
                if held is not None and held[0] is tickets_B1 and held[1] == version_of(tickets_B1):
                    return frame
        return None

    def resident(self, tickets_B1: Tensor, frame: int) -> bool:
        """Whether these states of `frame` future frames are held, row by row: if so, `rewind(frame)` is enough."""
        if not 0 <= frame < len(self._tickets) or not self._weights.holds(self._version):
            return False
        held = self._tickets[frame]
        return held is not None and held[1] == version_of(held[0]) and torch.equal(held[0], tickets_B1)  # sync

    def rewind(self, frame: int) -> None:
        """Drop all future frames after the first `frame`; costs nothing.

        Raises: ValueError if so many frames are not held.
        """
        if not 0 <= frame < len(self._tickets):
            raise ValueError(f"cannot rewind to {frame} future frames: {len(self._tickets) - 1} are held")
        assert self._cache is not None
        self._cache.rewind(self._layout.length(frame))
        del self._tickets[frame + 1 :]

    def forget(self) -> None:
        """The weights have changed: nothing that is held counts any more."""
        self._tickets = []
        self._weights.forget()

    def _empty(self) -> KVCache:
        """An empty cache beside weights that are up to date, where the model lives now."""
        llm, self._version = self._model.llm, self._weights.refresh()
        weight, held = llm.lm_head.weight, None if self._cache is None else self._cache.k_LBHNC
        if self._cache is None or held is None or held.device != weight.device or held.dtype != weight.dtype:
            self._cache = KVCache(
                layers=llm.config.layers,
                rows=self._rows,
                heads=llm.config.heads,
                positions=self._layout.length(self._frames),
                channels=llm.config.hidden // llm.config.heads,
                dtype=weight.dtype,
                device=weight.device,
            )
        self._cache.rewind(0)
        return self._cache

    def _places(self) -> tuple[int, ...]:
        """Where all lies that a frame reads and writes beside its inputs."""
        assert self._cache is not None
        held = (self._cache.k_LBHNC, self._cache.v_LBHNC, *self._weights.tensors(), *self._model.parameters())
        return tuple(x.data_ptr() for x in held)

    def _resumed(self) -> KVCache:
        """What the next frame continues from."""
        if not self._tickets or self._cache is None or self._version != self._weights.version:
            raise ValueError("the engine holds nothing: call prefill first (and again after forget)")
        if len(self._tickets) > self._frames:
            raise ValueError(f"frame {len(self._tickets)} does not fit an engine made for {self._frames} frames")
        return self._cache

    def _drawn(self, hidden_B1D: Tensor, uniform_SB: Tensor | None, place: int) -> Tensor:
        """Ids [B] of the next position."""
        uniform_B = None if uniform_SB is None else uniform_SB[place]
        return draw(self._weights.logits(hidden_B1D[:, 0]), self._sampling, uniform_B) + self._weights.ids.start

    def _opening(self) -> Tensor:
        """Embedding [B, 1, D] of the `sdf` that opens a frame."""
        return self._weights.embedding[self._layout.sdf].expand(self._held_rows, 1, -1)

    def _action(self, action_BA: Tensor | None) -> Tensor:
        """What the action into a frame adds, [B, 1, D]; 0 for an action-free model."""
        if action_BA is None or (self._model.condition_dim == 0 and action_BA.shape[-1] == 0):
            return self._model.llm.lm_head.weight.new_zeros(self._held_rows, 1, 1)
        if action_BA.shape != (self._held_rows, self._model.condition_dim):
            raise ValueError(f"action {tuple(action_BA.shape)} must be {(self._held_rows, self._model.condition_dim)}")
        return self._model.action_linear(action_BA).unsqueeze(1)

    def _named(self, ids_BK: Tensor, hidden_BD: Tensor, tickets_B1: Tensor | None) -> Frame:
        """Push the newest frame's tickets."""
        return Frame(ids_BK, hidden_BD, self._new_tickets(tickets_B1))

    def _new_tickets(self, tickets_B1: Tensor | None = None) -> Tensor:
        if tickets_B1 is None:
            first = _ROWS * _next_call()
            device = self._model.llm.lm_head.weight.device
            with torch.inference_mode(mode=False):  # else writing to them would not be noticed
                tickets_B1 = torch.arange(first, first + self._held_rows, device=device).unsqueeze(1)
        self._tickets.append((tickets_B1, version_of(tickets_B1)))
        return tickets_B1


def laid_out(model: TokenModel, sampling: SamplingConfig, precision: Precision = "float32") -> FusedTransformer:
    """The weights for engines of this sampling: logits of the ids only that it can draw."""
    layout = model.layout
    codes = range(layout.vocab_context, layout.scf)
    return FusedTransformer(model, ids=codes if sampling.codes_only else range(layout.vocab), precision=precision)
