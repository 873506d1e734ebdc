"""Attention of new positions to what a cache holds, and to what several of its rows hold in common."""

# B rows, H heads, R queries of a row, N keys of a row, C channels per head, S starts, G rows of a start, P shared keys,
# Q = G * R queries of a start, M = P + N

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.attention import attend, small_products
from worldmodel.transformer.llama import causal


def attention(q_BHRC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, *, mutual: bool) -> Tensor:
    """Of the last R of N positions, [B, H, R, C]; the queries are scaled already.

    Args:
        mutual: the new positions see each other, not only those before them.
    """
    rows, heads, kept, channels = q_BHRC.shape
    if kept == 1 and q_BHRC.device.type == "cpu":
        # two batched products: faster here than the kernel that is made for many queries
        with small_products(q_BHRC.device):
            score = torch.bmm(q_BHRC.reshape(-1, 1, channels), k_BHNC.flatten(0, 1).transpose(1, 2))
            return torch.bmm(score.softmax(-1), v_BHNC.flatten(0, 1)).view(rows, heads, 1, channels)
    mask, is_causal = (None, False) if mutual else causal(q_BHRC, k_BHNC)
    return attend(q_BHRC, k_BHNC, v_BHNC, mask=mask, is_causal=is_causal, scale=1.0)


def attention_behind(
    shared: tuple[Tensor, Tensor], q_BHRC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, *, mutual: bool
) -> Tensor:
    """As `attention`, where each row's N own positions follow P that all G rows of its start have in common.

    All queries of a start meet one copy of its keys in one product; one softmax goes over shared and own scores.

    Args:
        shared: keys and values [S, H, P, C]; row b belongs to start b // G.
    """
    k_SHPC, v_SHPC = shared
    starts, prefix, kept, own = len(k_SHPC), k_SHPC.shape[2], q_BHRC.shape[2], k_BHNC.shape[2]
    q_SHQC = q_BHRC.unflatten(0, (starts, -1)).transpose(1, 2).flatten(2, 3)
    with small_products(q_BHRC.device):
        own_BHRN, common_SHQP = q_BHRC @ k_BHNC.transpose(2, 3), q_SHQC @ k_SHPC.transpose(2, 3)
    if kept > 1 and not mutual:
        later_RN = torch.ones(kept, own, dtype=torch.bool, device=own_BHRN.device).triu(own - kept + 1)
        own_BHRN = own_BHRN.masked_fill(later_RN, -torch.inf)
    own_SHQN = own_BHRN.unflatten(0, (starts, -1)).transpose(1, 2).flatten(2, 3)
    weight_SHQM = torch.cat([common_SHQP, own_SHQN], -1).softmax(-1)

    def by_row(x_SHQM: Tensor) -> Tensor:
        """[S, H, G * R, ...] -> [B, H, R, ...]."""
        return x_SHQM.unflatten(2, (-1, kept)).transpose(1, 2).flatten(0, 1)

    with small_products(q_BHRC.device):
        return by_row(weight_SHQM[..., :prefix] @ v_SHPC) + by_row(weight_SHQM[..., prefix:]) @ v_BHNC
