"""A frame's codes from a few passes of queries: which are drawn when (`worldmodel.transformer.decoding` says why).

It knows hidden states and numbers that the caller has drawn; not where keys and values are kept.
"""

# B rows, K codes of a frame, n of them in one pass, D hidden

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.rollout.sampling import SamplingConfig, draw

Guess = Callable[[Tensor, Tensor], Tensor]
"""(ids [B, K], which of them are known, bool [B, K]) -> hidden states [B, K, D] that predict the ids."""


def numbers_for(codes: int) -> int:
    """Numbers in [0, 1) that a row's frame is drawn with: one for each code, and one for its place in the order."""
    return 2 * codes


def draw_in_passes(
    guess: Guess,
    logits: Callable[[Tensor], Tensor],
    nothing_BK: Tensor,
    *,
    draws: tuple[int, ...],
    sampling: SamplingConfig,
    uniform_SB: Tensor | None,
) -> Tensor:
    """What `logits` count as one frame's codes, int64 [B, K].

    Args:
        guess: called once for each pass, with vocabulary positions counted as `logits` count them.
        logits: hidden states [..., D] -> [..., V].
        nothing_BK: int64, any ids; they are never shown.
        draws: how many codes each pass draws; their sum is K.
        uniform_SB: [2K, B], see `numbers_for`; None takes the most likely code each time, the surest first.
    """
    codes, begin = nothing_BK.shape[1], 0
    ids_BK, known_BK = nothing_BK, torch.zeros_like(nothing_BK, dtype=torch.bool)
    number_BK = order_BK = None
    if uniform_SB is not None and sampling.temperature > 0:
        number_BK, order_BK = uniform_SB[:codes].T, uniform_SB[codes:].T.argsort(dim=1, stable=True)
    for count in draws:
        hidden_BKD = guess(ids_BK, known_BK)
        if order_BK is None:
            sure_BK = logits(hidden_BKD).log_softmax(-1).amax(-1).masked_fill(known_BK, -torch.inf)
            place_Bn = sure_BK.topk(count, 1).indices
        else:
            place_Bn = order_BK[:, begin : begin + count]
        hidden_BnD = hidden_BKD.gather(1, place_Bn.unsqueeze(-1).expand(-1, -1, hidden_BKD.shape[-1]))
        number_Bn = None if number_BK is None else number_BK.gather(1, place_Bn).flatten()
        drawn_Bn = draw(logits(hidden_BnD).flatten(0, 1), sampling, number_Bn).view_as(place_Bn)
        ids_BK = ids_BK.scatter(1, place_Bn, drawn_Bn)
        known_BK = known_BK.scatter(1, place_Bn, True)
        begin += count
    return ids_BK
