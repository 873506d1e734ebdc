"""The transformer's weights laid out for a rollout, and one pass of new positions through them.

The plain twin is `worldmodel.transformer.llama.Llama.forward` with a cache. Nothing is ever dropped out here, whatever
mode the modules are in.
"""

# B rows, T new positions, R of them kept, N positions so far, D hidden width, H heads, C channels per head

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.rollout.kv_cache import KVCache
from worldmodel.transformer.llama import Block, Llama, causal, rotate


def pack(weight_OI: Tensor, rows: int) -> Tensor:
    """A weight in the form that `product` reads fastest for inputs of about `rows` rows.

    On a CPU that is oneDNN's own blocked form, made once: F.linear goes to MKL, which was measured 2 to 4 times slower
    on an AMD processor with AVX-512 and never faster.
    """
    if weight_OI.device.type == "cpu" and weight_OI.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), rows)
    return weight_OI


def product(x: Tensor, packed: Tensor) -> Tensor:
    """F.linear with a weight from `pack`."""
    if packed.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return F.linear(x, packed)


class FusedBlock(NamedTuple):
    """One block in four packed matrices; the norms' weights are folded into the two that read the normed stream."""

    qkv: Tensor  # [3D, D], queries scaled by 1/sqrt(C)
    out: Tensor  # [D, D]
    gate_up: Tensor  # [2M, D]
    down: Tensor  # [D, M]


def fuse(block: Block, rows: int) -> FusedBlock:
    """A block's weights, packed for passes of one position of `rows` rows."""
    attention, mlp = block.self_attn, block.mlp
    scale = (attention.q_proj.out_features // attention.heads) ** -0.5
    qkv = torch.cat([attention.q_proj.weight * scale, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return FusedBlock(
        pack(qkv * block.input_layernorm.weight, rows),
        pack(attention.o_proj.weight, rows),
        pack(gate_up * block.post_attention_layernorm.weight, rows),
        pack(mlp.down_proj.weight, rows),
    )


class FusedTransformer:
    """A transformer for the rollout, to be thrown away when its weights change."""

    def __init__(self, llm: Llama, *, rows: int, first: int, last: int) -> None:
        """Lay the weights out.

        Args:
            rows: rows of most passes.
            first: first id that can be drawn.
            last: one past the last id that can be drawn.
        """
        self.blocks = [fuse(cast(Block, block), rows) for block in llm.model.layers]
        self.embedding = llm.model.embed_tokens.weight.detach()  # composed once, not at every position
        self.head = pack(llm.lm_head.weight[first:last], rows)
        self.heads, self.eps = llm.config.heads, llm.config.norm_eps
        self.norm = llm.model.norm.weight
        # [2, N, 1, C]: the axis for heads is in place
        self.rope = llm.rope.to(self.norm.dtype).unsqueeze(2)

    def __call__(self, x_BTD: Tensor, cache: KVCache, *, keep: int) -> Tensor:
        """Hidden states after the final norm, [B, keep, D], of the last `keep` of T new positions.

        Of the positions that are not kept the last block leaves keys and values only.
        """
        new, start, last = x_BTD.shape[1], cache.position, len(self.blocks) - 1
        cos_T1C, sin_T1C = self.rope[:, start : start + new]
        for layer, block in enumerate(self.blocks):
            kept = keep if layer == last else new
            attended_BRD = self._attend(block, x_BTD, cache, layer, kept, cos_T1C, sin_T1C)
            x_BTD = x_BTD[:, new - kept :] + product(attended_BRD, block.out)
            gate, up = product(self._rms(x_BTD), block.gate_up).chunk(2, -1)
            x_BTD = product(F.silu(gate).mul_(up), block.down).add_(x_BTD)
        cache.advance(new)
        return self._rms(x_BTD) * self.norm

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that can be drawn, [..., last - first]."""
        return product(hidden, self.head)

    def _attend(
        self, block: FusedBlock, x_BTD: Tensor, cache: KVCache, layer: int, kept: int, cos_T1C: Tensor, sin_T1C: Tensor
    ) -> Tensor:
        """Write T keys and values; attention output [B, R, D] of the last R = kept positions."""
        rows, new, _ = x_BTD.shape
        heads = self.heads
        qkv = product(self._rms(x_BTD), block.qkv).view(rows, new, 3 * heads, -1)
        qk = rotate(qkv[:, :, : 2 * heads], cos_T1C, sin_T1C)
        k_BHTC, v_BHTC = qk[:, :, heads:].transpose(1, 2), qkv[:, :, 2 * heads :].transpose(1, 2)
        return self._attention(qk[:, new - kept :, :heads].transpose(1, 2), *cache.extend(layer, k_BHTC, v_BHTC))

    def _attention(self, q_BHRC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
        rows, heads, kept, channels = q_BHRC.shape
        if kept == 1 and q_BHRC.device.type == "cpu":
            # two batched products: faster here than the kernel that is made for many queries
            score = torch.bmm(q_BHRC.reshape(-1, 1, channels), k_BHNC.flatten(0, 1).transpose(1, 2))
            out_BHRC = torch.bmm(score.softmax(-1), v_BHNC.flatten(0, 1)).view(rows, heads, 1, channels)
        else:
            mask, is_causal = causal(q_BHRC, k_BHNC)
            out_BHRC = F.scaled_dot_product_attention(
                q_BHRC, k_BHNC, v_BHNC, attn_mask=mask, is_causal=is_causal, scale=1.0
            )
        return out_BHRC.transpose(1, 2).reshape(rows, kept, heads * channels)

    def _rms(self, x: Tensor) -> Tensor:
        """Divide by the root mean square; the weight is in the matrix that comes next."""
        return F.rms_norm(x, x.shape[-1:], None, self.eps)
