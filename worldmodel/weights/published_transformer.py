"""Published transformer checkpoints -> TokenModel: a directory with config.json and model.safetensors.

Our modules carry the published names, so nothing is renamed; it knows nothing of the tokenizer's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.transformer.llama import TransformerConfig
from worldmodel.transformer.token_model import HeadConfig, TokenModel
from worldmodel.weights.published import read_json

_LLM = "llm."
# options of the library's config that our transformer does not have, with the one value each may take
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
)


def load_transformer(
    directory: Path,
    layout: TokenLayout,
    *,
    action_dim: int,
    heads: HeadConfig,
    feature_dim: int,
    continues: bool,
    generator: torch.Generator,
) -> TokenModel:
    """The model of a published `transformer/` directory (spec section 12), float32, in eval mode.

    An action-free file (names without `llm.`) fills the language model; an action-conditioned one also the action
    embedding and whichever heads it holds. What the file does not hold keeps its initial value.

    Args:
        layout: gives the vocabulary; the one in config.json is not used (published configs are wrong there).
        heads, feature_dim, continues: see `TokenModel`; a published file with a reward head needs reward=scalar.
        generator: source of the initial values of what the file does not hold.
    Raises: ValueError with a table of names and shapes if file and model do not fit; also on an
            unreadable file or an unsupported config.
    """
    config = read_config(directory / "config.json")
    path = directory / "model.safetensors"
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if not any(name.startswith(_LLM) for name in weights):
        weights = {_LLM + name: value for name, value in weights.items()}
    model = TokenModel(
        config,
        layout,
        action_dim=action_dim,
        heads=heads,
        feature_dim=feature_dim,
        continues=continues,
        generator=generator,
    )
    _check(weights, model.state_dict(), directory)
    model.load_state_dict(weights, strict=False)  # what may be missing was checked
    return model.eval()


def read_config(path: Path) -> TransformerConfig:
    """The size in a published config.json.

    Raises: ValueError if it asks for something that the published models do not have.
    """
    raw = read_json(path)
    missing = [name for name in _NEEDED if name not in raw]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not the config of an iVideoGPT transformer")
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{path}: {name} must be {value} (got {raw[name]})")
    heads = raw["num_attention_heads"]
    if raw.get("num_key_value_heads", heads) != heads:
        raise ValueError(f"{path}: num_key_value_heads must be {heads} (got {raw['num_key_value_heads']})")
    return TransformerConfig(
        hidden=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        mlp=raw["intermediate_size"],
        positions=raw["max_position_embeddings"],
        rope_theta=raw.get("rope_theta", 10000.0),  # the library's default, absent from published files
        norm_eps=raw["rms_norm_eps"],
        dropout=raw.get("attention_dropout", 0.0),
    )


def _check(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], directory: Path) -> None:
    rows = []
    for name in sorted(weights.keys() | wanted.keys()):
        in_file = tuple(weights[name].shape) if name in weights else None
        in_model = tuple(wanted[name].shape) if name in wanted else None
        optional = in_file is None and not name.startswith(_LLM)
        if in_file != in_model and not optional:
            rows.append(f"  {name:60} {in_file or 'missing'!s:20} {in_model or 'unknown'!s:20}")
    if rows:
        header = f"  {'name':60} {'shape in file':20} {'shape in model':20}"
        raise ValueError(
            f"{directory} does not fit this model (its size, layout, action_dim and heads decide the shapes):\n"
            + "\n".join([header, *rows])
        )
