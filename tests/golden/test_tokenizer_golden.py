"""The tokenizer against recorded numbers of the published model: codes, stages, frames, losses, gradients, names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from golden_sets import DATA, SETS, shorter_contexts, tolerance
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.published.tokenizer import config_of_published, load_tokenizer
from worldmodel.tokenizer import CompressiveTokenizer, TokenizerConfig
from worldmodel.weights.mismatch import Mismatch

CONFIGS = Path(__file__).parents[2] / "configs" / "tokenizer"
GRAD_TOL = 1e-3


class Golden:
    """One fixture set: recorded arrays, the loaded tokenizer."""

    def __init__(self, name: str):
        self.arrays = dict(np.load(DATA / name / "tokenizer.npz", allow_pickle=False))
        self.tokenizer = load_tokenizer(DATA / name / "tokenizer")
        self.context = self.tokenizer.config.context
        self.atol = tolerance(self.tokenizer.config.image)
        self.frames = torch.from_numpy(self.arrays["frames_u8"]).float() / 255

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])


@pytest.fixture(scope="module", params=SETS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def part(x: Tensor) -> Tensor:
    """The part of a large map that was recorded."""
    if x.shape[-1] >= 128:
        return x[:, :2, ::4, ::4]
    return x[:, :4] if x[0].numel() > 40_000 else x


def record(tokenizer: CompressiveTokenizer, run) -> dict[str, list[Tensor]]:
    """Outputs of all sub-modules, by name, while `run` is called; `<name>:input` for what they were given."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str):
        def keep(_module, inputs, output):
            if isinstance(output, Tensor):
                seen.setdefault(name, []).append(output.detach())
                seen.setdefault(f"{name}:input", []).append(inputs[0].detach())

        return keep

    handles = [m.register_forward_hook(hook(n)) for n, m in tokenizer.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    return seen


def stage_module(key: str) -> str:
    """`stage/encoder.down0.resnet0` -> the name of the sub-module that makes it."""
    network, *rest = key.removeprefix("stage/").split(".")
    first = rest[0]
    fixed = {"conv_in": "conv_in", "mid": "mid_block", "out": "conv_out"}
    if first in fixed:
        return f"{network}.{fixed[first]}"
    kind, level = first[:-1], first[-1]
    group = {"down": "down_blocks", "up": "up_blocks", "cross": "cross_att_blocks"}[kind]
    inner = f".resnets.{rest[1][-1]}" if len(rest) > 1 else ""
    return f"{network}.{group}.{level}{inner}"


def check_stages(golden: Golden, keys: list[str]) -> set[str]:
    tokenizer, t = golden.tokenizer, golden.context

    def run() -> None:
        with torch.no_grad():
            encoded = tokenizer.encode_context(golden.frames[:, :t])
            tokenizer.encode_future(encoded, golden.frames[:, t:])
            tokenizer.detokenize(golden.tensor("tokens"), t)

    seen = record(tokenizer, run)
    for key in keys:
        (output,) = seen[stage_module(key)]
        wanted = golden.tensor(key)
        gap = (part(output[:1]) - wanted).abs().max()
        # of its size: without AVX oneDNN sums in another order, and inner activations are larger than frames
        assert gap < golden.atol * wanted.abs().max().clamp_min(1), f"{key} is off by {gap}"
    (latents,) = seen["quant_conv"]
    torch.testing.assert_close(latents, golden.tensor("ctx_latents"), atol=golden.atol, rtol=0)
    (dynamics,) = seen["quant_linear"]
    torch.testing.assert_close(dynamics, golden.tensor("dyn_latents"), atol=golden.atol, rtol=0)
    (patches,) = seen["quant_linear:input"]
    torch.testing.assert_close(patches[:1], golden.tensor("dyn_patches"), atol=golden.atol, rtol=0)
    (maps,) = seen["cond_encoder"]
    torch.testing.assert_close(maps[:1], golden.tensor("dyn_map"), atol=golden.atol, rtol=0)
    return {*keys, "ctx_latents", "dyn_latents", "dyn_patches", "dyn_map"}


def check_ids(golden: Golden) -> set[str]:
    ids, labels = golden.tokenizer.tokenize_ids(golden.frames, golden.context)
    assert torch.equal(ids, golden.tensor("tokens"))
    assert torch.equal(labels, golden.tensor("labels"))
    return {"frames_u8", "tokens", "labels"}


@torch.no_grad()
def check_frames(golden: Golden) -> set[str]:
    frames = golden.tokenizer.detokenize(golden.tensor("tokens"), golden.context)
    wanted = golden.tensor("detokenized")
    torch.testing.assert_close(frames[:, golden.tensor("detokenized_frame_index")], wanted, atol=golden.atol, rtol=0)
    odd = golden.tensor("detok_clamp_tokens")
    assert (odd != golden.tensor("tokens")).any(0).sum() == 2
    clamped = golden.tokenizer.detokenize(odd, golden.context)[:1, golden.context]
    torch.testing.assert_close(clamped, golden.tensor("detok_clamp_first_future"), atol=golden.atol, rtol=0)
    return {"detokenized", "detokenized_frame_index", "detok_clamp_tokens", "detok_clamp_first_future"}


def check_training(golden: Golden, keys: list[str]) -> set[str]:
    tokenizer, t = golden.tokenizer, golden.context
    context, frames = golden.frames[:, :t], golden.frames[:, t:]
    out = tokenizer(context, frames)
    scalars = {
        "fwd/commit_loss": out.commit_context,
        "fwd/dyn_commit_loss": out.commit_future,
        "fwd/l1": (out.recon_future - frames).abs().mean(),
        "fwd/l1_ref": (out.recon_context - context).abs().mean(),
    }
    scalars["fwd/loss"] = sum(scalars.values())
    for key, value in scalars.items():
        torch.testing.assert_close(value.detach(), golden.tensor(key), atol=golden.atol, rtol=0)
    recon = golden.tensor("fwd/recon")
    torch.testing.assert_close(out.recon_future.detach().flatten(0, 1)[: len(recon)], recon, atol=golden.atol, rtol=0)
    torch.testing.assert_close(
        out.recon_context.detach().flatten(0, 1)[-1:], golden.tensor("fwd/ref_recon"), atol=golden.atol, rtol=0
    )
    names = [name for name, _ in tokenizer.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(scalars["fwd/loss"], list(tokenizer.parameters())), strict=True))
    for key in keys:
        wanted = golden.tensor(key)
        torch.testing.assert_close(gradients[key.removeprefix("grad/")], wanted, atol=GRAD_TOL, rtol=GRAD_TOL)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    torch.testing.assert_close(norm, golden.tensor("grad_norm_total"), atol=GRAD_TOL, rtol=GRAD_TOL)
    return {*scalars, *keys, "fwd/recon", "fwd/ref_recon", "grad_norm_total"}


