"""The token model and the engine against the golden numbers of the published transformer (tests/golden/data)."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from golden_sets import DATA, SETS, tolerance
from safetensors.torch import load_file, save_file
from torch import Tensor

import worldmodel
from worldmodel.layout import TokenLayout
from worldmodel.published.model import VideoGPT
from worldmodel.published.transformer import read_transformer
from worldmodel.rollout import SamplingConfig, TokenEngine
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.sampling import probabilities
from worldmodel.sequence import codes_of_ids, layout_ids
from worldmodel.transformer import TransformerConfig
from worldmodel.twohot import symlog
from worldmodel.weights.mismatch import Mismatch

PUBLISHED = SamplingConfig(temperature=1.0, top_k=100, codes_only=False)
B_ACTION = DATA / "set_b_ctx1/transformer_action"
B_LAYOUT = TokenLayout(context=1, vocab_context=128, vocab_future=96)


@functools.cache
def loaded(name: str, kind: str) -> VideoGPT:
    return worldmodel.load(DATA / name, transformer=kind)


class Golden:
    """One set of golden arrays; remembers which were used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays = np.load(DATA / name / "transformer.npz")
        self.used: set[str] = set()
        self.video = loaded(name, "transformer_action")
        self.layout = self.video.layout
        self.atol = tolerance(self.video.tokenizer.config.image)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays.files

    def given(self, name: str) -> Tensor:
        self.used.add(name)
        return torch.from_numpy(self.arrays[name])

    def expect(self, name: str, found: Tensor, *, atol: float | None = None, rtol: float = 0.0) -> None:
        wanted = self.given(name)
        assert found.shape == wanted.shape, name
        if wanted.is_floating_point():
            atol = self.atol if atol is None else atol
            torch.testing.assert_close(
                found.detach().float(), wanted, atol=atol, rtol=rtol, msg=lambda m: f"{name}: {m}"
            )
        else:
            assert torch.equal(found, wanted), name

    def codes(self) -> tuple[Tensor, Tensor]:
        return codes_of_ids(self.given("input_ids"), self.layout)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tail(golden: Golden, x_BNX: Tensor, extra: int) -> Tensor:
    frames = golden.layout.frames(golden.arrays["input_ids"].shape[1])
    return x_BNX[:, -(golden.layout.stride * frames + extra) :]


def check_layout(golden: Golden) -> None:
    context, codes = golden.codes()
    golden.expect("input_ids", layout_ids(context, codes, golden.layout))
    golden.expect("labels", golden.video.labels(golden.given("input_ids")))


def check_action_free(golden: Golden) -> None:
    model, states = loaded(golden.name, "transformer").transformer, []
    assert model.condition_dim == 0 and not hasattr(model, "action_linear")
    embeddings = model.embed(golden.given("input_ids"), None)
    keep = [
        block.register_forward_hook(lambda module, inputs, output: states.append(output))
        for block in list(model.llm.model.layers)[:-1]
    ]
    out = model(golden.given("input_ids"), golden.given("labels"))
    for handle in keep:
        handle.remove()
    assert out.rewards is None
    golden.expect("free/loss", out.loss)
    golden.expect("free/logits", tail(golden, out.logits, 4))
    for number, state in enumerate([embeddings, *states, out.hidden]):
        golden.expect(f"free/hidden{number}", state[:1, -40:])


def check_actions_and_rewards(golden: Golden) -> None:
    model, t = worldmodel.load(DATA / golden.name).transformer, golden.layout.context  # its own: it gets gradients
    out = model(golden.given("input_ids"), golden.given("labels"), golden.given("action"))
    reward_BF1 = golden.given("reward")[:, t:]  # QUIRK 14, one row late: the published alignment
    reward_loss = (out.rewards - symlog(reward_BF1)).square().mean()
    golden.expect("act/loss", out.loss)
    golden.expect("act/logits", tail(golden, out.logits, 4))
    golden.expect("act/hidden_last", tail(golden, out.hidden, 0))
    golden.expect("act/reward_pred", out.rewards)
    golden.expect("act/reward_loss", reward_loss)
    plain = model.reward_loss(model.frame_hidden(out.hidden[:, model.layout.prelude :]), reward_BF1[..., 0]).mean()
    torch.testing.assert_close(plain, reward_loss)
    torch.testing.assert_close(model.code_loss(out.hidden, golden.given("labels")), out.loss)
    (out.loss + reward_loss).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in golden.arrays.files:
        if name.startswith("act/grad/"):
            golden.expect(name, gradients[name.removeprefix("act/grad/")], atol=1e-3, rtol=1e-3)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    golden.expect("act/grad_norm_total", norm, atol=1e-3, rtol=1e-3)


