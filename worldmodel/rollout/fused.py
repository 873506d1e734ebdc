"""The transformer's weights laid out for a rollout, and one pass of new positions through them.

The plain twin is `worldmodel.transformer.llama.Llama.forward` with a cache. Nothing is ever dropped out here, whatever
mode the modules are in.
"""

# B rows, T new positions, R of them kept, N positions so far, D hidden width, H heads, C channels per head

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.rollout.attention import attention, attention_behind
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.transformer.llama import Block, rotate
from worldmodel.transformer.token_model import TokenModel

Precision = Literal["float32", "bfloat16", "int8"]
"""Of the products of a rollout, see `FusedTransformer`."""
Packed = Tensor | torch.ScriptObject
"""A weight as `pack` gives it; the second is FBGEMM's form of a weight in bytes."""
BYTE = 127
"""The largest whole number that a factor is rounded to, either sign."""


def multiplies_bytes(device: torch.device | str) -> bool:
    """Whether products of bytes are exact there: on x86 processors with VNNI; without it their sums saturate."""
    return torch.device(device).type == "cpu" and torch.cpu._is_vnni_supported()


def pack(weight_OI: Tensor, dtype: torch.dtype) -> Packed:
    """A weight in this type, in the form that `product` reads fastest.

    On a CPU that is oneDNN's own blocked form, one for any number of rows: F.linear goes to MKL, which was measured 2
    to 4 times slower on an AMD processor with AVX-512 and never faster.

    Args:
        dtype: a floating type; or `torch.qint8`: bytes with one scale for each output.
    Raises: ValueError for bytes where they are not multiplied.
    """
    if dtype == torch.qint8:
        return _pack_bytes(weight_OI.float())
    weight_OI = weight_OI.to(dtype)
    if weight_OI.device.type == "cpu" and _has_packed_form(dtype):
        return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())
    return weight_OI


def _pack_bytes(weight_OI: Tensor) -> torch.ScriptObject:
    if not multiplies_bytes(weight_OI.device):
        raise ValueError(f"rollout_precision=int8 needs an x86 CPU with VNNI (got {weight_OI.device}); set bfloat16")
    scale_O = _largest(weight_OI)[:, 0] / BYTE
    bytes_OI = (weight_OI / scale_O.unsqueeze(1)).round().to(torch.int8)
    zero_O = torch.zeros_like(scale_O, dtype=torch.int64)
    with warnings.catch_warnings():  # torch will drop these tensors; its other product of bytes was half as fast
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        quantized_OI = torch._make_per_channel_quantized_tensor(bytes_OI, scale_O.double(), zero_O, 0)
    return torch.ops.quantized.linear_prepack(quantized_OI, None)


def _largest(x: Tensor) -> Tensor:
    """The largest magnitude of each row, [..., 1]; never 0, since it is divided by."""
    return torch.linalg.vector_norm(x, math.inf, -1, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny)


