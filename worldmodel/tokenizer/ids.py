"""Codes <-> the token string of a clip: offsets, separators, labels. Knows integers only: no frames, no networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.layout import TokenLayout

UNSUPERVISED = -100
"""Label of a position without a target."""


def ids_of_codes(context_codes_BtN: Tensor, codes_BFK: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Lay codes out as one string per clip (spec 4.1).

    Returns:
        ids int64 [B, length] and labels int64 [B, length]: -100 up to and including the first `sdf`, then the ids. The
        labels are aligned with the ids; the shift by one belongs to the loss.
    """
    # one column too many on the left makes all context frames equally long; the string has no leading `scf`
    prelude_BP = F.pad(context_codes_BtN, (1, 0), value=layout.scf).flatten(1)[:, 1:]
    future_BL = F.pad(codes_BFK + layout.vocab_context, (1, 0), value=layout.sdf).flatten(1)
    ids_BN = torch.cat([prelude_BP, future_BL], dim=1)
    labels_BN = ids_BN.clone()
    labels_BN[:, : layout.prelude + 1] = UNSUPERVISED
    return ids_BN, labels_BN


def codes_of_ids(ids_BN: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Inverse of `ids_of_codes` (spec 4.2); separators are found by position, whatever id stands there.

    Ids of future frames are clamped into their range: a transformer may draw an id of the wrong kind.

    Returns:
        context codes int64 [B, t, N] and codes int64 [B, F, K].

    Raises:
        ValueError: no whole number of frames has that length, or a context id is not a context code.
    """
    frames = layout.frames(ids_BN.shape[1])
    prelude_BP, future_BL = ids_BN.split([layout.prelude, frames * layout.stride], dim=1)
    context_codes_BtN = F.pad(prelude_BP, (1, 0)).unflatten(1, (layout.context, -1))[:, :, 1:]
    low, high = int(context_codes_BtN.min()), int(context_codes_BtN.max())
    if low < 0 or high >= layout.vocab_context:
        raise ValueError(
            f"context ids must lie in [0, {layout.vocab_context}) (got {low} to {high}): "
            "the first tokens of the string are not those of a tokenized context"
        )
    codes_BFK = future_BL.unflatten(1, (frames, layout.stride))[:, :, 1:] - layout.vocab_context
    return context_codes_BtN, codes_BFK.clamp(0, layout.vocab_future - 1)
