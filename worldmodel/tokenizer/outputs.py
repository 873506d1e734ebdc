"""What the tokenizer hands out: memos of a clip's context and the result of its training forward: only tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenizerOutput(NamedTuple):
    """What the training forward returns.

    Attributes:
        recon_context: [B, t, 3, H, W] unclamped.
        recon_future: [B, F, 3, H, W] unclamped.
        commit_context, commit_future: commitment losses, scalars (0 with fsq).
        vectors_future: [B, F, K, D] with straight-through gradient.
        vectors_context: [B, t, D, side, side] with straight-through gradient.
        codes_context: int64 [B, t, N].
        codes_future: int64 [B, F, K].
    """

    recon_context: Tensor
    recon_future: Tensor
    commit_context: Tensor
    commit_future: Tensor
    vectors_future: Tensor
    vectors_context: Tensor
    codes_context: Tensor
    codes_future: Tensor


class EncodedContext(NamedTuple):
    """Context frames as the conditional encoder sees them: reusable for any number of future frames.

    Attributes:
        latents: [B, t, side, side, D] before quantization.
        features: maps [B, t, C, h, w], one per cross-attention block.
        last: last context frame [B, 3, H, W].
    """

    latents: Tensor
    features: list[Tensor]
    last: Tensor


class DecodedContext(NamedTuple):
    """Context frames as the conditional decoder sees them: reusable for any number of future frames.

    Attributes:
        recon: [B, t, 3, H, W] unclamped.
        features: maps [B, t, C, h, w], one per place that reads one.
    """

    recon: Tensor
    features: list[Tensor]
