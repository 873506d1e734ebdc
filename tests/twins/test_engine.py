"""The rollout engine against a twin that recomputes everything, and the promises of its cache."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.rollout import main as rollout_benchmark
from worldmodel.layout import TokenLayout
from worldmodel.rollout import Frame, SamplingConfig, TokenEngine
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.sampling import draw, probabilities
from worldmodel.sequence import string_of_ids
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig

LAYOUT = TokenLayout(context=2, codes_context=7, codes_future=3, vocab_context=11, vocab_future=13)
ACTIONS, FRAMES, ROWS = 5, 4, 6
GREEDY = SamplingConfig(temperature=0.0, top_k=0, codes_only=False)
SAMPLED = SamplingConfig(temperature=0.8, top_k=9, codes_only=True)
ATOL = {torch.float64: 1e-12, torch.float32: 1e-5}


def make_model(
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    action: str = "slot",
    features: Tensor | None = None,
    decoding: DecodingConfig = AUTOREGRESSIVE,
) -> TokenModel:
    """A random model in which every weight matters: norms and the action embedding are drawn too."""
    transformer = TransformerConfig(
        hidden=24, layers=3, heads=2, mlp=29, positions=64, rope_theta=1e4, norm_eps=1e-6, dropout=dropout
    )
    heads = HeadConfig(action=action, reward="scalar", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
    generator = torch.Generator().manual_seed(seed)
    model = TokenModel(
        transformer,
        LAYOUT,
        condition_dim=ACTIONS,
        heads=heads,
        feature_dim=0,
        continues=False,
        generator=generator,
        features_VJ=features,
        decoding=decoding,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.to(dtype)


def make_start(rows: int, frames: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Context codes, ids of the frames so far and the actions that led into them."""
    context = torch.randint(LAYOUT.vocab_context, (rows, 14), generator=generator)
    codes = torch.randint(LAYOUT.vocab_future, (rows, frames, 3), generator=generator)
    actions = torch.randn(rows, frames, ACTIONS, generator=generator, dtype=dtype)
    return context, codes + LAYOUT.vocab_context, actions