def check_action_reconstruction(golden: Golden) -> None:
    if "recon/weight" not in golden:
        return
    weight = float(golden.given("recon/weight"))
    weights = read_transformer(DATA / golden.name / "transformer_action")
    names = ("action_recon_linear.weight", "action_recon_linear.bias")
    tensors = {**weights.tensors, **{name: golden.given(f"recon/{name}") for name in names}}
    heads = dataclasses.replace(weights.heads, reward="none", action_recon=weight)
    for name in ("reward_linear.weight", "reward_linear.bias"):
        del tensors[name]
    model = dataclasses.replace(weights, heads=heads, tensors=tensors).build(golden.layout, generator=generator())
    context, codes = golden.codes()
    actions_BFA = model.into_frames(golden.given("action"), codes.shape[1])
    losses = model.losses(
        context,
        codes,
        actions_BFA=actions_BFA,
        features_BFE=None,
        reward_BF=torch.zeros(actions_BFA.shape[:2]),
        reward_mask_BF=torch.zeros(actions_BFA.shape[:2], dtype=torch.bool),
        continue_BF=torch.ones(actions_BFA.shape[:2]),
        num_observed=0,
        generator=generator(),
    )
    golden.expect("recon/action_recon_loss", losses["action_recon"] / weight)
    golden.expect("recon/loss_total", losses["codes"] + losses["action_recon"])


def check_generation(golden: Golden) -> None:
    """With actions the separators are forced; without them they are drawn like any other id."""
    ids, action = golden.given("input_ids"), golden.given("action")
    golden.expect("gen/action_tokens", golden.video.generate(ids, action=action, sampling="argmax"))
    prompt, frames = ids[:, : golden.layout.prelude + 1], golden.layout.frames(ids.shape[1])
    short = golden.video.generate(prompt, frames=frames, action=action[:, :-1], sampling="argmax")
    assert torch.equal(short, golden.given("gen/action_tokens"))
    free = loaded(golden.name, "transformer").generate(prompt, frames=frames, sampling="argmax")
    golden.expect("gen/free_tokens", free)


def check_rollout(golden: Golden) -> None:
    """The published control rollout: context codes from a stacked observation, then frames, rewards and pixels."""
    obs_u8, actions, video = golden.given("rollout/obs_u8"), golden.given("rollout/actions"), golden.video
    horizon, seen, engines = actions.shape[1], [], []

    def policy(obs: Tensor, step: int) -> Tensor:
        seen.append(obs)
        return actions[:, step]

    obs, acted, rewards = video.rollout(obs_u8, policy, horizon, sampling="argmax")
    golden.expect("rollout/rewards", rewards)
    golden.expect("rollout/rewards_symlog", video.rollout(obs_u8, policy, horizon, symlog=False).rewards)
    frames = golden.given("rollout/frames")
    torch.testing.assert_close(obs[:, 1 + horizon - frames.shape[1] :, -3:], frames, atol=golden.atol, rtol=0)
    assert obs.dtype == acted.dtype == rewards.dtype == torch.float32
    assert torch.equal(obs[:, 0], obs_u8 / 255) and not acted[:, 0].any() and torch.equal(acted[:, 1:], actions)
    assert torch.equal(obs[:, 1:, :-3], obs[:, :-1, 3:])  # the oldest frame leaves the stack
    assert all(torch.equal(obs[:, step], seen[step]) for step in range(horizon))
    engines.append(video._engine[1])  # the ids are not part of what a rollout returns: drawn once more
    engines[0].prefill(*observed(golden, obs_u8), None)
    ids = []
    for action_BA in actions.unbind(1):
        frame = engines[0].sample_frame(action_BA, None)
        discarded_B = video.transformer.llm.logits(frame.hidden_BD).argmax(-1)  # QUIRK 12: the published loop draws it
        ids.append(torch.cat([frame.ids_BK, discarded_B[:, None]], 1))
    golden.expect("rollout/tokens", torch.stack(ids, 1))


@torch.no_grad()
def check_sampled_rollout(golden: Golden) -> None:
    """Our filtered distribution under torch.multinomial is the published draw; given frames give the same rewards."""
    if "rollout_sampled/seed" not in golden:
        return
    model, actions_BHA = golden.video.transformer, golden.given("rollout/actions")
    context_codes, nothing = observed(golden, golden.given("rollout/obs_u8"))
    layout, llm = golden.layout, model.llm
    rows, horizon, _ = actions_BHA.shape
    stream = torch.Generator().manual_seed(int(golden.given("rollout_sampled/seed")))
    cache, drawn, rewards = cache_for(llm.config, rows, layout.length(horizon)), [], [torch.zeros(rows)]
    engine = TokenEngine(model, rows=rows, frames=horizon, sampling=PUBLISHED)
    engine.prefill(context_codes, nothing, None)
    llm(llm.embed(layout_ids(context_codes, nothing, layout)), cache=cache)
    for action_BA in actions_BHA.unbind(1):
        fed_BTD = (llm.embed(torch.full((rows,), layout.sdf)) + model.action_linear(action_BA)).unsqueeze(1)
        ids = []
        for _ in range(layout.codes_future + 1):
            logits_BV = llm.logits(llm(fed_BTD, cache=cache)[:, 0])
            ids.append(torch.multinomial(probabilities(logits_BV, PUBLISHED), 1, generator=stream))
            fed_BTD = llm.embed(ids[-1])
        drawn.append(torch.cat(ids, 1))
        rewards.append(model.reward(engine.force_frame(action_BA, drawn[-1][:, :-1]).hidden_BD))
    golden.expect("rollout_sampled/tokens", torch.stack(drawn, 1))
    golden.expect("rollout_sampled/rewards", torch.stack(rewards, 1).unsqueeze(-1))


