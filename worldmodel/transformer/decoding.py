"""Who predicts the codes of a frame, and how many of them at once: decoding as a choice beside model and engine.

A token string (`worldmodel.layout`) is read in one way whatever the decoding: causally. So keys and values, the hidden
state at a frame's last code, and with it reward, continuation and latent, mean the same everywhere, and `prefill`,
`force_frame`, `fork` and `rewind` are the same passes. What differs is what predicts a code behind its frame's past:

* `autoregressive` (published): the position before it. K + 1 passes of one position, each code given all before it.
* `parallel`: a *query* of its own, a learned vector for each place plus the action that leads into the frame, standing
  where the position before the code would stand. Queries see all earlier frames and each other. One pass draws all K
  codes, each independently of the others (POP in REM, arXiv 2402.05643): what two codes must agree on they may not.
* `masked` in k passes: of each pass only some codes are kept; in the next one their queries show these codes in place
  of the learned vector, and the others are predicted anew, given them (MaskGIT, arXiv 2202.04200).

When a frame is drawn, its codes are read like those of a real one (`force_frame`, a pass of K + 1 positions) where the
queries' keys and values were: later frames see clean codes only. That makes 2 or k + 1 passes a frame, not K + 1.

How many (MaskGIT, section 3.2, cosine): after s of k passes floor(K cos(pi/2 s/k)) codes are still unknown, but each
pass draws one at least.

Which (`worldmodel.rollout.passes`): places in an order drawn at random, whatever stands there. Then a pass draws from
p(codes | past, any known codes), which is what training fits, and the frame is a sample of the model's own joint
distribution but for the independence within a pass (arXiv 2110.02037); to keep the surest codes of those that were
drawn, as MaskGIT does for pictures, would make likely frames too likely. Where nothing is drawn and the most likely
frame is wanted, the surest are kept.

Training: all frames at once, in one pass over the clean string with the queries of all frames behind it, under a mask
(`sight`): a query of frame j sees the string up to frame j - 1 and the queries of frame j; nothing of the string sees
any query. What a query is shown of its own frame is drawn as a rollout would have it: a place in the order, uniformly,
and the codes that are known in the pass that draws it. A frame's loss is the mean cross-entropy of its unknown codes;
its expectation is then the nats per code of all passes together, which bound those of the frame's exact likelihood from
above and compare with those of `autoregressive`.
"""

# B rows, N positions of the string, F frames, f of them with queries, K codes of a frame, M = N + f * K

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.microbatch import Source, integers, uniform


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the codes of a frame are predicted.

    Attributes:
        kind: see above.
        passes: k of `masked`, at least 2 and at most the codes of a frame; null otherwise.
    """

    kind: Literal["autoregressive", "parallel", "masked"]
    passes: int | None

    def __post_init__(self) -> None:
        if self.kind not in ("autoregressive", "parallel", "masked"):
            raise ValueError(f"kind must be autoregressive, parallel or masked (got {self.kind})")
        if self.kind != "masked" and self.passes is not None:
            raise ValueError(f"passes must be null with kind={self.kind} (got {self.passes}); only masked has several")
        if self.kind == "masked" and (type(self.passes) is not int or self.passes < 2):
            raise ValueError(f"passes must be >= 2 with kind=masked (got {self.passes}); in one pass it is parallel")

    @property
    def has_queries(self) -> bool:
        """Whether codes are predicted by queries, and not by the position before them."""
        return self.kind != "autoregressive"

    def draws(self, codes: int) -> tuple[int, ...]:
        """How many of a frame's codes each pass of queries draws.

        Raises: ValueError for more passes than codes.

        >>> DecodingConfig(kind="masked", passes=3).draws(16)
        (3, 5, 8)
        >>> [DecodingConfig(kind="masked", passes=passes).draws(4) for passes in (2, 3, 4)]
        [(2, 2), (1, 1, 2), (1, 1, 1, 1)]
        """
        passes, unknown, drawn = self.passes or 1, codes, []
        if passes > codes:
            raise ValueError(f"passes must be <= {codes}, the codes of a frame (got {passes})")
        for number in range(1, passes + 1):
            cosine = math.floor(codes * math.cos(math.pi / 2 * number / passes) + 1e-9)
            left = max(min(cosine, unknown - 1), passes - number)
            drawn.append(unknown - left)
            unknown = left
        return tuple(drawn)

    def shown(self, shape_BFK: torch.Size, source: Source, *, device: torch.device) -> Tensor | None:
        """Which codes of its own frame a query sees in training, bool [B, F, K]; None without queries."""
        if not self.has_queries:
            return None
        draws, place_BF = self.draws(shape_BFK[2]), integers(shape_BFK[2], shape_BFK[:2], source, device=device)
        known_BF = torch.zeros_like(place_BF)
        for drawn, end in zip(draws, accumulate(draws), strict=True):
            known_BF += drawn * (place_BF >= end)
        rank_BFK = uniform(shape_BFK, source, device=device).argsort(-1)  # every order is equally likely
        return rank_BFK < known_BF.unsqueeze(-1)


AUTOREGRESSIVE = DecodingConfig(kind="autoregressive", passes=None)


class Sight(NamedTuple):
    """Where the positions of a training pass stand, and what they see.

    Attributes:
        positions_M: int64, of the rotary embedding.
        sees_MM: bool, whether a row's position sees a column's.
    """

    positions_M: Tensor  # noqa: N815
    sees_MM: Tensor  # noqa: N815


def sight(layout: TokenLayout, frames: int, *, first: int, device: torch.device) -> Sight:
    """For the string of `frames` frames with the queries of frame `first` and all later ones behind it.

    >>> tiny = TokenLayout(context=1, codes_context=1, codes_future=2, vocab_context=5, vocab_future=5)
    >>> there = sight(tiny, 2, first=1, device=torch.device("cpu"))
    >>> there.positions_M.tolist()
    [0, 1, 2, 3, 4, 5, 6, 4, 5]
    >>> there.sees_MM[[6, 7]].int().tolist()
    [[1, 1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 1, 1]]
    """
    string_N = torch.arange(layout.length(frames), device=device)
    frame_Q = torch.arange(first, frames, device=device).repeat_interleave(layout.codes_future)
    place_Q = torch.arange(layout.codes_future, device=device).repeat(frames - first)
    opened_Q = layout.prelude + layout.stride * frame_Q  # `sdf_position` of each query's frame
    newest_M = torch.cat([string_N, opened_Q - 1])  # of the string, that each position sees
    owner_M = torch.cat([torch.full_like(string_N, -1), frame_Q])
    sees_MM = torch.cat([string_N <= newest_M[:, None], frame_Q == owner_M[:, None]], 1)
    return Sight(torch.cat([string_N, opened_Q + place_Q]), sees_MM)
