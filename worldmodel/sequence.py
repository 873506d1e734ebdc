"""Codes <-> the token string of a clip: offsets, separators, labels.

Knows integers only: no frames, no networks. `worldmodel.layout` says where everything sits.
"""

# B rows, N positions, t context frames, F future frames, K codes of a future frame

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.layout import TokenLayout

IGNORED = -100  # label of a position that is not supervised (torch's own convention)


def layout_ids(context_codes_BtN: Tensor, codes_BFK: Tensor, layout: TokenLayout) -> Tensor:
    """The token string of codes (spec section 4): offsets added, separators put in.

    Args:
        context_codes_BtN: int64 [B, t*N] or [B, t, N], codes in [0, vocab_context), frame after frame.
        codes_BFK: int64 [B, F, K], codes in [0, vocab_future); F = 0 gives the context alone.
    Returns: int64 [B, layout.length(F)] vocabulary ids.
    Raises: ValueError if the number of codes does not fit the layout.
    """
    return string_of_ids(context_codes_BtN, codes_BFK + layout.vocab_context, layout)


def string_of_ids(context_codes_BtN: Tensor, ids_BFK: Tensor, layout: TokenLayout) -> Tensor:
    """As `layout_ids`, for future frames that are vocabulary ids already (a model may have drawn any id)."""
    rows = context_codes_BtN.shape[0]
    per_row = layout.context * layout.codes_context
    if context_codes_BtN[0].numel() != per_row:
        raise ValueError(
            f"context codes {tuple(context_codes_BtN.shape)} must be {per_row} = {layout.context} frames x "
            f"{layout.codes_context} codes per row"
        )
    if ids_BFK.dim() != 3 or ids_BFK.shape[0] != rows or ids_BFK.shape[2] != layout.codes_future:
        raise ValueError(f"future ids {tuple(ids_BFK.shape)} must be [{rows}, F, {layout.codes_future}]")
    context_BtN = context_codes_BtN.reshape(rows, layout.context, layout.codes_context)
    # one column too many on the left makes all context frames equally long; the string has no leading `scf`
    opened_BtN = F.pad(context_BtN, (1, 0), value=layout.scf).flatten(1)
    return torch.cat([opened_BtN[:, 1:], F.pad(ids_BFK, (1, 0), value=layout.sdf).flatten(1)], 1)


def layout_labels(ids_BN: Tensor, layout: TokenLayout, *, num_observed: int = 0) -> Tensor:
    """Labels aligned with the ids: IGNORED up to and including the `sdf` of the first supervised frame.

    The shift by one belongs to the loss.

    Args:
        given: leading future frames that are observed, not predicted.
    Returns: int64 [B, N]; with given = 0 the published labels: all codes and every later `sdf` are targets.
    """
    labels_BN = ids_BN.clone()
    labels_BN[:, : layout.sdf_position(num_observed) + 1] = IGNORED
    return labels_BN


def codes_of_ids(ids_BN: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Inverse of `layout_ids` (spec 4.2); separators are found by position, whatever id stands there.

    Ids of future frames are clamped into their range: a transformer may draw an id of the wrong kind.

    Returns: context codes int64 [B, t, N] and codes int64 [B, F, K].
    Raises: ValueError if no whole number of frames has that length, or a context id is not a context code.
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