def observed(golden: Golden, obs_u8: Tensor) -> tuple[Tensor, Tensor]:
    """Context codes of stacked frames, and no codes of future frames."""
    stacked = (obs_u8 / 255).unflatten(1, (-1, 3))[:, -golden.layout.context :]
    ids = golden.video.tokenize(torch.cat([stacked, torch.zeros_like(stacked)], 1))[:, : golden.layout.prelude]
    return codes_of_ids(ids, golden.layout)


def cache_for(config: TransformerConfig, rows: int, positions: int) -> KVCache:
    return KVCache(
        layers=config.layers,
        rows=rows,
        heads=config.heads,
        positions=positions,
        channels=config.hidden // config.heads,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


CHECKS = (
    check_layout,
    check_action_free,
    check_actions_and_rewards,
    check_action_reconstruction,
    check_generation,
    check_rollout,
    check_sampled_rollout,
)


@functools.cache
def run(check: Callable[[Golden], None], name: str) -> frozenset[str]:
    golden = Golden(name)
    check(golden)
    return frozenset(golden.used)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_published_numbers_come_out(check, name):
    run(check, name)


@pytest.mark.parametrize("name", SETS)
def test_every_golden_array_is_used(name):
    used = frozenset().union(*(run(check, name) for check in CHECKS))
    assert used == set(np.load(DATA / name / "transformer.npz").files)


@pytest.mark.parametrize(("size", "parameters"), [("138m", 138_434_304), ("436m", 436_261_888)])
def test_names_and_shapes_are_the_published_ones(size, parameters):
    lines = (DATA / f"ivideogpt_params_transformer_{size}.txt").read_text().splitlines()
    published = dict(line.split(" ", 1) for line in lines if line.strip())
    with torch.device("meta"):
        llm = preset({"138m": "base138m", "436m": "medium436m"}[size]).build(
            vocab=TokenLayout(context=2).vocab, generator=torch.Generator("cpu")
        )
    assert {name: str(list(value.shape)) for name, value in llm.state_dict().items()} == published
    assert sum(parameter.numel() for parameter in llm.parameters()) == parameters


def preset(name: str) -> TransformerConfig:
    fields = yaml.safe_load((Path(__file__).parents[2] / "configs/transformer" / f"{name}.yaml").read_text())
    assert fields.pop("_target_") == "worldmodel.transformer.llama.TransformerConfig"
    return TransformerConfig(**fields)


@pytest.mark.parametrize("name", ["micro", "tiny", "s", "m", "base138m", "medium436m"])
def test_every_preset_is_a_transformer_config_with_exactly_its_fields(name):
    assert preset(name).hidden % preset(name).heads == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_any_float_type_load_as_float32_without_rotary_buffers(tmp_path, dtype):
    weights = load_file(DATA / "set_b_ctx1/transformer/model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({name: value.to(dtype) for name, value in {**weights, **extra}.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((DATA / "set_b_ctx1/transformer/config.json").read_text())
    model = read_transformer(tmp_path).build(B_LAYOUT, generator=generator())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.llm.lm_head.weight, weights["lm_head.weight"].to(dtype).float())


def rows_of(caught: pytest.ExceptionInfo[Mismatch]) -> dict[str, list[str]]:
    """The table, by name."""
    lines = (re.split(r" {2,}", line) for line in caught.value.table.splitlines()[1:])
    return {name: cells for name, *cells in lines}


def test_a_file_that_does_not_fit_is_explained_by_a_table() -> None:
    layout = TokenLayout(context=1, vocab_context=128, vocab_future=64)
    with pytest.raises(Mismatch) as caught:
        read_transformer(B_ACTION).build(layout, generator=generator())
    told = "vocabulary 226 in the file, 194 in the model (context codes + dynamics codes + 2)"
    assert rows_of(caught) == {
        f"llm.{name}.weight": ["[226, 64]", "[194, 64]", told] for name in ("model.embed_tokens", "lm_head")
    }
    with pytest.raises(Mismatch) as caught:
        read_transformer(B_ACTION).build(B_LAYOUT, action_dim=7, generator=generator())
    assert rows_of(caught) == {
        "action_linear.weight": ["[64, 3]", "[64, 7]", "action_dim 3 in the file, 7 in the model"]
    }


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = DATA / "set_b_ctx1/transformer"
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        read_transformer(tmp_path)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        read_transformer(tmp_path)
    for change, message in (
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4"),
        ({"head_dim": 8}, "head_dim must be 16"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling must be None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be default"),
        ({"num_attention_heads": 3, "num_key_value_heads": None}, "hidden must be a multiple of 2"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number >= 1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            read_transformer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks hidden_size"):
        read_transformer(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((B_ACTION / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, .* never opened here") as caught:
        read_transformer(tmp_path)
    assert "\n" not in str(caught.value)