def _has_packed_form(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


def product(x: Tensor, packed: Packed) -> Tensor:
    """F.linear with a weight from `pack`, in the weight's type; the result has the type of x.

    With a weight in bytes x is rounded to bytes too, each row by a scale of its own, so that no row depends on others.
    """
    if isinstance(packed, torch.ScriptObject):
        read = x.float()
        scale = _largest(read)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(read / scale, 1 / BYTE, BYTE + 1, packed).mul_(scale).to(x.dtype)
    read = x.to(packed.dtype)
    if packed.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(read, packed, None, "none", [], "").to(x.dtype)
    return F.linear(read, packed).to(x.dtype)


def version_of(tensor: Tensor) -> float:
    """Moves with every change of a tensor in place. One made in inference mode has none: NaN, which equals nothing, so
    that nothing is found again by it.
    """
    return math.nan if tensor.is_inference() else tensor._version


def stamp(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """What moves with every change of a tensor in place, and with the place itself. No host sync."""
    return tuple((tensor.untyped_storage()._cdata, tensor._version) for tensor in tensors)


class FusedBlock(NamedTuple):
    """One block in four packed matrices; the norms' weights are folded into the two that read the normed stream."""

    qkv: Packed  # [3D, D], queries scaled by 1/sqrt(C)
    out: Packed  # [D, D]
    gate_up: Packed  # [2M, D]
    down: Packed  # [D, M]


def fuse(block: Block, dtype: torch.dtype) -> FusedBlock:
    """A block's weights, packed in this type."""
    attention, mlp = block.self_attn, block.mlp
    scale = (attention.q_proj.out_features // attention.heads) ** -0.5
    qkv = torch.cat([attention.q_proj.weight * scale, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return FusedBlock(
        pack(qkv * block.input_layernorm.weight, dtype),
        pack(attention.o_proj.weight, dtype),
        pack(gate_up * block.post_attention_layernorm.weight, dtype),
        pack(mlp.down_proj.weight, dtype),
    )


class FusedTransformer:
    """A model's weights for the rollout. One copy serves all engines; it is refreshed in place, so pointers stay."""

    def __init__(self, model: TokenModel, *, ids: range, precision: Precision = "float32") -> None:
        """Nothing is laid out before the first `refresh`.

        Args:
            ids: those that can be drawn.
            precision: `bfloat16` keeps the blocks' matrices, and multiplies by them, in two bytes a weight: passes of
                few positions wait for weights. `int8` rounds weights and what they are multiplied by to one byte
                (`product`). The residual stream, attention, norms and logits stay as they are: logits in bfloat16
                would tie. `float32`: all as the model's weights are.
        """
        self._model, self.ids, self.precision = model, ids, precision
        self._stamp: tuple[tuple[int, int], ...] | None = None
        self.version = 0
        """+1 with every change of the weights that was noticed; keys and values of another version are stale."""
        self.blocks: list[FusedBlock] = []
        self.embedding = self.head = torch.empty(0)
        self.heads, self.eps = model.llm.config.heads, model.llm.config.norm_eps

    @property
    def model(self) -> TokenModel:
        """Whose weights these are."""
        return self._model

    def refresh(self) -> int:
        """Lays the weights out anew where they have changed; the version."""
        now = stamp(self._model.parameters())
        if now != self._stamp:
            self._lay()
            self._stamp, self.version = now, self.version + 1
        return self.version

    def holds(self, version: int) -> bool:
        """Whether the weights are still those of `version`; changes made in place are noticed. No host sync."""
        return version == self.version and self._stamp == stamp(self._model.parameters())

    def forget(self) -> None:
        """The weights have changed."""
        self._stamp, self.version = None, self.version + 1

    def tensors(self) -> list[Tensor]:
        """All that a pass reads of the weights, but for forms that no GPU has."""
        packed = [weight for block in self.blocks for weight in block if isinstance(weight, Tensor)]
        return [*packed, self.embedding, self.head, self.norm, self.rope] if self.blocks else []

    def _lay(self) -> None:
        llm = self._model.llm
        own = llm.lm_head.weight.dtype
        dtype = {"float32": own, "bfloat16": torch.bfloat16, "int8": torch.qint8}[self.precision]
        lent = {weight.untyped_storage()._cdata for weight in self._model.parameters()}

        def renewed(held: Any, new: Any) -> Any:
            """`new`, copied into `held` unless that cannot take it or `new` is a parameter itself."""
            if (
                isinstance(new, torch.ScriptObject)
                or held.is_mkldnn
                or new.is_mkldnn
                or new.untyped_storage()._cdata in lent
            ):
                return new
            fits = (held.shape, held.dtype, held.device) == (new.shape, new.dtype, new.device)
            return held.copy_(new) if fits else new

        for layer, block in enumerate(llm.model.layers):  # one after the other: what is new exists twice
            new = fuse(cast(Block, block), dtype)
            if layer < len(self.blocks):
                self.blocks[layer] = FusedBlock(*map(renewed, self.blocks[layer], new))
            else:
                self.blocks.append(new)
        self.embedding = renewed(self.embedding, llm.model.embed_tokens.weight.detach())  # not composed at every pass
        self.head = renewed(self.head, pack(llm.lm_head.weight[self.ids.start : self.ids.stop].detach(), own))
        self.norm = llm.model.norm.weight
        # [2, N, 1, C]: the axis for heads is in place
        self.rope = llm.rope.to(self.norm.dtype).unsqueeze(2)

    def __call__(self, x_BTD: Tensor, cache: KVCache, *, keep: int, mutual: bool = False) -> Tensor:
        """Hidden states after the final norm, [B, keep, D], of the last `keep` of T new positions.

        Of the positions that are not kept the last block leaves keys and values only.

        Args:
            mutual: the new positions see each other, not only those before them.
        """
        new, start, last = x_BTD.shape[1], cache.position, len(self.blocks) - 1
        cos_T1C, sin_T1C = self.rope[:, start : start + new]
        for layer, block in enumerate(self.blocks):
            kept = keep if layer == last else new
            attended_BRD = self._attend(block, x_BTD, cache, layer, kept, mutual, cos_T1C, sin_T1C)
            x_BTD = x_BTD[:, new - kept :] + product(attended_BRD, block.out)
            gate, up = product(self._rms(x_BTD), block.gate_up).chunk(2, -1)
            x_BTD = product(F.silu(gate).mul_(up), block.down).add_(x_BTD)
        cache.advance(new)
        return self._rms(x_BTD) * self.norm

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that can be drawn, [..., last - first]."""
        return product(hidden, self.head)

    def _attend(
        self,
        block: FusedBlock,
        x_BTD: Tensor,
        cache: KVCache,
        layer: int,
        kept: int,
        mutual: bool,
        cos_T1C: Tensor,
        sin_T1C: Tensor,
    ) -> Tensor:
        """Write T keys and values; attention output [B, R, D] of the last R = kept positions."""
        rows, new, _ = x_BTD.shape
        heads = self.heads
        qkv = product(self._rms(x_BTD), block.qkv).view(rows, new, 3 * heads, -1)
        qk = rotate(qkv[:, :, : 2 * heads], cos_T1C, sin_T1C)
        k_BHTC, v_BHTC = qk[:, :, heads:].transpose(1, 2), qkv[:, :, 2 * heads :].transpose(1, 2)
        k_BHNC, v_BHNC = cache.extend(layer, k_BHTC, v_BHTC)
        q_BHRC, shared = qk[:, new - kept :, :heads].transpose(1, 2), cache.shared(layer)
        if shared is None:
            out_BHRC = attention(q_BHRC, k_BHNC, v_BHNC, mutual=mutual)
        else:
            out_BHRC = attention_behind(shared, q_BHRC, k_BHNC, v_BHNC, mutual=mutual)
        return out_BHRC.transpose(1, 2).reshape(rows, kept, -1)

    def _rms(self, x: Tensor) -> Tensor:
        """Divide by the root mean square; the weight is in the matrix that comes next."""
        return F.rms_norm(x, x.shape[-1:], None, self.eps)