@torch.no_grad()
def check_shrunken_context(name: str, golden: Golden, context: int) -> set[str]:
    tokenizer = load_tokenizer(DATA / name / "tokenizer")
    tokenizer.set_context_length(context)
    keys = {part: f"ctx{context}/{part}" for part in ("tokens", "labels", "detokenized")}
    wanted, first = golden.tensor(keys["detokenized"]), golden.context - context
    ids, labels = tokenizer.tokenize_ids(golden.frames[:1, first : first + wanted.shape[1]], context)
    assert torch.equal(ids, golden.tensor(keys["tokens"]))
    assert torch.equal(labels, golden.tensor(keys["labels"]))
    torch.testing.assert_close(tokenizer.detokenize(ids, context), wanted, atol=golden.atol, rtol=0)
    return set(keys.values())


@pytest.mark.parametrize("name", SETS)
def test_every_recorded_array_comes_out_equal(name: str) -> None:
    golden = Golden(name)
    keys = sorted(golden.arrays)
    checked = check_ids(golden) | check_frames(golden)
    checked |= check_stages(golden, [k for k in keys if k.startswith("stage/")])
    checked |= check_training(golden, [k for k in keys if k.startswith("grad/")])
    for context in shorter_contexts(keys):
        checked |= check_shrunken_context(name, golden, context)
    assert checked == set(keys), f"arrays without a check, or checked but not there: {checked ^ set(keys)}"
    assert sum(k.startswith("stage/") for k in keys) >= 20
    assert sum(k.startswith("grad/") for k in keys) >= 10


def test_decoding_one_frame_at_a_time_from_a_memo_gives_the_recorded_frames(golden: Golden) -> None:
    tokenizer, t = golden.tokenizer, golden.context
    context_codes, codes = tokenizer.tokenize(golden.frames[:, :t], golden.frames[:, t:])
    with torch.no_grad():
        memo = tokenizer.decode_context(context_codes)
        future = [tokenizer.decode_future(memo, codes[:, j : j + 1]) for j in range(codes.shape[1])]
    frames = torch.cat([memo.recon, *future], dim=1)[:, golden.tensor("detokenized_frame_index")]
    torch.testing.assert_close(frames, golden.tensor("detokenized"), atol=golden.atol, rtol=0)


