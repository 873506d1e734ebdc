"""TokenEngine: imagines token frames with one prefill per start and 1 + K positions per frame; ids in, ids out.

It knows nothing of pixels, rewards or TensorDicts.
"""

# B rows, t context frames, N codes of a context frame, F future frames, K codes of a future frame, A action, D hidden

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.microbatch import Source
from worldmodel.rollout.fused import FusedTransformer
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.sampling import SamplingConfig, draw
from worldmodel.sequence import string_of_ids
from worldmodel.transformer.token_model import TokenModel

_next_ticket = itertools.count().__next__  # tickets are unique in the process, so engines cannot mistake each other's


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
    `prefill` after a change; `forget` says that there was one (`prefill` and `resident` notice changes made in place by
    an optimizer or `load_state_dict` anyway). It works as in eval mode and leaves the model's mode alone.
    """

    def __init__(self, model: TokenModel, *, rows: int, frames: int, sampling: SamplingConfig) -> None:
        """Nothing is allocated before the first prefill.

        Args:
            rows: most token strings at once.
            frames: most future frames.
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
        # ids that can be drawn: a range of the vocabulary
        self._first = layout.vocab_context if sampling.codes_only else 0
        self._last = layout.scf if sampling.codes_only else layout.vocab
        self._cache: KVCache | None = None
        self._fused: FusedTransformer | None = None
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._held_rows = 0
        self._tickets: list[Tensor | None] = []  # one entry per frame count held; None where no state was named

    @torch.no_grad()
    def prefill(
        self,
        context_codes_BtN: Tensor,
        ids_BFK: Tensor,
        actions_BFA: Tensor | None,
        *,
        tickets_B1: Tensor | None = None,
    ) -> Frame:
        """Read whole strings in one pass and forget what was held before.

        Args:
            context_codes_BtN: int64 [B, t*N] context codes.
            ids_BFK: int64 [B, F, K] vocabulary ids of the frames so far; F = 0 is possible.
            actions_BFA: [B, F, A] action that led into each frame; None for an action-free model.
            tickets_B1: names that the states have already (a state that is rebuilt keeps its own); None makes new ones.
        Raises: ValueError on too many rows or frames.
        """
        rows, frames = ids_BFK.shape[:2]
        if rows > self._rows:
            raise ValueError(f"{rows} rows do not fit an engine made for {self._rows}")
        if frames > self._frames:
            raise ValueError(f"{frames} frames do not fit an engine made for {self._frames}")
        ids_BN = string_of_ids(context_codes_BtN, ids_BFK, self._layout)
        fused, cache = self._prepare()
        hidden_B1D = fused(self._model.embed(ids_BN, actions_BFA), cache, keep=1)
        self._held_rows, self._tickets = rows, [None] * frames
        newest_BK = ids_BFK[:, -1] if frames else ids_BFK.new_empty(rows, 0)
        return self._named(newest_BK, hidden_B1D[:, 0], tickets_B1)

    @torch.no_grad()
    def sample_frame(self, action_BA: Tensor | None, generator: Source | None) -> Frame:
        """Imagine the next frame: K + 1 passes of one position; logits only where a code is drawn.

        Args:
            action_BA: [B, A] action that leads into the frame; None for an action-free model.
            generator: source of the draws, on the model's device; None takes the most likely code each time.
        Raises: ValueError if the engine is full or holds nothing.
        """
        fused, cache = self._resumed()
        added_B1D = self._action(action_BA)
        x_BTD, drawn = self._opening(fused) + added_B1D, []
        if self._model.heads.action == "slot":
            added_B1D = torch.zeros_like(added_B1D)
        for _ in range(self._layout.codes_future):
            logits_BV = fused.logits(fused(x_BTD, cache, keep=1)[:, 0])
            ids_B = draw(logits_BV, self._sampling, generator) + self._first
            drawn.append(ids_B)
            x_BTD = F.embedding(ids_B.unsqueeze(1), fused.embedding) + added_B1D
        return self._named(torch.stack(drawn, 1), fused(x_BTD, cache, keep=1)[:, 0], None)

    @torch.no_grad()
    def sample_string(self, ids: int, generator: torch.Generator | None) -> Tensor:
        """Imagine `ids` ids behind the `sdf` that comes next, separators drawn like any other id (spec 9.1): [B, ids].

        Whole frames are no longer told apart, so nothing is held afterwards. The sampling must allow separators.
        """
        fused, cache = self._resumed()
        x_BTD, drawn = self._opening(fused), []
        for _ in range(ids):
            drawn.append(draw(fused.logits(fused(x_BTD, cache, keep=1)[:, 0]), self._sampling, generator) + self._first)
            x_BTD = F.embedding(drawn[-1].unsqueeze(1), fused.embedding)
        self._tickets = []
        return torch.stack(drawn, 1)

    @torch.no_grad()
    def force_frame(self, action_BA: Tensor | None, ids_BK: Tensor) -> Frame:
        """The next frame is given: one pass of K + 1 positions; otherwise as `sample_frame`."""
        fused, cache = self._resumed()
        if ids_BK.shape != (self._held_rows, self._layout.codes_future):
            raise ValueError(f"ids {tuple(ids_BK.shape)} must be {(self._held_rows, self._layout.codes_future)}")
        added_B1D, codes_BKD = self._action(action_BA), F.embedding(ids_BK, fused.embedding)
        if self._model.heads.action == "frame":
            codes_BKD = codes_BKD + added_B1D
        x_BTD = torch.cat([self._opening(fused) + added_B1D, codes_BKD], 1)
        return self._named(ids_BK, fused(x_BTD, cache, keep=1)[:, 0], None)

    def resident(self, tickets_B1: Tensor, frame: int) -> bool:
        """Whether these states of `frame` future frames are held, row by row: if so, `rewind(frame)` is enough."""
        if not 0 <= frame < len(self._tickets) or self._stamp != self._weights():
            return False
        held_B1 = self._tickets[frame]
        return held_B1 is not None and torch.equal(held_B1, tickets_B1)  # sync, once per frame

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
        self._tickets, self._fused = [], None

    def _prepare(self) -> tuple[FusedTransformer, KVCache]:
        """An empty cache and weights that are up to date, where the model lives now."""
        llm = self._model.llm
        weight, stamp = llm.lm_head.weight, self._weights()
        if self._fused is None or self._stamp != stamp:
            fused = FusedTransformer(llm, rows=self._rows, first=self._first, last=self._last)
            self._fused, self._stamp = fused, stamp
        held = None if self._cache is None else self._cache.k_LBHNC
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
        return self._fused, self._cache

    def _resumed(self) -> tuple[FusedTransformer, KVCache]:
        """What the next frame continues from."""
        if not self._tickets or self._fused is None or self._cache is None:
            raise ValueError("the engine holds nothing: call prefill first (and again after forget)")
        if len(self._tickets) > self._frames:
            raise ValueError(f"frame {len(self._tickets)} does not fit an engine made for {self._frames} frames")
        return self._fused, self._cache

    def _opening(self, fused: FusedTransformer) -> Tensor:
        """Embedding [B, 1, D] of the `sdf` that opens a frame."""
        return fused.embedding[self._layout.sdf].expand(self._held_rows, 1, -1)

    def _action(self, action_BA: Tensor | None) -> Tensor:
        """What the action into a frame adds, [B, 1, D]; 0 for an action-free model."""
        if action_BA is None or (self._model.action_dim == 0 and action_BA.shape[-1] == 0):
            return self._model.llm.lm_head.weight.new_zeros(self._held_rows, 1, 1)
        if action_BA.shape != (self._held_rows, self._model.action_dim):
            raise ValueError(f"action {tuple(action_BA.shape)} must be {(self._held_rows, self._model.action_dim)}")
        return self._model.action_linear(action_BA).unsqueeze(1)

    def _named(self, ids_BK: Tensor, hidden_BD: Tensor, tickets_B1: Tensor | None) -> Frame:
        """Push the newest frame's tickets."""
        if tickets_B1 is None:
            names = [_next_ticket() for _ in range(len(ids_BK))]
            tickets_B1 = torch.tensor(names, dtype=torch.int64, device=ids_BK.device).unsqueeze(1)
        self._tickets.append(tickets_B1.clone())
        return Frame(ids_BK, hidden_BD, tickets_B1)

    def _weights(self) -> tuple[tuple[int, int], ...]:
        """A stamp that moves with every change of a weight in place."""
        return tuple((parameter.data_ptr(), parameter._version) for parameter in self._model.parameters())
