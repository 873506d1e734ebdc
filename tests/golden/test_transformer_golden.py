"""The token model and the engine against the golden numbers of the published transformer (tests/golden/data)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.rollout import SamplingConfig, TokenEngine
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.sampling import probabilities
from worldmodel.strings import codes_of_ids, layout_ids, layout_labels
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.transformer.token_model import symlog
from worldmodel.weights.published import load_tokenizer
from worldmodel.weights.published_transformer import load_transformer

DATA = Path(__file__).parent / "data"
SETS = {
    "set_a_ctx2": TokenLayout(context=2, vocab_context=128, vocab_future=96),
    "set_b_ctx1": TokenLayout(context=1, vocab_context=128, vocab_future=96),
}
GREEDY = SamplingConfig(temperature=0.0, top_k=0, codes_only=False)
PUBLISHED = SamplingConfig(temperature=1.0, top_k=100, codes_only=False)


class Golden:
    """One set of golden arrays; remembers which were used."""

    def __init__(self, name: str) -> None:
        self.directory, self.layout = DATA / name, SETS[name]
        self.arrays = np.load(self.directory / "transformer.npz")
        self.used: set[str] = set()

    def given(self, name: str) -> Tensor:
        self.used.add(name)
        return torch.from_numpy(self.arrays[name])

    def expect(self, name: str, found: Tensor, *, atol: float = 1e-4, rtol: float = 0.0) -> None:
        wanted = self.given(name)
        assert found.shape == wanted.shape, name
        if wanted.is_floating_point():
            torch.testing.assert_close(
                found.detach().float(), wanted, atol=atol, rtol=rtol, msg=lambda m: f"{name}: {m}"
            )
        else:
            assert torch.equal(found, wanted), name

    def model(self, kind: str = "transformer_action", *, reward: str = "scalar", recon: float = 0.0) -> TokenModel:
        heads = HeadConfig(action="slot", reward=reward, bins=0, low=0.0, high=0.0, width=0, action_recon=recon)
        return load(self.directory / kind, self.layout, self.arrays["action"].shape[2], heads)

    def codes(self) -> tuple[Tensor, Tensor]:
        return codes_of_ids(self.given("input_ids"), self.layout)


def load(directory: Path, layout: TokenLayout, action_dim: int, heads: HeadConfig) -> TokenModel:
    return load_transformer(
        directory,
        layout,
        action_dim=action_dim,
        heads=heads,
        feature_dim=0,
        continues=False,
        generator=torch.Generator().manual_seed(0),
    )


def no_heads() -> HeadConfig:
    return HeadConfig(action="slot", reward="none", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)


def tail(golden: Golden, x_BNX: Tensor, extra: int) -> Tensor:
    frames = golden.layout.frames(golden.arrays["input_ids"].shape[1])
    return x_BNX[:, -(golden.layout.stride * frames + extra) :]


def check_layout(golden: Golden) -> None:
    context, codes = golden.codes()
    golden.expect("input_ids", layout_ids(context, codes, golden.layout))
    golden.expect("labels", layout_labels(golden.given("input_ids"), golden.layout))


def check_action_free(golden: Golden) -> None:
    model, states = golden.model("transformer", reward="none"), []
    embeddings = model.embed(golden.given("input_ids"), None)
    for block in list(model.llm.model.layers)[:-1]:
        block.register_forward_hook(lambda module, inputs, output: states.append(output))
    hidden = model.llm(embeddings)
    golden.expect("free/loss", model.code_loss(hidden, golden.given("labels")))
    golden.expect("free/logits", tail(golden, model.llm.logits(hidden), 4))
    for number, state in enumerate([embeddings, *states, hidden]):
        golden.expect(f"free/hidden{number}", state[:1, -40:])


def check_actions_and_rewards(golden: Golden) -> None:
    model, t = golden.model(), golden.layout.context
    out = model(golden.given("input_ids"), golden.given("labels"), golden.given("action"))
    reward_BF1 = golden.given("reward")[:, t:]  # QUIRK 14, one row late: the published alignment
    reward_loss = (out.rewards - symlog(reward_BF1)).square().mean()
    golden.expect("act/loss", out.loss)
    golden.expect("act/logits", tail(golden, out.logits, 4))
    golden.expect("act/hidden_last", tail(golden, out.hidden, 0))
    golden.expect("act/reward_pred", out.rewards)
    golden.expect("act/reward_loss", reward_loss)
    assert torch.equal(model.reward_loss(model.frame_hidden(out.hidden), reward_BF1[..., 0]).mean(), reward_loss)
    torch.testing.assert_close(model.code_loss(out.hidden, golden.given("labels")), out.loss)
    (out.loss + reward_loss).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in golden.arrays.files:
        if name.startswith("act/grad/"):
            golden.expect(name, gradients[name.removeprefix("act/grad/")], atol=1e-3, rtol=1e-3)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    golden.expect("act/grad_norm_total", norm, atol=1e-3, rtol=1e-3)


def check_action_reconstruction(golden: Golden) -> None:
    weight = float(golden.given("recon/weight"))
    model = golden.model(recon=weight)
    state = {name: golden.given(f"recon/{name}") for name in ("action_recon_linear.weight", "action_recon_linear.bias")}
    model.load_state_dict(state, strict=False)
    context, codes = golden.codes()
    actions_BFA = model.into_frames(golden.given("action"), codes.shape[1])
    reward_BF = torch.zeros(actions_BFA.shape[:2])
    losses = model.losses(
        context,
        codes,
        actions_BFA=actions_BFA,
        features_BFE=None,
        reward_BF=reward_BF,
        reward_known_BF=torch.ones_like(reward_BF, dtype=torch.bool),
        continue_BF=torch.ones_like(reward_BF),
        given=0,
        generator=torch.Generator(),
    )
    golden.expect("recon/action_recon_loss", losses["action_recon"] / weight)
    golden.expect("recon/loss_total", losses["codes"] + losses["action_recon"])


def check_generation_with_actions(golden: Golden) -> None:
    context, codes = golden.codes()
    engine = TokenEngine(golden.model(), rows=len(codes), frames=codes.shape[1], sampling=GREEDY)
    action_BTA = golden.given("action")
    engine.prefill(context, codes[:, :0], action_BTA[:, :0])
    first = golden.layout.context - 1
    ids = [engine.sample_frame(action_BTA[:, first + j], None).ids_BK for j in range(codes.shape[1])]
    codes_BFK = torch.stack(ids, 1) - golden.layout.vocab_context
    golden.expect("gen/action_tokens", layout_ids(context, codes_BFK, golden.layout))


@torch.no_grad()
def check_generation_without_actions(golden: Golden) -> None:
    """Here separators are drawn like any other id, so it is a plain loop over the language model."""
    llm, ids_BN = golden.model("transformer", reward="none").llm, golden.given("input_ids")
    total, cache = ids_BN.shape[1], cache_for(golden, ids_BN.shape[1])
    ids_BN = fed_BN = ids_BN[:, : golden.layout.prelude + 1]
    while ids_BN.shape[1] < total:
        fed_BN = llm.logits(llm(llm.embed(fed_BN), cache=cache)[:, -1:]).argmax(-1)
        ids_BN = torch.cat([ids_BN, fed_BN], 1)
    golden.expect("gen/free_tokens", ids_BN)


@torch.no_grad()
def check_rollout(golden: Golden) -> None:
    """The published control rollout: context codes from a stacked observation, then frames, rewards and pixels."""
    tokenizer, model, context_codes = observed(golden)
    actions_BHA, ids, rewards, frames = golden.given("rollout/actions"), [], [], []
    rows, horizon, _ = actions_BHA.shape
    engine = TokenEngine(model, rows=rows, frames=horizon, sampling=GREEDY)
    engine.prefill(context_codes, torch.empty(rows, 0, golden.layout.codes_future, dtype=torch.int64), None)
    for action_BA in actions_BHA.unbind(1):
        frame = engine.sample_frame(action_BA, None)
        discarded_B = model.llm.logits(frame.hidden_BD).argmax(-1)  # QUIRK 12: the published loop draws it
        ids.append(torch.cat([frame.ids_BK, discarded_B[:, None]], 1))
        rewards.append(model.reward_symlog(frame.hidden_BD))
        string = layout_ids(context_codes, (frame.ids_BK - golden.layout.vocab_context)[:, None], golden.layout)
        frames.append(tokenizer.detokenize(string, golden.layout.context)[:, -1].clamp(0, 1))
    dummy_first = torch.stack([torch.zeros(rows), *rewards], 1)
    golden.expect("rollout/tokens", torch.stack(ids, 1))
    golden.expect("rollout/rewards_symlog", dummy_first.unsqueeze(-1))
    golden.expect("rollout/rewards", (dummy_first.sign() * dummy_first.abs().expm1()).unsqueeze(-1))
    golden.expect("rollout/frames", torch.stack(frames, 1))


@torch.no_grad()
def check_sampled_rollout(golden: Golden) -> None:
    """Our filtered distribution under torch.multinomial is the published draw; given frames give the same rewards."""
    _, model, context_codes = observed(golden)
    layout, llm, actions_BHA = golden.layout, model.llm, golden.given("rollout/actions")
    rows, horizon, _ = actions_BHA.shape
    generator = torch.Generator().manual_seed(int(golden.given("rollout_sampled/seed")))
    cache, drawn, rewards = cache_for(golden, layout.length(horizon)), [], [torch.zeros(rows)]
    nothing = torch.empty(rows, 0, layout.codes_future, dtype=torch.int64)
    engine = TokenEngine(model, rows=rows, frames=horizon, sampling=PUBLISHED)
    engine.prefill(context_codes, nothing, None)
    llm(llm.embed(layout_ids(context_codes, nothing, layout)), cache=cache)
    for action_BA in actions_BHA.unbind(1):
        fed_BTD = (llm.embed(torch.full((rows,), layout.sdf)) + model.action_linear(action_BA)).unsqueeze(1)
        ids = []
        for _ in range(layout.codes_future + 1):
            logits_BV = llm.logits(llm(fed_BTD, cache=cache)[:, 0])
            ids.append(torch.multinomial(probabilities(logits_BV, PUBLISHED), 1, generator=generator))
            fed_BTD = llm.embed(ids[-1])
        drawn.append(torch.cat(ids, 1))
        rewards.append(model.reward(engine.force_frame(action_BA, drawn[-1][:, :-1]).hidden_BD))
    golden.expect("rollout_sampled/tokens", torch.stack(drawn, 1))
    golden.expect("rollout_sampled/rewards", torch.stack(rewards, 1).unsqueeze(-1))


def observed(golden: Golden):
    tokenizer = load_tokenizer(golden.directory / "tokenizer")
    context = golden.layout.context
    stacked = golden.given("rollout/obs_u8").float() / 255
    frames_BtCHW = stacked.unflatten(1, (3, 3))[:, -context:]
    context_codes, _ = tokenizer.tokenize(frames_BtCHW, torch.zeros_like(frames_BtCHW))
    return tokenizer, golden.model(), context_codes.flatten(1)


def cache_for(golden: Golden, positions: int) -> KVCache:
    config = golden.model().llm.config
    return KVCache(
        layers=config.layers,
        rows=2,
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
    check_generation_with_actions,
    check_generation_without_actions,
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


@pytest.mark.parametrize("name", ["micro", "tiny", "s", "base138m", "medium436m"])
def test_every_preset_is_a_transformer_config_with_exactly_its_fields(name):
    assert preset(name).hidden % preset(name).heads == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_any_float_type_load_as_float32_without_rotary_buffers(tmp_path, dtype):
    weights = load_file(DATA / "set_b_ctx1/transformer/model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({name: value.to(dtype) for name, value in {**weights, **extra}.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((DATA / "set_b_ctx1/transformer/config.json").read_text())
    model = load(tmp_path, SETS["set_b_ctx1"], 3, no_heads())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    wanted = weights["lm_head.weight"].to(dtype).float()
    assert torch.equal(model.llm.lm_head.weight, wanted)


def test_a_file_that_does_not_fit_is_explained_by_a_table():
    layout = TokenLayout(context=1, vocab_context=128, vocab_future=64)
    with pytest.raises(ValueError, match=r"llm\.lm_head\.weight +\(226, 64\) +\(194, 64\)"):
        load(DATA / "set_b_ctx1/transformer_action", layout, 3, no_heads())
    with pytest.raises(ValueError, match=r"action_linear\.weight +\(64, 3\) +\(64, 7\)"):
        load(DATA / "set_b_ctx1/transformer_action", SETS["set_b_ctx1"], 7, no_heads())
    with pytest.raises(ValueError, match=r"reward_linear\.weight +\(1, 64\) +unknown"):
        load(DATA / "set_b_ctx1/transformer_action", SETS["set_b_ctx1"], 3, no_heads())


def test_what_cannot_be_read_is_named(tmp_path):
    layout, source = SETS["set_b_ctx1"], DATA / "set_b_ctx1/transformer"
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        load(tmp_path, layout, 3, no_heads())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        load(tmp_path, layout, 3, no_heads())
    for change, message in (
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling must be None"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            load(tmp_path, layout, 3, no_heads())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks hidden_size"):
        load(tmp_path, layout, 3, no_heads())
