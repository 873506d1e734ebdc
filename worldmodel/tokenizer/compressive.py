"""The compressive tokenizer: context frames to a grid of codes each, future frames to a few codes given the context.

Knows frames, codes and token ids; nothing of actions, transformers or losses on pixels (spec sections 2 to 5).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.layout import TokenLayout
from worldmodel.sequence import codes_of_ids, layout_ids, layout_labels
from worldmodel.tokenizer.blocks import full_precision
from worldmodel.tokenizer.conditional import (
    HEADS,
    ConditionalDecoder,
    ConditionalEncoder,
    CrossAttention,
    decoder_sides,
    encoder_sides,
)
from worldmodel.tokenizer.networks import RGB, Decoder, Encoder, Trunk
from worldmodel.tokenizer.outputs import DecodedContext, EncodedContext, TokenizerOutput
from worldmodel.tokenizer.quantizer import FiniteScalarQuantizer, Quantized, VectorQuantizer

CHANGE_GAIN = 2.0
"""Factor of the change channels: frames in [0, 1] differ by little."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes and options of a tokenizer; the published ones are `res64` and `res256`.

    Attributes:
        image: side of the square frames in pixels.
        stem: 1: 3x3 convolutions at both ends (published); an even s: patches of stride s in, pixel shuffle by s out.
        block_out_channels: width of each level, finest first; n levels halve the side n - 1 times.
        layers_per_block: residual blocks per encoder level.
        norm_groups: groups of the convolutional blocks' norms.
        latent_channels: width of the latent maps.
        code_dim: width of a code's vector.
        patch_size: side of the latent patch that one future code stands for.
        mid_attention: self-attention in the middle of the plain networks (the conditional ones always have it).
        max_attention_resolution: levels wider than this have no cross-attention.
        cross_norm_groups: groups of the cross-attention's norms (32 as published).
        cross_dropout: dropout of the cross-attention in training (0.1 as published).
        context: context frames t.
        vocab_context, vocab_future: number of codes of a context position and of a future one.
        quantizer: `vq`: nearest code of a book (published); `fsq`: rounding of each dimension.
        fsq_levels_context, fsq_levels_future: levels of each of the `code_dim` dimensions; empty for `vq`.
        fsq_place_means: each future code of a frame is normalised by its own mean over the batch: codes spread from the
            first steps on; with 8 levels and 32 frames a batch its jitter is felt, and a shared mean ends up better.
        future_input: `frame` (published); `frame_and_change`: and twice its difference from the last context frame.
        context_skip: add the plain decoder's maps of the last context frame to the conditional decoder's.
    """

    image: int
    stem: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_groups: int
    latent_channels: int
    code_dim: int
    patch_size: int
    mid_attention: bool
    max_attention_resolution: int
    cross_norm_groups: int
    cross_dropout: float
    context: int
    vocab_context: int
    vocab_future: int
    quantizer: Literal["vq", "fsq"]
    fsq_levels_context: tuple[int, ...]
    fsq_levels_future: tuple[int, ...]
    fsq_place_means: bool
    future_input: Literal["frame", "frame_and_change"]
    context_skip: bool

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type.startswith("tuple"):  # YAML knows lists only
                object.__setattr__(self, field.name, tuple(value))
            elif field.type == "int" and value < 1:
                raise ValueError(f"{field.name} must be >= 1 (got {value})")
        if not self.block_out_channels or min(self.block_out_channels) < 1:
            raise ValueError(f"block_out_channels must be widths >= 1 (got {self.block_out_channels})")
        if not 0 <= self.cross_dropout < 1:
            raise ValueError(f"cross_dropout must be in [0, 1) (got {self.cross_dropout})")
        if self.future_input not in ("frame", "frame_and_change"):
            raise ValueError(f"future_input must be frame or frame_and_change (got {self.future_input})")
        self._check_sides()
        self._check_channels()
        self._check_codes()

    def _check_sides(self) -> None:
        if self.stem > 1 and self.stem % 2:
            raise ValueError(f"stem must be 1 or even (got {self.stem})")
        halvings = len(self.block_out_channels) - 1
        shrink = self.stem * 2**halvings
        if self.image % shrink:
            raise ValueError(
                f"image must be a multiple of {shrink} = stem {self.stem} x 2^({halvings + 1} levels - 1) "
                f"(got {self.image}): take {shrink * max(1, round(self.image / shrink))}, or fewer levels"
            )
        if self.side % self.patch_size:
            raise ValueError(
                f"patch_size must divide the latent side {self.side} = {self.image} / {shrink} (got {self.patch_size})"
            )

    def _check_channels(self) -> None:
        for width in self.block_out_channels:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups must divide all block_out_channels (got {self.norm_groups} and {width})")
        widths, levels = self.block_out_channels, len(self.block_out_channels)
        maps = [*zip(widths, encoder_sides(self.image // self.stem, levels), strict=True)]
        maps += zip(widths[::-1], decoder_sides(self.side, levels), strict=True)
        attended = [(w, side) for w, side in maps if side <= self.max_attention_resolution]
        for width, side in [*attended, (widths[-1], self.side)]:
            if width % self.cross_norm_groups or width % HEADS:
                raise ValueError(
                    f"cross-attention needs widths that are multiples of cross_norm_groups {self.cross_norm_groups} "
                    f"and of {HEADS} heads (got {width} at side {side}): change cross_norm_groups or block_out_channels"
                )

    def _check_codes(self) -> None:
        if self.quantizer not in ("vq", "fsq"):
            raise ValueError(f"quantizer must be vq or fsq (got {self.quantizer})")
        for name, vocab in (("fsq_levels_context", self.vocab_context), ("fsq_levels_future", self.vocab_future)):
            levels = getattr(self, name)
            if self.quantizer == "vq":
                if levels:
                    raise ValueError(f"{name} must be empty with quantizer vq (got {levels})")
            elif len(levels) != self.code_dim or min(levels) < 2 or prod(levels) != vocab:
                raise ValueError(
                    f"{name} must be code_dim = {self.code_dim} numbers >= 2 with product {vocab}, the number of codes "
                    f"(got {levels} with product {prod(levels)})"
                )
        if self.quantizer == "vq" and self.fsq_place_means:
            raise ValueError("fsq_place_means must be false with quantizer vq (got true): it has no means")

    @property
    def side(self) -> int:
        """Side of the latent maps."""
        return self.image // self.stem // 2 ** (len(self.block_out_channels) - 1)

    @property
    def codes_context(self) -> int:
        """Codes of a context frame (N)."""
        return self.side**2

    @property
    def codes_future(self) -> int:
        """Codes of a future frame (K)."""
        return (self.side // self.patch_size) ** 2

    @property
    def layout(self) -> TokenLayout:
        """The token string that this tokenizer writes."""
        return TokenLayout(
            context=self.context,
            codes_context=self.codes_context,
            codes_future=self.codes_future,
            vocab_context=self.vocab_context,
            vocab_future=self.vocab_future,
        )

    def build(self) -> CompressiveTokenizer:
        """A tokenizer with torch's default initial weights, drawn from the global generator: seed that first."""
        return CompressiveTokenizer(self)


