"""Published tokenizer checkpoints on disk -> our tokenizer. Opens JSON and safetensors only; executes nothing.

Our parameters carry the published names, so there is no name table: what does not fit is listed in the error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.tokenizer.compressive import CompressiveTokenizer, TokenizerConfig

CONFIG_FILE = "config.json"
TENSOR_FILE = "diffusion_pytorch_model.safetensors"

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


def load_tokenizer(directory: str | Path) -> CompressiveTokenizer:
    """The tokenizer of a published checkpoint, in float32 and eval mode, on the CPU.

    Args:
        directory: holds `config.json` and `diffusion_pytorch_model.safetensors` (float32, bf16 or fp16).

    Raises:
        ValueError: a file is missing or unreadable, the config is not one of this model, or tensors do not fit it.
    """
    directory = Path(directory)
    config = config_of_published(read_json(directory / CONFIG_FILE))
    path = directory / TENSOR_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    with torch.device("meta"):
        tokenizer = config.build()
    check_tensors(tensors, tokenizer.state_dict(), path)
    tokenizer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return tokenizer.eval()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object (got {type(content).__name__})")
    return content


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
    return TokenizerConfig(
        image=values["resolution"],
        stem=1,
        block_out_channels=tuple(given["block_out_channels"]),
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


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raises ValueError with a table of names and shapes unless both hold the same names with the same shapes."""
    rows = []
    for name in dict.fromkeys([*expected, *tensors]):
        ours = list(expected[name].shape) if name in expected else "unexpected"
        theirs = list(tensors[name].shape) if name in tensors else "missing"
        if ours != theirs:
            rows.append((name, str(theirs), str(ours)))
    if rows:
        table = [("tensor", "in the file", "in the model"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        raise ValueError(f"{len(rows)} tensors of {path} do not fit the model of its config:\n" + "\n".join(lines))
