"""Published transformer checkpoints <-> TokenModel: a folder with config.json and model.safetensors.

Our modules carry the published names, so nothing is renamed; it knows nothing of the tokenizer's files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.published.tokenizer import OWN
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig
from worldmodel.transformer.llama import TransformerConfig
from worldmodel.transformer.token_model import HeadConfig, TokenModel
from worldmodel.weights.files import CONFIG, read_json, read_tensors
from worldmodel.weights.mismatch import Mismatch, compare

TRANSFORMER_FILE = "model.safetensors"
LLM = "llm."
ROTARY = "rotary_emb.inv_freq"
"""End of the names of tables that some files hold and nobody needs."""

# options of the library's config that our transformer does not have, with the one value each may take
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_dropout": 0.0}
"""The library's own values of keys that a file may leave out (published ones leave out `rope_theta`)."""


@dataclass(frozen=True, kw_only=True)
class TransformerWeights:
    """A token model's configs and its tensors by name (as `TokenModel` has them), before any network is made.

    Attributes:
        source: where they come from, for messages.
    """

    config: TransformerConfig
    heads: HeadConfig
    decoding: DecodingConfig
    tensors: Mapping[str, Tensor]
    source: str

    @property
    def action_dim(self) -> int:
        """Width of the actions, with what is known of the proprioception behind them; 0 for an action-free model."""
        return self._size("action_linear.weight", 1)

    @property
    def proprio_dim(self) -> int:
        """Numbers of the proprioception whose push a head predicts."""
        return self._size("proprio_linear.weight", 0)

    @property
    def levels(self) -> bool:
        """Whether embedding and output matrix are composed of the codes' levels."""
        return f"{LLM}lm_head.basis" in self.tensors

    def _size(self, name: str, axis: int) -> int:
        return self.tensors[name].shape[axis] if name in self.tensors else 0

    def build(
        self,
        layout: TokenLayout,
        *,
        generator: torch.Generator,
        action_dim: int | None = None,
        reward: bool = False,
        features_VJ: Tensor | None = None,
    ) -> TokenModel:
        """The model, float32, in eval mode, on the CPU.

        Args:
            layout: gives the vocabulary; the one in config.json is not used (published configs are wrong there).
            generator: source of the initial values of what the file does not hold.
            action_dim: None: as in the file. A number for an action-free file adds a new, zero action embedding, which
                leaves what the model predicts as it was.
            reward: adds the published reward head if there is none in the file.
            features_VJ: what embedding and output are composed of, where `levels` says that they are.
        Raises: Mismatch with a table of names and shapes if file and model do not fit.
        """
        optional = set()
        if action_dim and not self.action_dim:
            optional |= {"action_linear.weight", "action_linear.bias"}
        heads = self.heads
        if reward and heads.reward == "none":
            heads = dataclasses.replace(heads, reward="scalar")
            optional |= {"reward_linear.weight", "reward_linear.bias"}
        feature_dim = self._size("reward_head.0.weight", 1) - self.config.hidden
        model = TokenModel(
            self.config,
            layout,
            condition_dim=self.action_dim if action_dim is None else action_dim,
            heads=heads,
            feature_dim=max(0, feature_dim),
            continues="continue_linear.weight" in self.tensors,
            proprio_dim=self.proprio_dim,
            decoding=self.decoding,
            features_VJ=features_VJ if self.levels else None,
            generator=generator,
        )
        if rows := compare(self.tensors, model.state_dict(), optional=optional):
            raise Mismatch(self.source, rows)
        model.load_state_dict(dict(self.tensors), strict=False, assign=True)  # what may be missing was checked
        return model.eval()


def read_transformer(directory: str | Path, *, values: bool = True) -> TransformerWeights:
    """What a published `transformer/` folder holds (spec section 12), any float.

    An action-free file has names without `llm.`; an action-conditioned one an action embedding beside the language
    model, and whichever heads it was trained with: these are read off the names.

    Args:
        values: False for tensors of the meta device, which have shapes alone.
    Raises: ValueError on an unreadable file or an unsupported config.
    """
    directory = Path(directory)
    raw = read_json(directory / CONFIG)
    path = directory / TRANSFORMER_FILE
    config = config_of_published(raw, directory / CONFIG)
    tensors = {name: value for name, value in read_tensors(path, values=values).items() if not name.endswith(ROTARY)}
    if not any(name.startswith(LLM) for name in tensors):
        tensors = {LLM + name: value for name, value in tensors.items()}
    try:
        heads = HeadConfig(**raw[OWN]["heads"]) if OWN in raw else heads_of_names(tensors)
        own = raw.get(OWN, {})
        decoding = DecodingConfig(**own["decoding"]) if "decoding" in own else AUTOREGRESSIVE
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / CONFIG}: {OWN}: {error}") from error
    return TransformerWeights(config=config, heads=heads, decoding=decoding, tensors=tensors, source=str(path))


def heads_of_names(names: Mapping[str, Any]) -> HeadConfig:
    """The published heads that a file with these names has; the weight of a loss is in no file, so it is 1."""
    return HeadConfig(
        action="slot",
        reward="scalar" if "reward_linear.weight" in names else "none",
        bins=0,
        low=0.0,
        high=0.0,
        width=0,
        action_recon=1.0 if "action_recon_linear.weight" in names else 0.0,
    )


def config_of_published(raw: Mapping[str, Any], path: Path) -> TransformerConfig:
    """The size in the content of a published config.json.

    Raises: ValueError naming `path` if it asks for something that the published models do not have.
    """
    missing = [name for name in NEEDED if name not in raw]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not the config of an iVideoGPT transformer")
    for name, value in FIXED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{path}: {name} must be {value} (got {raw[name]})")
    for name in NEEDED:
        if type(raw[name]) is not int or raw[name] < 1:
            raise ValueError(f"{path}: {name} must be a whole number >= 1 (got {raw[name]!r})")
    heads = raw["num_attention_heads"]
    for name, right in (("num_key_value_heads", heads), ("head_dim", raw["hidden_size"] // heads)):
        if (raw.get(name) or right) != right:
            raise ValueError(f"{path}: {name} must be {right} (got {raw[name]})")
    rope = raw.get("rope_parameters") or {}  # where newer versions of the library keep it
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path}: rope_parameters.rope_type must be default (got {rope['rope_type']})")
    values = {**DEFAULTS, **{k: v for k, v in {**rope, **raw}.items() if k in DEFAULTS and v is not None}}
    try:
        return TransformerConfig(
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            mlp=raw["intermediate_size"],
            positions=values["max_position_embeddings"],
            rope_theta=values["rope_theta"],
            norm_eps=values["rms_norm_eps"],
            dropout=values["attention_dropout"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def published_of_model(model: TokenModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a `config.json` and the tensors under published names."""
    config, tensors = model.llm.config, model.state_dict()
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "intermediate_size": config.mlp,
        "max_position_embeddings": config.positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_dropout": config.dropout,
        **{name: value for name, value in FIXED.items() if name != "mlp_bias"},
        "vocab_size": model.layout.vocab,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "max_length": 1024,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if model.heads != heads_of_names(tensors) or model.decoding.has_queries:
        content[OWN] = {"heads": dataclasses.asdict(model.heads)}
    if model.decoding.has_queries:
        content[OWN]["decoding"] = dataclasses.asdict(model.decoding)
    if all(name.startswith(LLM) for name in tensors):  # action-free: the language model alone
        tensors = {name.removeprefix(LLM): value for name, value in tensors.items()}
    return content, tensors