@pytest.mark.parametrize(("resolution", "tensors", "count"), [(64, 420, 114_159_174), (256, 624, 310_472_774)])
def test_names_shapes_and_counts_are_those_of_the_published_models(resolution: int, tensors: int, count: int) -> None:
    values = yaml.safe_load((CONFIGS / f"res{resolution}.yaml").read_text())
    assert values.pop("_target_") == "worldmodel.tokenizer.compressive.TokenizerConfig"
    with torch.device("meta"):
        tokenizer = TokenizerConfig(**values).build()
    listed = {}
    for line in (DATA / f"ivideogpt_params_{resolution}.txt").read_text().splitlines():
        name, shape = line.split(" ", 1)
        listed[name] = json.loads(shape)
    assert {name: list(value.shape) for name, value in tokenizer.state_dict().items()} == listed
    assert len(listed) == tensors
    assert sum(p.numel() for p in tokenizer.parameters()) == count


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "set_b_ctx1" / "tokenizer", tmp_path / "tokenizer"))


def rewrite_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_float32_file_loads_like_the_bf16_one_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    path = directory / "diffusion_pytorch_model.safetensors"
    stored = load_file(path)
    assert {v.dtype for v in stored.values()} == {torch.bfloat16}
    save_file({k: v.float() for k, v in stored.items()}, path, metadata={"format": "pt"})
    rewrite_config(directory, some_new_key=3, _name_or_path="x", _class_name="VQModel")
    loaded = load_tokenizer(directory)
    assert not loaded.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, stored[name].float())


def test_defaults_stand_in_for_keys_that_the_256_config_leaves_out() -> None:
    given = {
        "block_out_channels": [128, 256, 256, 512, 768],
        "layers_per_block": 2,
        "latent_channels": 64,
        "mid_block_add_attention": False,
        "num_vq_embeddings": 8192,
        "num_dyn_embeddings": 8192,
        "context_length": 2,
    }
    values = yaml.safe_load((CONFIGS / "res256.yaml").read_text())
    del values["_target_"]
    assert config_of_published(given) == TokenizerConfig(**values)


def test_what_a_config_leaves_out_has_the_published_default() -> None:
    said = {"_class_name": "VQModel", "block_out_channels": [32, 32, 64, 64, 96]}
    config = config_of_published(said)
    left_out = {
        "layers_per_block": 1, "latent_channels": 3, "code_dim": 3, "vocab_context": 256, "vocab_future": 256,
        "norm_groups": 32, "mid_attention": True, "context": 1, "max_attention_resolution": 32, "image": 256,
        "patch_size": 4, "cross_norm_groups": 32, "cross_dropout": 0.1, "stem": 1, "quantizer": "vq",
    }  # fmt: skip
    assert {name: getattr(config, name) for name in left_out} == left_out
    assert config_of_published({**said, "vq_embed_dim": 7}).code_dim == 7
    with pytest.raises(ValueError, match="block_out_channels is missing"):
        config_of_published({"resolution": 64})
    with pytest.raises(ValueError, match="down_block_types must be DownEncoderBlock2D, 5 times"):
        config_of_published({**said, "down_block_types": ["AttnDownEncoderBlock2D"] * 5})


@pytest.mark.parametrize("said", [1, 2, None])
def test_the_context_is_that_of_the_tensors_whatever_the_config_says(tmp_path: Path, said: int | None) -> None:
    directory = tmp_path / "tokenizer"
    shutil.copytree(DATA / "set_a_ctx2" / "tokenizer", directory)
    config = json.loads((directory / "config.json").read_text())
    del config["context_length"]
    (directory / "config.json").write_text(json.dumps(config | ({} if said is None else {"context_length": said})))
    assert load_tokenizer(directory).config.context == 2


def test_tensors_that_do_not_fit_are_listed_with_both_shapes(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    path = directory / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["quant_linear.bias"]
    tensors["stray"] = torch.zeros(3)
    tensors["conv"] = tensors.pop("decoder.conv_in.bias")
    tensors["quant_conv.bias"] = torch.zeros(5)
    save_file(tensors, path)
    with pytest.raises(Mismatch, match=r"^5 entries of .* do not fit the model: ") as caught:
        load_tokenizer(directory)
    rows = [re.split(r" {2,}", line) for line in caught.value.table.splitlines()]
    assert rows == [
        ["name", "in the file", "in the model", "likely cause"],
        ["quant_conv.bias", "[5]", "[16]", "latent_channels or vq_embed_dim"],
        ["quant_linear.bias", "missing", "[16]", "a damaged or cut file"],
        ["decoder.conv_in.bias", "missing", "[32]", "a damaged or cut file"],
        ["conv", "[32]", "unexpected", "not a tensor of this model"],
        ["stray", "[3]", "unexpected", "not a tensor of this model"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "relu"}, "act_fn must be 'silu'"),
        ({"norm_type": "spatial"}, "norm_type must be 'group'"),
        ({"resolution": 66}, "image must be a multiple of 4"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    directory = copied(tmp_path)
    rewrite_config(directory, **changes)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(directory)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    directory = copied(tmp_path)
    (directory / name).write_bytes(b"\x80\x04not what it says")
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        load_tokenizer(directory)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        load_tokenizer(directory)
