"""A decoder-only transformer in the LLaMA form: embeddings in, post-norm hidden states out.

It has the published module names (`model.*`, `lm_head.*`) and knows nothing of frames, actions or rewards.
"""

# B rows, N positions, T new positions, D hidden width, H heads, C channels per head, M width of the MLP

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.attention import attend
from worldmodel.transformer.decoding import Sight

INIT_STD = 0.02  # every linear and the embedding (spec section 7)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Size of the transformer. The vocabulary comes from the token layout, at build time.

    Attributes:
        hidden: width of the residual stream D.
        layers: number of blocks.
        heads: attention heads; D / heads must be even, for rotary positions.
        mlp: inner width of the gated MLP.
        positions: longest sequence that can be read.
        rope_theta: base of the rotary angles.
        norm_eps: epsilon of the RMS norms.
        dropout: probability of dropping an attention weight, in train mode only.
    """

    hidden: int
    layers: int
    heads: int
    mlp: int
    positions: int
    rope_theta: float
    norm_eps: float
    dropout: float

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "mlp", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 (got {getattr(self, name)})")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of 2 * heads = {2 * self.heads} (got {self.hidden})")
        for name in ("rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive (got {getattr(self, name)})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) (got {self.dropout})")

    def build(self, *, vocab: int, generator: torch.Generator, features_VJ: Tensor | None = None) -> Llama:
        """The transformer with weights drawn from `generator`.

        Args:
            vocab: number of token ids.
            generator: source of the initial weights.
            features_VJ: float [vocab, J], from which embedding and output matrix are composed; None: free rows.
        """
        return Llama(self, vocab=vocab, features_VJ=features_VJ, generator=generator)


class Cache(Protocol):
    """Keys and values of the positions read so far (`worldmodel.rollout.kv_cache.KVCache` is one)."""

    @property
    def position(self) -> int:
        """Positions held: the next one to be written."""
        ...

    def extend(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions of one layer; returns keys and values of all positions so far."""
        ...

    def advance(self, positions: int) -> None:
        """Move on once every layer has written."""
        ...


class Linear(nn.Linear):
    """A linear layer without a bias that draws nothing when made: `Llama` draws all weights from one generator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Leave the weight unset."""


class Embedding(nn.Embedding):
    """An embedding that draws nothing when made."""

    def reset_parameters(self) -> None:
        """Leave the weight unset."""


class Composed(nn.Module):
    """A matrix [vocab, D] whose rows are sums: ids that have a feature in common share what belongs to it."""

    features: Tensor

    def __init__(self, features_VJ: Tensor, width: int) -> None:
        """Draws nothing; `features_VJ` [vocab, J] says how much of each of J learned vectors is in an id's row."""
        super().__init__()
        self.register_buffer("features", features_VJ, persistent=False)
        self.basis = nn.Parameter(torch.empty(features_VJ.shape[1], width))

    @property
    def weight(self) -> Tensor:
        """The rows, [vocab, D]."""
        return self.features @ self.basis


class ComposedEmbedding(Composed):
    """`Embedding` whose table is composed."""

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] -> [..., D]."""
        return F.embedding(ids, self.weight)


class ComposedLinear(Composed):
    """`Linear` onto the vocabulary whose matrix is composed: the logit of an id is a sum over its features."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden [..., D] -> [..., vocab]."""
        return F.linear(hidden, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) in float32 (or wider), cast back, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * F.rms_norm(wide, wide.shape[-1:], None, self.eps).to(x.dtype)