class CompressiveTokenizer(nn.Module):
    """Frames in [0, 1] <-> codes. A future frame sees itself and its clip's context, never another future frame.

    Sub-modules and parameters are named as in the published state dict. Use it in eval mode outside training: in
    train mode it has dropout, and `forward` with `fsq` normalises over the batch.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        trunk = Trunk(
            channels=config.block_out_channels,
            latent=config.latent_channels,
            layers=config.layers_per_block,
            groups=config.norm_groups,
            stem=config.stem,
        )
        cross = CrossAttention(
            max_side=config.max_attention_resolution,
            frames=config.context,
            groups=config.cross_norm_groups,
            dropout=config.cross_dropout,
        )
        latent, dim, patch = config.latent_channels, config.code_dim, config.latent_channels * config.patch_size**2
        channels_in = RGB if config.future_input == "frame" else 2 * RGB
        self.cond_encoder = ConditionalEncoder(trunk, cross, channels_in=channels_in, side=config.image // config.stem)
        self.encoder = Encoder(trunk, channels_in=RGB, attention=config.mid_attention)
        self.quant_conv = nn.Conv2d(latent, dim, 1)
        self.quantize = self._quantizer(config.vocab_context, config.fsq_levels_context, positions=1)
        self.post_quant_conv = nn.Conv2d(dim, latent, 1)
        self.quant_linear = nn.Linear(patch, dim)
        places = config.codes_future if config.fsq_place_means else 1
        self.dynamics_quantize = self._quantizer(config.vocab_future, config.fsq_levels_future, positions=places)
        self.post_quant_linear = nn.Linear(dim, patch)
        self.cond_decoder = ConditionalDecoder(trunk, cross, side=config.side, skip=config.context_skip)
        self.decoder = Decoder(trunk, attention=config.mid_attention)

    def _quantizer(
        self, vocab: int, levels: tuple[int, ...], *, positions: int
    ) -> VectorQuantizer | FiniteScalarQuantizer:
        if levels:
            return FiniteScalarQuantizer(levels, positions=positions)
        return VectorQuantizer(vocab, self.config.code_dim)

    @property
    def vector_dim(self) -> int:
        """Width D of a code's vector."""
        return self.config.code_dim

    @property
    def layout(self) -> TokenLayout:
        """The token string that `tokenize_ids` writes."""
        return self.config.layout

    # frames -> codes --------------------------------------------------------------------------------------------------

    def encode_context(self, context_BtCHW: Tensor) -> EncodedContext:
        """Encode context frames once, for any number of future frames. Raises ValueError on another shape."""
        self._check_frames("context", context_BtCHW, self.config.context)
        clips = context_BtCHW.shape[0]
        maps, features = self.encoder(context_BtCHW.flatten(0, 1))
        with full_precision(maps):
            latents = self.quant_conv(maps).permute(0, 2, 3, 1)
        selected = [f.unflatten(0, (clips, -1)) for f in self.cond_encoder.select(features)]
        return EncodedContext(latents.unflatten(0, (clips, -1)), selected, context_BtCHW[:, -1])

    def encode_future(self, context: EncodedContext, frames_BFCHW: Tensor) -> Tensor:
        """Latents [B, F, K, D] of future frames before quantization. Raises ValueError on another shape."""
        self._check_frames("frames", frames_BFCHW)
        if self.config.future_input == "frame_and_change":
            change = CHANGE_GAIN * (frames_BFCHW - context.last.unsqueeze(1))
            frames_BFCHW = torch.cat([frames_BFCHW, change], dim=2)
        maps_NChw = self.cond_encoder(frames_BFCHW.flatten(0, 1), context.features)
        p = self.config.patch_size
        # inside a patch: rows, then columns, channels fastest (spec 3.2)
        cut = maps_NChw.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1)
        with full_precision(maps_NChw):
            latents_NKD = self.quant_linear(cut.flatten(3).flatten(1, 2))
        return latents_NKD.unflatten(0, frames_BFCHW.shape[:2])

    @torch.no_grad()
    def tokenize(self, context_BtCHW: Tensor, frames_BFCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Frames in [0, 1] -> (context codes int64 [B, t, N], codes int64 [B, F, K]), without id offsets."""
        context = self.encode_context(context_BtCHW)
        codes_BFK = self.dynamics_quantize.codes(self.encode_future(context, frames_BFCHW))
        return self.quantize.codes(context.latents).flatten(2), codes_BFK

    # codes -> frames --------------------------------------------------------------------------------------------------

    def code_vectors(self, codes_BFK: Tensor) -> Tensor:
        """Vectors [B, F, K, D] of future codes."""
        return self.dynamics_quantize.vectors(codes_BFK)

    def context_vectors(self, context_codes_BtN: Tensor) -> Tensor:
        """Vectors [B, t, D, side, side] of context codes."""
        side = self.config.side
        return self.quantize.vectors(context_codes_BtN).unflatten(2, (side, side)).permute(0, 1, 4, 2, 3)

    def id_features(self) -> Tensor:
        """Features [vocab, J] of every token id: those of its code, and one for each separator."""
        kinds = [book.features() for book in (self.quantize, self.dynamics_quantize)]
        return torch.block_diag(*kinds, torch.eye(self.layout.vocab - sum(len(kind) for kind in kinds)))

    def decode_context(self, context_codes_BtN: Tensor) -> DecodedContext:
        """Decode context codes int64 [B, t, N] once, for any number of future frames."""
        return self._decode_context(self.context_vectors(context_codes_BtN))

    def decode_future(self, context: DecodedContext, codes_BFK: Tensor) -> Tensor:
        """Future frames [B, F, 3, H, W], unclamped."""
        return self._decode_future(context, self.code_vectors(codes_BFK))

    def decode(
        self, context_codes_BtN: Tensor, codes_BFK: Tensor, memo: DecodedContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes -> (context [B, t, 3, H, W], future [B, F, 3, H, W]), unclamped.

        Args:
            memo: what `decode_context` gave for the same context codes; they are then not read again.
        """
        context = self.decode_context(context_codes_BtN) if memo is None else memo
        return context.recon, self.decode_future(context, codes_BFK)

    def _decode_context(self, vectors_BtDhw: Tensor) -> DecodedContext:
        clips = vectors_BtDhw.shape[0]
        recon, features = self.decoder(self.post_quant_conv(vectors_BtDhw.flatten(0, 1)))
        selected = [f.unflatten(0, (clips, -1)) for f in self.cond_decoder.select(features)]
        return DecodedContext(recon.unflatten(0, (clips, -1)), selected)

    def _decode_future(self, context: DecodedContext, vectors_BFKD: Tensor) -> Tensor:
        p, grid = self.config.patch_size, self.config.side // self.config.patch_size
        patches_NKP = self.post_quant_linear(vectors_BFKD.flatten(0, 1))
        cut = patches_NKP.unflatten(2, (p, p, -1)).unflatten(1, (grid, grid))
        maps_NChw = cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return self.cond_decoder(maps_NChw, context.features).unflatten(0, vectors_BFKD.shape[:2])

    # training and ids -------------------------------------------------------------------------------------------------

    def forward(
        self,
        context_BtCHW: Tensor,
        frames_BFCHW: Tensor,
        *,
        quantize: bool = True,
        generator: torch.Generator | None = None,
    ) -> TokenizerOutput:
        """Encode, quantize and decode both kinds of frames with gradients throughout (spec 5).

        Args:
            context_BtCHW, frames_BFCHW: frames in [0, 1].
            quantize: False while training warms up: `fsq` adds noise instead of rounding, `vq` passes the latents.
            generator: draws that noise; on the frames' device.
        """
        encoded = self.encode_context(context_BtCHW)
        latents_BFKD = self.encode_future(encoded, frames_BFCHW)
        context: Quantized = self.quantize(encoded.latents, quantize=quantize, generator=generator)
        future: Quantized = self.dynamics_quantize(latents_BFKD, quantize=quantize, generator=generator)
        vectors_context = context.vectors.permute(0, 1, 4, 2, 3)
        decoded = self._decode_context(vectors_context)
        return TokenizerOutput(
            recon_context=decoded.recon,
            recon_future=self._decode_future(decoded, future.vectors),
            commit_context=context.commit,
            commit_future=future.commit,
            vectors_future=future.vectors,
            vectors_context=vectors_context,
            codes_context=context.codes.flatten(2),
            codes_future=future.codes,
        )

    def tokenize_ids(self, frames_BTCHW: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """Clips in [0, 1] that begin with `context` context frames -> (ids, labels) int64 [B, length] (spec 4.1).

        Raises: ValueError if `context` is not the tokenizer's, or no future frame is left.
        """
        self._check_context(context)
        if frames_BTCHW.shape[1] <= context:
            raise ValueError(f"a clip needs more than {context} context frames (got {frames_BTCHW.shape[1]} frames)")
        ids_BN = layout_ids(*self.tokenize(frames_BTCHW[:, :context], frames_BTCHW[:, context:]), self.layout)
        return ids_BN, layout_labels(ids_BN, self.layout)

    def detokenize(self, ids_BN: Tensor, context: int) -> Tensor:
        """Ids -> clip [B, T, 3, H, W], unclamped (spec 4.2); ids of future frames are clamped into their range.

        Raises: ValueError on a length that no clip has, a foreign `context` or context ids that are not context codes.
        """
        self._check_context(context)
        return torch.cat(self.decode(*codes_of_ids(ids_BN, self.layout)), dim=1)

    def set_context_length(self, frames: int) -> None:
        """Keep only the `frames` most recent context frames (spec 2.11).

        The parameters stay, with fewer rows. Call it before there is an optimizer: one that has stepped would fail.

        Raises: ValueError if the context would grow: there are no position embeddings for older frames.
        """
        if not 1 <= frames <= self.config.context:
            raise ValueError(
                f"context can only shrink: 1 to {self.config.context} frames (got {frames}); the weights hold position "
                f"embeddings of {self.config.context} context frames and cannot make up more: train a new one"
            )
        for block in (*self.cond_encoder.cross_att_blocks, *self.cond_decoder.cross_att_blocks):
            block.keep_last(frames)
        self.config = dataclasses.replace(self.config, context=frames)

    def _check_context(self, context: int) -> None:
        if context != self.config.context:
            raise ValueError(
                f"context must be the tokenizer's {self.config.context} frames (got {context}): "
                "use set_context_length to shrink it"
            )

    def _check_frames(self, name: str, frames: Tensor, count: int | None = None) -> None:
        wanted = (RGB, self.config.image, self.config.image)
        if frames.ndim != 5 or frames.shape[2:] != wanted or (count is not None and frames.shape[1] != count):
            raise ValueError(
                f"{name} must be [clips, {count or 'frames'}, {', '.join(map(str, wanted))}] (got {list(frames.shape)})"
            )
        if not frames.is_floating_point():
            raise ValueError(f"{name} must be floats in [0, 1] (got {frames.dtype}): divide uint8 frames by 255")
