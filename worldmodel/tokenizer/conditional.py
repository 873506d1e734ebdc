"""Encoder and decoder of future frames, which cross-attend to feature maps of their clip's context frames.

They know frames, latents and context features; no codes. Context features stay one copy per clip (the published code
repeats them for each future frame; the numbers are the same).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.attention import attend
from worldmodel.tokenizer.networks import DecoderLayers, EncoderLayers, Trunk

HEADS = 4


class Attention(nn.Module):
    """Multi-head attention from queries to one key = value source; parameters named as in `nn.MultiheadAttention`."""

    def __init__(self, channels: int, *, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_BLC: Tensor, source_BSC: Tensor) -> Tensor:
        """[B, L, C] and [B, S, C] -> [B, L, C]."""
        channels = query_BLC.shape[-1]
        weight_q, weight_kv = self.in_proj_weight.split([channels, 2 * channels])
        bias_q, bias_kv = self.in_proj_bias.split([channels, 2 * channels])
        query = F.linear(query_BLC, weight_q, bias_q)
        key, value = F.linear(source_BSC, weight_kv, bias_kv).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = attend(query, key, value, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """What all cross-attention blocks of one tokenizer share.

    Attributes:
        max_side: levels whose map is wider than this have no cross-attention.
        frames: t, context frames.
        groups: groups of the blocks' own norms (32 as published, whatever the other norms use).
        dropout: on the attention weights and on the output, in training; drawn from torch's global generator.
    """

    max_side: int
    frames: int
    groups: int
    dropout: float

    def block(self, channels: int, side: int) -> CrossAttentionBlock:
        """A block for maps [channels, side, side]."""
        return CrossAttentionBlock(channels, side=side, shared=self)


class CrossAttentionBlock(nn.Module):
    """A future frame's map looks at the same level of its context frames (spec 2.7)."""

    def __init__(self, channels: int, *, side: int, shared: CrossAttention):
        super().__init__()
        self.kv_pos_emb = nn.Parameter(torch.zeros(shared.frames * side**2, channels))
        self.q_pos_emb = nn.Parameter(torch.zeros(side**2, channels))
        self.att = Attention(channels, dropout=shared.dropout)
        self.kv_norm = nn.GroupNorm(shared.groups, channels)
        self.q_norm = nn.GroupNorm(shared.groups, channels)
        self.dropout = shared.dropout

    def forward(self, z_NChw: Tensor, context_BtChw: Tensor) -> Tensor:
        """Maps of N = B * F future frames (clip-major) and of B clips' context frames -> [N, C, h, w]."""
        clips, _, channels, height, width = context_BtChw.shape
        # frames are stacked along the height, so the norm sees all of them at once
        stacked = context_BtChw.transpose(1, 2).reshape(clips, channels, -1, width)
        source_BSC = self.kv_norm(stacked).flatten(2).transpose(1, 2) + self.kv_pos_emb
        query_NLC = self.q_norm(z_NChw).flatten(2).transpose(1, 2) + self.q_pos_emb
        # every future frame of a clip has the same source: their queries form one long row
        mixed_BLC = self.att(query_NLC.reshape(clips, -1, channels), source_BSC)
        mixed_NLC = mixed_BLC.reshape(-1, height * width, channels)
        mixed = F.dropout(mixed_NLC, self.dropout, self.training).transpose(1, 2).reshape(z_NChw.shape)
        return F.silu(z_NChw + mixed)

    def keep_last(self, frames: int) -> None:
        """Keep the position rows of the `frames` most recent context frames (spec 2.11), in the same parameter."""
        rows = frames * self.q_pos_emb.shape[0]
        self.kv_pos_emb.data = self.kv_pos_emb.data[-rows:].clone()
        self.kv_pos_emb.grad = None


def encoder_sides(side: int, levels: int) -> list[int]:
    """Side of the map behind each level of an encoder whose stem gives `side`."""
    return [side >> min(level + 1, levels - 1) for level in range(levels)]


def decoder_sides(side: int, levels: int) -> list[int]:
    """Side of the map behind each level of a decoder whose latent map has `side`."""
    return [side << min(level + 1, levels - 1) for level in range(levels)]


class ConditionalEncoder(EncoderLayers):
    """Future frames -> latent maps, with cross-attention behind every level that is small enough (spec 2.8).

    Args:
        trunk, cross: sizes.
        channels_in: channels of the input (3, or 6 with the change beside the frame).
        side: side of the map behind the stem.
    """

    def __init__(self, trunk: Trunk, cross: CrossAttention, *, channels_in: int, side: int):
        super().__init__(trunk, channels_in=channels_in, attention=True)
        sides = encoder_sides(side, len(trunk.channels))
        self.attended = [level for level, s in enumerate(sides) if s <= cross.max_side]
        self.cross_att_blocks = nn.ModuleList(cross.block(trunk.channels[i], sides[i]) for i in self.attended)

    def select(self, features: list[Tensor]) -> list[Tensor]:
        """What `forward` reads of the plain encoder's features: one map per cross-attention block."""
        return [features[level + 1] for level in self.attended]

    def forward(self, frames_NCHW: Tensor, context: list[Tensor]) -> Tensor:
        """Future frames of B clips (clip-major) and selected maps [B, t, C, h, w] -> [N, latent, side, side]."""
        h = self.conv_in(frames_NCHW)
        for level, block in enumerate(self.down_blocks):
            h = block(h)
            if level in self.attended:
                k = self.attended.index(level)
                h = self.cross_att_blocks[k](h, context[k])
        return self.head(self.mid_block(h))


class ConditionalDecoder(DecoderLayers):
    """Latent maps -> future frames, with cross-attention behind the middle block and the small levels (spec 2.9).

    Args:
        trunk, cross: sizes.
        side: side of the latent map.
        skip: also add the plain decoder's map of the last context frame at each level.
    """

    def __init__(self, trunk: Trunk, cross: CrossAttention, *, side: int, skip: bool):
        super().__init__(trunk, attention=True)
        self.skip = skip
        top_down = trunk.channels[::-1]
        sides = decoder_sides(side, len(top_down))
        maps = [(top_down[0], side), *((c, s) for c, s in zip(top_down, sides, strict=True) if s <= cross.max_side)]
        self.cross_att_blocks = nn.ModuleList(cross.block(c, s) for c, s in maps)

    def select(self, features: list[Tensor]) -> list[Tensor]:
        """What `forward` reads of the plain decoder's features: the middle block's, then the levels that it needs."""
        return features[1:] if self.skip else features[1 : 1 + len(self.cross_att_blocks)]

    def forward(self, latents_NCHW: Tensor, context: list[Tensor]) -> Tensor:
        """Latents of B clips' future frames (clip-major), selected maps [B, t, C, h, w] -> [N, 3, H, W] unclamped."""
        h = self._look(self.mid_block(self.conv_in(latents_NCHW)), 0, context)
        for level, block in enumerate(self.up_blocks):
            h = self._look(block(h), level + 1, context)
        return self.head(h)

    def _look(self, h: Tensor, k: int, context: list[Tensor]) -> Tensor:
        if self.skip:
            clips = context[k].shape[0]
            h = (h.unflatten(0, (clips, -1)) + context[k][:, -1:]).flatten(0, 1)
        return self.cross_att_blocks[k](h, context[k]) if k < len(self.cross_att_blocks) else h
