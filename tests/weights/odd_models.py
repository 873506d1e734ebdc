"""Random models with settings that no recorded set has, written by hand in the published layout: no code of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.published.model import VideoGPT
from worldmodel.published.tokenizer import config_of_published
from worldmodel.transformer import HeadConfig, TransformerConfig
from worldmodel.transformer.token_model import TokenModel

WIDE: dict[str, Any] = {  # 256 px: resolution, max_att_resolution and patch_size are left out, as published
    "_class_name": "VQModel",
    "_diffusers_version": "0.31.0",
    "block_out_channels": [4, 8, 32, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 8,
    "vq_embed_dim": 5,
    "norm_num_groups": 4,
    "num_vq_embeddings": 37,
    "num_dyn_embeddings": 21,
    "context_length": 3,
    "some_key_of_tomorrow": {"a": 1},
}
DEEP: dict[str, Any] = {  # context_length is left out: 1
    "_class_name": "CompressiveVQModel",
    "block_out_channels": [8, 8, 32, 64],
    "layers_per_block": 3,
    "latent_channels": 6,
    "norm_num_groups": 2,
    "num_vq_embeddings": 29,
    "num_dyn_embeddings": 43,
    "mid_block_add_attention": False,
    "resolution": 128,
    "max_att_resolution": 16,
    "patch_size": 8,
    "vq_embed_dim": None,
}
LLAMA: dict[str, Any] = {  # no num_key_value_heads, no rope_theta; vocab_size is that of the library's example
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 52,
    "max_position_embeddings": 1400,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.1,
    "vocab_size": 8192,
    "torch_dtype": "float16",
}
DTYPES = {"wide": torch.float16, "deep": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Odd:
    """A model on disk and the same model in memory."""

    folder: Path
    model: VideoGPT
    action_dim: int


def make(name: str, folder: Path) -> Odd:
    """Writes `wide` (256 px, t = 3, attention in the plain networks, old names) or `deep` (128 px, t = 1)."""
    raw, action_dim = ({"wide": (WIDE, 2), "deep": (DEEP, 6)})[name]
    reward = "scalar" if name == "wide" else "none"
    torch.manual_seed(11)
    tokenizer = config_of_published(raw).build()
    heads = HeadConfig(action="slot", reward=reward, bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
    config = TransformerConfig(
        hidden=24, layers=3, heads=3, mlp=52, positions=1400, rope_theta=1e4, norm_eps=1e-6, dropout=0.1
    )
    tokens = TokenModel(
        config,
        tokenizer.layout,
        condition_dim=action_dim,
        heads=heads,
        feature_dim=0,
        continues=False,
        generator=torch.Generator().manual_seed(3),
    )
    model = VideoGPT(tokenizer, tokens).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at zero, and the file's type holds it exactly
            noisy = parameter + 0.2 * torch.randn_like(parameter)
            parameter.copy_(noisy.to(DTYPES[name]))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = dict(tokenizer.state_dict())
    if name == "wide":
        for new, before in old.items():
            tensors = {
                k.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): value for k, value in tensors.items()
            }
        assert "encoder.mid_block.attentions.0.query.weight" in tensors
    write(folder / "tokenizer", raw, tensors, "diffusion_pytorch_model.safetensors", DTYPES[name])
    write(folder / "transformer", LLAMA, tokens.state_dict(), "model.safetensors", DTYPES[name])
    (folder / "transformer" / "generation_config.json").write_text('{"eos_token_id": 50256}')
    return Odd(folder, model, action_dim)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], file: str, dtype: torch.dtype) -> None:
    """One network's folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, folder / file, {"format": "pt"})
