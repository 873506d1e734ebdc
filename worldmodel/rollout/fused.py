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


class FusedBlock(NamedTuple):
    """One block in four matrices; the norms' weights are folded into the two that read the normed stream."""

    qkv: Tensor  # [3D, D], queries scaled by 1/sqrt(C)
    out: Tensor  # [D, D], transposed
    gate_up: Tensor  # [2M, D]
    down: Tensor  # [M, D], transposed


def fuse(block: Block) -> FusedBlock:
    """A block's weights; the first and third matrix are copies, the others views."""
    attention, mlp = block.self_attn, block.mlp
    scale = (attention.q_proj.out_features // attention.heads) ** -0.5
    qkv = torch.cat([attention.q_proj.weight * scale, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return FusedBlock(
        qkv * block.input_layernorm.weight,
        attention.o_proj.weight.t(),
        gate_up * block.post_attention_layernorm.weight,
        mlp.down_proj.weight.t(),
    )


class FusedTransformer:
    """A transformer for the rollout, to be thrown away when its weights change."""

    def __init__(self, llm: Llama) -> None:
        self.blocks = [fuse(cast(Block, block)) for block in llm.model.layers]
        self.heads, self.eps = llm.config.heads, llm.config.norm_eps
        self.norm = llm.model.norm.weight
        # [2, N, 1, C]: the axis for heads is in place
        self.rope = llm.rope.to(self.norm.dtype).unsqueeze(2)

    def __call__(self, x_BTD: Tensor, cache: KVCache, *, keep: int) -> Tensor:
        """Hidden states after the final norm, [B, keep, D], of the last `keep` of T new positions.

        The last block works out only what is kept: earlier positions leave nothing but their keys and values.
        """
        new, start = x_BTD.shape[1], cache.position
        cos_T1C, sin_T1C = self.rope[:, start : start + new]
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            kept = keep if layer == last else new
            attended = self._attend(block, x_BTD, cache, layer, kept, cos_T1C, sin_T1C)
            x_BTD = x_BTD[:, new - kept :]
            rows, _, width = x_BTD.shape
            x = torch.addmm(x_BTD.reshape(-1, width), attended.reshape(-1, width), block.out)
            gate, up = F.linear(self._rms(x), block.gate_up).chunk(2, -1)
            x_BTD = torch.addmm(x, F.silu(gate).mul_(up), block.down).view(rows, kept, width)
        cache.advance(new)
        return self._rms(x_BTD) * self.norm

    def _attend(
        self, block: FusedBlock, x_BTD: Tensor, cache: KVCache, layer: int, kept: int, cos_T1C: Tensor, sin_T1C: Tensor
    ) -> Tensor:
        """Write T keys and values; attention output [B, R, H*C] of the last R = kept positions."""
        rows, new, width = x_BTD.shape
        y_BTD, cut = self._rms(x_BTD), new - kept
        if cut:
            q_BRHC = F.linear(y_BTD[:, cut:], block.qkv[:width]).view(rows, kept, self.heads, -1)
            q_BRHC = rotate(q_BRHC, cos_T1C[cut:], sin_T1C[cut:])
            kv = F.linear(y_BTD, block.qkv[width:]).view(rows, new, 2 * self.heads, -1)
            k_BTHC, v_BTHC = rotate(kv[:, :, : self.heads], cos_T1C, sin_T1C), kv[:, :, self.heads :]
        else:
            qkv = F.linear(y_BTD, block.qkv).view(rows, new, 3 * self.heads, -1)
            turned = rotate(qkv[:, :, : 2 * self.heads], cos_T1C, sin_T1C)
            q_BRHC, k_BTHC, v_BTHC = turned[:, :, : self.heads], turned[:, :, self.heads :], qkv[:, :, 2 * self.heads :]
        k_BHNC, v_BHNC = cache.extend(layer, k_BTHC.transpose(1, 2), v_BTHC.transpose(1, 2))
        return self._attention(q_BRHC.transpose(1, 2), k_BHNC, v_BHNC)

    def _attention(self, q_BHRC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
        rows, heads, kept, channels = q_BHRC.shape
        if kept == 1 and q_BHRC.device.type == "cpu":
            # two batched products: 1.3 to 1.8 times as fast here as the kernel that is made for long queries
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
