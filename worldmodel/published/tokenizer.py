"""Published tokenizer checkpoints <-> our tokenizer.

Our parameters carry the published names, so there is no name table: what does not fit is listed in the error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.tokenizer.compressive import CompressiveTokenizer, TokenizerConfig
from worldmodel.weights.files import CONFIG, read_json, read_tensors
from worldmodel.weights.mismatch import Mismatch, compare

TOKENIZER_FILE = "diffusion_pytorch_model.safetensors"
OWN = "tokendream"
"""The one key of a `config.json` that holds what the published keys cannot say."""

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
    "num_dyn_embeddings": 256,
    "context_length": 1,
    "max_att_resolution": 32,
    "resolution": 256,
    "patch_size": 4,
}
"""What a key means where the file leaves it out (spec section 6); published files rely on it."""

FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
"""The only values of these keys that any published model has."""

BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Linears of the self-attention as older files call them (spec 2.3)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerWeights:
    """A tokenizer's config and its tensors by name, before any network is made.

    Attributes:
        source: where they come from, for messages.
    """

    config: TokenizerConfig
    tensors: Mapping[str, Tensor]
    source: str

    def build(self) -> CompressiveTokenizer:
        """The tokenizer, float32, in eval mode, on the CPU. Raises: Mismatch if the tensors do not fit `config`."""
        with torch.device("meta"):
            tokenizer = self.config.build()
        if rows := compare(self.tensors, tokenizer.state_dict()):
            raise Mismatch(self.source, rows)
        if self.config.quantizer == "fsq":  # it has constants that no file holds
            with torch.random.fork_rng(devices=[]):  # the first weights are drawn from the global stream
                tokenizer = self.config.build()
        tokenizer.load_state_dict(dict(self.tensors), assign=True)
        return tokenizer.eval()


def read_tokenizer(directory: str | Path, *, values: bool = True) -> TokenizerWeights:
    """What a published `tokenizer/` folder holds: `config.json` and `diffusion_pytorch_model.safetensors`, any float.

    Args:
        values: False for tensors of the meta device, which have shapes alone.
    Raises: ValueError if a file is missing or unreadable, or the config is not one of this model.
    """
    directory = Path(directory)
    config = tokenizer_config(read_json(directory / CONFIG), directory / CONFIG)
    path = directory / TOKENIZER_FILE
    tensors = _new_names(read_tensors(path, values=values))
    config = dataclasses.replace(config, context=_context(tensors) or config.context)
    return TokenizerWeights(config=config, tensors=tensors, source=str(path))


def _context(tensors: Mapping[str, Tensor]) -> int | None:
    """Context frames as the position embeddings have them; None if they do not agree.

    The tensors count: the published training does not always write the length it used into the config (QUIRKS 8, 31).
    """
    queries = {name: value for name, value in tensors.items() if name.endswith(".q_pos_emb")}
    sizes = {name.replace("q_pos_emb", "kv_pos_emb"): value.shape[0] for name, value in queries.items()}
    found = {divmod(tensors[name].shape[0], size) for name, size in sizes.items() if name in tensors}
    return next(iter(found))[0] or None if len(found) == 1 and next(iter(found))[1] == 0 else None


def tokenizer_config(raw: Mapping[str, Any], path: Path) -> TokenizerConfig:
    """The config that the content of `path` means, by published keys or by ours. Raises: ValueError naming `path`."""
    try:
        return TokenizerConfig(**raw[OWN]) if OWN in raw else config_of_published(raw)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def load_tokenizer(directory: str | Path) -> CompressiveTokenizer:
    """The tokenizer of a published checkpoint: `read_tokenizer`, built."""
    return read_tokenizer(directory).build()


def _new_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def renamed(name: str) -> str:
        return re.sub(
            r"(\.attentions\.\d+\.)(\w+)(?=\.(?:weight|bias)$)", lambda m: m[1] + OLD_NAMES.get(m[2], m[2]), name
        )

    return {renamed(name): value for name, value in tensors.items()}


def config_of_published(given: Mapping[str, Any]) -> TokenizerConfig:
    """Our config for the content of a published `config.json`; unknown keys and those with a leading `_` are ignored.

    Raises: ValueError where it asks for something that no published model has.
    """
    values = {**DEFAULTS, **{k: v for k, v in given.items() if k in DEFAULTS}}
    for key, value in FIXED.items():
        if values[key] != value:
            raise ValueError(f"{key} must be {value!r} (got {values[key]!r}): no published tokenizer has that")
    if "block_out_channels" not in given:
        raise ValueError("block_out_channels is missing: this is not the config of an iVideoGPT tokenizer")
    widths = tuple(given["block_out_channels"])
    for key, kind in BLOCKS.items():
        if list(given.get(key) or [kind] * len(widths)) != [kind] * len(widths):
            raise ValueError(f"{key} must be {kind}, {len(widths)} times as block_out_channels says (got {given[key]})")
    return TokenizerConfig(
        image=values["resolution"],
        stem=1,
        block_out_channels=widths,
        layers_per_block=values["layers_per_block"],
        norm_groups=values["norm_num_groups"],
        latent_channels=values["latent_channels"],
        code_dim=values["vq_embed_dim"] or values["latent_channels"],
        patch_size=values["patch_size"],
        mid_attention=values["mid_block_add_attention"],
        max_attention_resolution=values["max_att_resolution"],
        cross_norm_groups=32,
        cross_dropout=0.1,
        context=values["context_length"],
        vocab_context=values["num_vq_embeddings"],
        vocab_future=values["num_dyn_embeddings"],
        quantizer="vq",
        fsq_levels_context=(),
        fsq_levels_future=(),
        fsq_place_means=False,
        future_input="frame",
        context_skip=False,
    )


def published_of_config(config: TokenizerConfig) -> dict[str, Any]:
    """The content of a `config.json`; what the published keys cannot say is under the key `tokendream`."""
    levels = len(config.block_out_channels)
    content = {
        "_class_name": "CompressiveVQModel",
        "_diffusers_version": "0.27.0",
        **FIXED,
        **{key: [kind] * levels for key, kind in BLOCKS.items()},
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "vq_embed_dim": None if config.code_dim == config.latent_channels else config.code_dim,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "num_vq_embeddings": config.vocab_context,
        "num_dyn_embeddings": config.vocab_future,
        "context_length": config.context,
        "resolution": config.image,
        "max_att_resolution": config.max_attention_resolution,
        "patch_size": config.patch_size,
        # unused by every model, but in every published file
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "force_upcast": True,
        "lookup_from_codebook": True,
    }
    if not _said(content, config):
        content[OWN] = dataclasses.asdict(config)
    return content


def _said(content: Mapping[str, Any], config: TokenizerConfig) -> bool:
    """Whether the published keys alone say all of `config`."""
    try:
        return config_of_published(content) == config
    except ValueError:  # a stem, or groups that the published cross-attention cannot have
        return False