@torch.no_grad()
def slow_frame(model: TokenModel, context: Tensor, ids_BFK: Tensor, actions_BFA: Tensor, forced_BK: Tensor | None):
    """The next frame without any cache: ids (most likely ones unless forced) and hidden state."""
    layout = model.layout
    blank_BK = torch.zeros_like(context[:, : layout.codes_future]) if forced_BK is None else forced_BK
    string = string_of_ids(context, torch.cat([ids_BFK, blank_BK[:, None]], 1), layout)
    for position in range(layout.sdf_position(ids_BFK.shape[1]), string.shape[1] - 1) if forced_BK is None else ():
        string[:, position + 1] = model.llm.logits(model.hidden_states(string, actions_BFA)[:, position]).argmax(-1)
    return string[:, -layout.codes_future :], model.hidden_states(string, actions_BFA)[:, -1]


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("action", ["slot", "frame"])
@pytest.mark.parametrize("seed", range(3))
def test_any_use_of_the_engine_agrees_with_recomputing_everything(dtype, action, seed):
    """Random prompts, imagined and given frames, rewinds and row permutations, in any order."""
    model, rng = make_model(dtype, seed=seed, action=action), np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    engine = TokenEngine(model, rows=ROWS, frames=FRAMES, sampling=GREEDY)
    state = None
    for _ in range(40):
        frames = -1 if state is None else state[1].shape[1]
        kind = rng.choice(["start", "rewind", "permute", "sample", "sample", "force"])
        if frames < 0 or kind == "start":
            state = make_start(int(rng.integers(1, ROWS + 1)), int(rng.integers(FRAMES + 1)), dtype, generator)
            found = engine.prefill(*state)
        elif kind == "rewind":
            kept = int(rng.integers(frames + 1))
            engine.rewind(kept)
            state = (state[0], state[1][:, :kept], state[2][:, :kept])
            continue
        elif kind == "permute":
            order = torch.from_numpy(rng.integers(len(state[0]), size=int(rng.integers(1, ROWS + 1))))
            state = tuple(x[order] for x in state)
            found = engine.prefill(*state)
        elif frames == FRAMES:
            with pytest.raises(ValueError, match=f"frame {FRAMES + 1} does not fit an engine made for {FRAMES} frames"):
                engine.sample_frame(torch.zeros(len(state[0]), ACTIONS, dtype=dtype), None)
            continue
        else:
            action = torch.randn(len(state[0]), ACTIONS, generator=generator, dtype=dtype)
            forced = make_start(len(action), 1, dtype, generator)[1][:, 0] if kind == "force" else None
            state_and_action = (state[0], state[1], torch.cat([state[2], action[:, None]], 1))
            wanted_ids, wanted_hidden = slow_frame(model, *state_and_action, forced)
            found = engine.sample_frame(action, None) if forced is None else engine.force_frame(action, forced)
            assert torch.equal(found.ids_BK, wanted_ids)
            torch.testing.assert_close(found.hidden_BD, wanted_hidden, atol=ATOL[dtype], rtol=0)
            state = (state[0], torch.cat([state[1], found.ids_BK[:, None]], 1), state_and_action[2])
            continue
        wanted_hidden = model.hidden_states(string_of_ids(state[0], state[1], LAYOUT), state[2])[:, -1]
        torch.testing.assert_close(found.hidden_BD, wanted_hidden, atol=ATOL[dtype], rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_reading_in_chunks_with_a_cache_equals_reading_at_once(seed):
    llm, rng = make_model(torch.float64, seed=seed).llm, np.random.default_rng(seed)
    x_BTD = torch.randn(3, 29, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    cache = KVCache(
        layers=3, rows=3, heads=2, positions=29, channels=12, dtype=torch.float64, device=torch.device("cpu")
    )
    cuts = [0, *sorted(rng.choice(np.arange(1, 29), size=5, replace=False).tolist()), 29]
    parts = [llm(x_BTD[:, a:b], cache=cache) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1), llm(x_BTD), atol=1e-12, rtol=0)


def test_what_comes_later_changes_nothing_before():
    model, generator = make_model(torch.float64), torch.Generator().manual_seed(1)
    context, ids, actions = make_start(3, FRAMES, torch.float64, generator)
    before = model.hidden_states(string_of_ids(context, ids, LAYOUT), actions)
    for frame in range(FRAMES):
        other_ids, other_actions = ids.clone(), actions.clone()
        other_ids[:, frame:] = LAYOUT.vocab_context + (other_ids[:, frame:] - LAYOUT.vocab_context + 1) % 13
        other_actions[:, frame:] += 1
        after = model.hidden_states(string_of_ids(context, other_ids, LAYOUT), other_actions)
        first = LAYOUT.sdf_position(frame)
        assert torch.equal(before[:, :first], after[:, :first])
        assert not torch.isclose(before[:, first:], after[:, first:]).all(-1).any()


def test_forcing_the_sampled_ids_gives_the_sampled_frame():
    model, generator = make_model(torch.float64), torch.Generator().manual_seed(2)
    start = make_start(5, 1, torch.float64, generator)
    action = torch.randn(5, ACTIONS, generator=generator, dtype=torch.float64)
    engine = TokenEngine(model, rows=5, frames=3, sampling=SAMPLED)
    engine.prefill(*start)
    sampled = engine.sample_frame(action, engine.uniform(generator))
    engine.rewind(1)
    forced = engine.force_frame(action, sampled.ids_BK)
    assert torch.equal(forced.ids_BK, sampled.ids_BK)
    torch.testing.assert_close(forced.hidden_BD, sampled.hidden_BD, atol=1e-12, rtol=0)


def imagine(seed: int, sampling: SamplingConfig, model: TokenModel) -> list[Frame]:
    start = make_start(6, 0, torch.float32, torch.Generator().manual_seed(3))
    engine = TokenEngine(model, rows=6, frames=FRAMES, sampling=sampling)
    engine.prefill(*start)
    generator = torch.Generator().manual_seed(seed)
    return [engine.sample_frame(torch.zeros(6, ACTIONS), engine.uniform(generator)) for _ in range(FRAMES)]


def test_the_generator_alone_decides_the_sample():
    model = make_model()
    state = torch.get_rng_state()
    first, again, other = (imagine(seed, SAMPLED, model) for seed in (7, 7, 8))
    assert all(
        torch.equal(a.ids_BK, b.ids_BK) and torch.equal(a.hidden_BD, b.hidden_BD)
        for a, b in zip(first, again, strict=True)
    )
    assert any(not torch.equal(a.ids_BK, b.ids_BK) for a, b in zip(first, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_codes_only_draws_nothing_but_future_codes():
    model = make_model()
    hot = SamplingConfig(temperature=50.0, top_k=0, codes_only=True)
    everything = SamplingConfig(temperature=50.0, top_k=0, codes_only=False)
    ids = torch.stack([frame.ids_BK for seed in range(9) for frame in imagine(seed, hot, model)])
    assert set(ids.unique().tolist()) == set(range(LAYOUT.vocab_context, LAYOUT.scf))
    ids = torch.stack([frame.ids_BK for seed in range(9) for frame in imagine(seed, everything, model)])
    assert ids.min() < LAYOUT.vocab_context and ids.max() >= LAYOUT.scf


def test_top_k_keeps_ties_and_draws_follow_the_distribution():
    logits_BV = torch.tensor([[2.0, 0.0, 1.0, 1.0, -3.0, 1.0, 0.5]])
    sampling = SamplingConfig(temperature=0.5, top_k=2, codes_only=False)
    wanted_V = torch.tensor([4.0, -torch.inf, 2.0, 2.0, -torch.inf, 2.0, -torch.inf]).softmax(0)
    torch.testing.assert_close(probabilities(logits_BV, sampling)[0], wanted_V)
    drawn = draw(logits_BV.expand(20_000, -1), sampling, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    frequency_V = torch.bincount(drawn, minlength=7) / 20_000
    assert frequency_V[wanted_V == 0].sum() == 0
    # five standard deviations of a frequency
    assert ((frequency_V - wanted_V).abs() <= 5 * (wanted_V * (1 - wanted_V) / 20_000).sqrt()).all()


def test_tickets_name_states_and_nothing_else():
    model, generator = make_model(), torch.Generator().manual_seed(4)
    start = make_start(3, 1, torch.float32, generator)
    engine, other = (TokenEngine(model, rows=3, frames=FRAMES, sampling=GREEDY) for _ in range(2))
    assert not engine.resident(torch.zeros(3, 1, dtype=torch.int64), 0)
    frame_1 = engine.prefill(*start)
    frame_2 = engine.sample_frame(torch.zeros(3, ACTIONS), None)
    other_1 = other.prefill(*start)
    named = torch.cat([frame_1.tickets_B1, frame_2.tickets_B1, other_1.tickets_B1])
    assert named.dtype == torch.int64 and len(named.unique()) == 9
    assert engine.resident(frame_1.tickets_B1, 1) and engine.resident(frame_2.tickets_B1, 2)
    assert not engine.resident(frame_2.tickets_B1, 1)
    assert not engine.resident(frame_2.tickets_B1.flip(0), 2)
    assert not engine.resident(frame_2.tickets_B1[:2], 2)
    assert not engine.resident(other_1.tickets_B1, 1)
    engine.rewind(1)
    assert engine.resident(frame_1.tickets_B1, 1) and not engine.resident(frame_2.tickets_B1, 2)
    rebuilt = engine.prefill(*start, tickets_B1=frame_2.tickets_B1)
    assert torch.equal(rebuilt.tickets_B1, frame_2.tickets_B1) and engine.resident(frame_2.tickets_B1, 1)
    engine.forget()
    assert not engine.resident(frame_2.tickets_B1, 1)
    with pytest.raises(ValueError, match="call prefill first"):
        engine.sample_frame(torch.zeros(3, ACTIONS), None)


@pytest.mark.parametrize("told", ["told", "untold"])
def test_changed_weights_change_the_imagination(told):
    model, generator = make_model(), torch.Generator().manual_seed(5)
    start = make_start(3, 1, torch.float32, generator)
    engine = TokenEngine(model, rows=3, frames=FRAMES, sampling=GREEDY)
    before = engine.prefill(*start)
    for name, parameter in model.named_parameters():
        if name.startswith("reward_linear") or name == "llm.lm_head.weight":
            continue
        with torch.no_grad():
            parameter.mul_(1.1)
        if told == "told":
            engine.forget()
        assert not engine.resident(before.tickets_B1, 1), name
        after = engine.prefill(*start)
        wanted = model.hidden_states(string_of_ids(*start[:2], LAYOUT), start[2])[:, -1]
        torch.testing.assert_close(after.hidden_BD, wanted, atol=1e-5, rtol=0)
        before = after


def test_dropout_is_never_active_and_the_mode_is_left_alone():
    model = make_model(dropout=0.5).train()
    start = make_start(3, 1, torch.float32, torch.Generator().manual_seed(6))
    engine = TokenEngine(model, rows=3, frames=FRAMES, sampling=GREEDY)
    engine.prefill(*start)
    found = engine.sample_frame(torch.ones(3, ACTIONS), None)
    assert model.training and all(module.training for module in model.modules())
    assert not found.hidden_BD.requires_grad
    model.eval()
    actions = torch.cat([start[2], torch.ones(3, 1, ACTIONS)], 1)
    ids, hidden = slow_frame(model, start[0], start[1], actions, None)
    assert torch.equal(found.ids_BK, ids)
    torch.testing.assert_close(found.hidden_BD, hidden, atol=1e-5, rtol=0)


def test_a_frame_costs_one_position_and_one_per_code(monkeypatch):
    read = []
    advance = KVCache.advance
    monkeypatch.setattr(KVCache, "advance", lambda self, positions: (read.append(positions), advance(self, positions)))
    engine = TokenEngine(make_model(), rows=3, frames=FRAMES, sampling=SAMPLED)
    generator = torch.Generator().manual_seed(0)
    start = make_start(3, 0, torch.float32, generator)
    engine.prefill(*start)
    frame = engine.sample_frame(torch.zeros(3, ACTIONS), engine.uniform(generator))
    engine.force_frame(torch.zeros(3, ACTIONS), frame.ids_BK)
    assert read == [LAYOUT.prelude, 1, 1, 1, 1, 4]


def test_what_does_not_fit_is_refused_with_the_numbers():
    model, generator = make_model(), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="13 frames need 67 positions, the transformer has 64: at most 12 frames fit"):
        TokenEngine(model, rows=3, frames=13, sampling=GREEDY)
    engine = TokenEngine(model, rows=3, frames=2, sampling=GREEDY)
    with pytest.raises(ValueError, match="5 rows do not fit an engine made for 3"):
        engine.prefill(*make_start(5, 0, torch.float32, generator))
    with pytest.raises(ValueError, match="4 frames do not fit an engine made for 2"):
        engine.prefill(*make_start(3, 4, torch.float32, generator))
    engine.prefill(*make_start(3, 1, torch.float32, generator))
    with pytest.raises(ValueError, match=r"action \(2, 5\) must be \(3, 5\)"):
        engine.sample_frame(torch.zeros(2, ACTIONS), None)
    with pytest.raises(ValueError, match=r"ids \(3, 2\) must be \(3, 3\)"):
        engine.force_frame(torch.zeros(3, ACTIONS), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot rewind to 2 future frames: 1 are held"):
        engine.rewind(2)
    for wrong in ({"temperature": -1.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplingConfig(**{"temperature": 1.0, "top_k": 0, "codes_only": True, **wrong})


def test_the_engine_imports_no_framework():
    program = "import sys, worldmodel.rollout.engine; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "worldmodel.rollout.engine" in loaded
    assert not {"tensordict", "torchrl", "hydra", "metaworld", "safetensors"} & set(loaded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_imagines_the_same_codes():
    model, generator = make_model(torch.float64), torch.Generator().manual_seed(9)
    start = make_start(5, 1, torch.float64, generator)
    action = torch.randn(5, ACTIONS, generator=generator, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        engine = TokenEngine(model.to(device), rows=5, frames=3, sampling=GREEDY)
        engine.prefill(*(x.to(device) for x in start))
        found.append(engine.sample_frame(action.to(device), None))
    assert torch.equal(found[0].ids_BK, found[1].ids_BK.cpu())
    torch.testing.assert_close(found[0].hidden_BD, found[1].hidden_BD.cpu(), atol=1e-10, rtol=0)


def test_the_benchmark_measures_finds_equal_codes_and_writes_them_down(tmp_path, capsys):
    path, threads = tmp_path / "rollout.json", torch.get_num_threads()
    options = ["sizes=micro", "rows=4", "horizon=2", "repeats=1", f"threads={threads}", f"json={path}"]
    assert rollout_benchmark([*options, "copies=2", "growth=rows,horizon,codes,copies"]) == 0
    found = json.loads(path.read_text())
    (result,) = found["rollouts"]
    assert result["equal"] and result["rows"] == 4 and result["horizon"] == 2 and result["engine_ms"] > 0
    assert 2 * 5 * 15 < result["launches"] < 2 * 5 * 50, "some dozens in each block of each of 5 passes"
    assert result["frame_gflop"] > 0 and result["frame_mb"] > 0 and found["bandwidth_gbs"] > 0
    assert [line["numbers"] for line in found["growth"]] == [[4, 8, 16], [2, 4, 8], [4, 8, 16], [2, 4, 8]]
    assert all(len(line["ms"]) == 3 and min(line["ms"]) > 0 for line in found["growth"])
    assert "micro ms by rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match="sizes must be some of"):
        rollout_benchmark(["sizes=huge"])
    with pytest.raises(ValueError, match="speed=1 is not understood"):
        rollout_benchmark(["speed=1"])