def rope_tables(config: TransformerConfig) -> Tensor:
    """Rotary tables, float32 [2, positions, C]: cosine, and sine with the sign of the rotation in it.

    Channel c of the first half and channel c + C/2 turn as a pair by `position * theta ** (-2 c / C)`, so
    `rotate(x) = x * cos + swap_halves(x) * sin` with the first half of the sine negated (spec section 7).
    """
    channels = config.hidden // config.heads
    frequency_c = config.rope_theta ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    angle_Nc = torch.outer(torch.arange(config.positions, dtype=torch.float32), frequency_c)
    cos_Nc, sin_Nc = angle_Nc.cos(), angle_Nc.sin()
    return torch.stack([torch.cat([cos_Nc, cos_Nc], -1), torch.cat([-sin_Nc, sin_Nc], -1)])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the last axis of x; the tables (see `rope_tables`) broadcast against it."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Self-attention with rotary positions, causal unless told otherwise; without biases and without grouped heads."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.dropout = layer, config.heads, config.dropout
        self.q_proj = Linear(config.hidden, config.hidden)
        self.k_proj = Linear(config.hidden, config.hidden)
        self.v_proj = Linear(config.hidden, config.hidden)
        self.o_proj = Linear(config.hidden, config.hidden)

    def forward(
        self, x_BTD: Tensor, rope_2TC: Tensor, cache: Cache | None, sees_TN: Tensor | None, keep: int
    ) -> Tensor:
        """Attend from the last R = `keep` of T new positions to these and all in the cache, or as `sees_TN` says."""
        rows, new, _ = x_BTD.shape
        q_BHRC, k_BHNC, v_BHNC = (
            proj(x_BND).view(rows, -1, self.heads, x_BND.shape[-1] // self.heads).transpose(1, 2)
            for proj, x_BND in ((self.q_proj, x_BTD[:, new - keep :]), (self.k_proj, x_BTD), (self.v_proj, x_BTD))
        )
        cos_TC, sin_TC = rope_2TC.to(q_BHRC.dtype)
        q_BHRC = rotate(q_BHRC, cos_TC[new - keep :], sin_TC[new - keep :])
        k_BHNC = rotate(k_BHNC, cos_TC, sin_TC)
        if cache is not None:
            k_BHNC, v_BHNC = cache.extend(self.layer, k_BHNC, v_BHNC)
        mask, is_causal = causal(q_BHRC, k_BHNC) if sees_TN is None else (sees_TN[new - keep :], False)
        dropout = self.dropout if self.training else 0.0
        out_BHRC = attend(q_BHRC, k_BHNC, v_BHNC, mask=mask, is_causal=is_causal, dropout=dropout)
        return self.o_proj(out_BHRC.transpose(1, 2).reshape(rows, keep, -1))


def causal(q_BHRC: Tensor, k_BHNC: Tensor) -> tuple[Tensor | None, bool]:
    """`mask` and `is_causal` of `attend` for the last R of N positions."""
    new, total = q_BHRC.shape[2], k_BHNC.shape[2]
    if new == 1:
        return None, False  # sees everything
    if new == total:
        return None, True
    return torch.ones(new, total, dtype=torch.bool, device=q_BHRC.device).tril(total - new), False


class MLP(nn.Module):
    """down( SiLU(gate x) * up x )."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden, config.mlp)
        self.up_proj = Linear(config.hidden, config.mlp)
        self.down_proj = Linear(config.mlp, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, rope_2TC: Tensor, cache: Cache | None, sees_TN: Tensor | None, keep: int
    ) -> Tensor:
        """The last R = `keep` positions, [B, R, D]; those before leave keys and values only."""
        attended_BRD = self.self_attn(self.input_layernorm(x_BTD), rope_2TC, cache, sees_TN, keep)
        x_BRD = x_BTD[:, x_BTD.shape[1] - keep :] + attended_BRD
        return x_BRD + self.mlp(self.post_attention_layernorm(x_BRD))


class Decoder(nn.Module):
    """The embedding, the blocks and the final norm (`model.*` in published names)."""

    def __init__(self, config: TransformerConfig, vocab: int, features_VJ: Tensor | None) -> None:
        super().__init__()
        self.embed_tokens: Embedding | ComposedEmbedding = (
            Embedding(vocab, config.hidden) if features_VJ is None else ComposedEmbedding(features_VJ, config.hidden)
        )
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)


class Llama(nn.Module):
    """The causal language model without its loss: `embed`, `forward` and `logits` (spec section 7)."""

    rope: Tensor  # [2, N, C]

    def __init__(
        self, config: TransformerConfig, *, vocab: int, features_VJ: Tensor | None, generator: torch.Generator
    ) -> None:
        """`features_VJ` [vocab, J]: embedding and output matrix are composed of them; None: a free row for each id."""
        super().__init__()
        self.config = config
        self.model = Decoder(config, vocab, features_VJ)
        self.lm_head: Linear | ComposedLinear = (
            Linear(config.hidden, vocab) if features_VJ is None else ComposedLinear(features_VJ, config.hidden)
        )
        self.register_buffer("rope", rope_tables(config), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:  # norms stay at one
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, [..., D]."""
        return self.model.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, at least float32 [..., vocab], of post-norm hidden states."""
        logits = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(
        self,
        embeddings_BTD: Tensor,
        *,
        cache: Cache | None = None,
        generator: torch.Generator | None = None,
        sight: Sight | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [B, R, D], of T embeddings that follow the positions in the cache.

        Args:
            cache: positions before these; it is extended by them. Without one, the embeddings start at position 0.
            generator: source of the attention dropout; needed in train mode if the dropout is not zero.
            sight: where the embeddings stand and what they see, the cache included; None: in a row, all before them.
            keep: R, only the last so many are wanted: of the others the last block computes keys and values. None: T.

        Raises: ValueError if the sequence is longer than `positions`, or dropout has no generator.
        """
        start = 0 if cache is None else cache.position
        end = start + embeddings_BTD.shape[1]
        if sight is None and end > self.config.positions:
            raise ValueError(
                f"a sequence of {end} tokens does not fit the transformer's {self.config.positions} positions"
            )
        rope_2TC = self.rope[:, start:end] if sight is None else self.rope[:, sight.positions_M]
        sees_TN = None if sight is None else sight.sees_MM
        x_BTD = embeddings_BTD
        with _global_stream_from(self._check_dropout(generator), embeddings_BTD.device):
            for layer, block in enumerate(self.model.layers, 1):
                kept = keep if keep is not None and layer == len(self.model.layers) else x_BTD.shape[1]
                x_BTD = block(x_BTD, rope_2TC, cache, sees_TN, kept)
        if cache is not None:
            cache.advance(end - start)
        return self.model.norm(x_BTD)

    def _check_dropout(self, generator: torch.Generator | None) -> torch.Generator | None:
        """The generator if dropout is active, else None."""
        if not self.training or self.config.dropout == 0:
            return None
        if generator is None:
            raise ValueError(
                f"dropout is {self.config.dropout} in train mode: give forward a generator, or call eval()"
            )
        return generator


@contextmanager
def _global_stream_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Inside, torch's global stream is seeded from `generator`: attention kernels draw dropout from nothing else."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))  # sync, once per update
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
