"""Scaled dot-product attention whose many small products a CPU takes in float32, whatever it does with large ones.

The precision of float32 products is one setting of the process. `bf16` sends every product through oneDNN, which is
faster where matrices are large. Attention multiplies one small matrix for each head and block of positions: through
oneDNN torch's fused kernel takes three to four times as long, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
SMALL = "ieee"
"""The setting without oneDNN."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` on [..., L, C], [..., S, C] and [..., S, C].

    Args:
        mask: bool [L, S], which keys a query sees; None: all, or as `is_causal` says.
        dropout: probability of leaving a key out.
        scale: factor of the products; None: 1 / sqrt(C).
    """
    with small_products(query.device):
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale
        )
    if mixed.grad_fn is not None and query.device.type == "cpu":
        in_small_products(mixed.grad_fn)
    return mixed


@contextmanager
def small_products(device: torch.device) -> Iterator[None]:
    """Inside, products on a CPU are those of small matrices."""
    if device.type != "cpu":
        yield
        return
    held = MATMUL.fp32_precision
    MATMUL.fp32_precision = SMALL
    try:
        yield
    finally:
        MATMUL.fp32_precision = held


def in_small_products(node: torch.autograd.graph.Node) -> None:
    """The same for one node's backward pass."""
    held: list[str] = []

    def before(_: tuple[Tensor, ...]) -> None:
        held.append(MATMUL.fp32_precision)
        MATMUL.fp32_precision = SMALL

    def behind(_: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        MATMUL.fp32_precision = held.pop()

    node.register_prehook(before)
    node.register_hook(behind)
