"""Frames from passes of queries: the engine with its cache against the pass that trains, and what such frames are."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.rollout import main as rollout_benchmark
from tests.twins.test_engine import ACTIONS, FRAMES, GREEDY, LAYOUT, ROWS, SAMPLED, make_model, make_start
from worldmodel.layout import TokenLayout
from worldmodel.microbatch import RowNoise
from worldmodel.rollout import TokenEngine
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.passes import draw_in_passes
from worldmodel.rollout.pool import EnginePool
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.sequence import string_of_ids
from worldmodel.transformer import TokenModel
from worldmodel.transformer.decoding import DecodingConfig, sight

K = LAYOUT.codes_future
ATOL = {torch.float64: 1e-12, torch.float32: 5e-5}
DECODINGS = {
    "parallel": DecodingConfig(kind="parallel", passes=None),
    "masked 2": DecodingConfig(kind="masked", passes=2),
    "masked 3": DecodingConfig(kind="masked", passes=3),
}
decodings = pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)


@torch.no_grad()
def plain_frame(
    model: TokenModel,
    start: tuple[Tensor, Tensor, Tensor],
    forced_BK: Tensor | None,
    sampling: SamplingConfig,
    uniform_SB: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The frame behind `start` without any cache: every pass reads the whole string, as in training."""
    context, ids_BFK, actions_BFA = start
    frame, first, end = ids_BFK.shape[1], 0, model.layout.vocab
    if sampling.codes_only:
        first, end = model.layout.vocab_context, model.layout.scf

    def string(last_BK: Tensor) -> Tensor:
        return string_of_ids(context, torch.cat([ids_BFK, last_BK[:, None]], 1), model.layout)

    def guess(drawn_BK: Tensor, known_BK: Tensor) -> Tensor:
        known_BFK = known_BK[:, None].expand(-1, frame + 1, -1)
        return model.predicting(string(first + drawn_BK), actions_BFA, known_BFK=known_BFK, first=frame)[1][:, 0]

    if forced_BK is None:
        forced_BK = first + draw_in_passes(
            guess, lambda hidden: model.llm.logits(hidden)[..., first:end], ids_BFK.new_zeros(len(context), K),
            draws=model.draws, sampling=sampling, uniform_SB=uniform_SB,
        )  # fmt: skip
    return forced_BK, model.hidden_states(string(forced_BK), actions_BFA)[:, -1]


@decodings
@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize(("action", "sampling"), [("slot", GREEDY), ("frame", SAMPLED), ("slot", SAMPLED)])
def test_any_use_of_the_engine_agrees_with_reading_everything_anew(decoding, dtype, action, sampling):
    """Random prompts, imagined and given frames, rewinds, forks and row permutations, in any order."""
    model, rng = make_model(dtype, action=action, decoding=decoding), np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    pool = EnginePool(model, frames=FRAMES, sampling=sampling)
    state = make_start(2, 1, dtype, generator)
    engine = pool.engine(2)
    engine.prefill(*state)
    for _ in range(25):
        rows, frames = len(state[0]), state[1].shape[1]
        kind = rng.choice(["rewind", "permute", "fork", "sample", "sample", "force"])
        if kind == "rewind" or frames == FRAMES:
            kept = int(rng.integers(frames + 1))
            engine.rewind(kept)
            state = (state[0], state[1][:, :kept], state[2][:, :kept])
        elif kind == "permute":
            order = torch.from_numpy(rng.integers(rows, size=int(rng.integers(1, ROWS + 1))))
            state = tuple(x[order] for x in state)
            engine = pool.engine(len(order))
            engine.prefill(*state)
        elif kind == "fork" and rows <= 3:
            engine = pool.engine(2 * rows)
            if engine is pool.engine(rows):  # the same bucket
                engine.prefill(*state, copies=2)
            else:
                engine.fork(pool.engine(rows), frames, 2)
            state = tuple(x.repeat_interleave(2, 0) for x in state)
        else:
            action_BA = torch.randn(rows, ACTIONS, generator=generator, dtype=dtype)
            forced = make_start(rows, 1, dtype, generator)[1][:, 0] if kind == "force" else None
            numbers = None if sampling is GREEDY else engine.uniform(generator)
            state = (*state[:2], torch.cat([state[2], action_BA[:, None]], 1))
            wanted_ids, wanted_hidden = plain_frame(model, state, forced, sampling, numbers)
            made = engine.sample_frame(action_BA, numbers) if forced is None else engine.force_frame(action_BA, forced)
            assert torch.equal(made.ids_BK, wanted_ids)
            torch.testing.assert_close(made.hidden_BD, wanted_hidden, atol=ATOL[dtype], rtol=0)
            state = (state[0], torch.cat([state[1], made.ids_BK[:, None]], 1), state[2])


@decodings
def test_predicting_hidden_states_are_those_of_the_engine_for_all_frames_at_once(decoding):
    """One training pass over the whole clip, every frame with codes known of its own, equals frame by frame.

    The last block leaves the context's output away; what is left is what a pass of all positions gives.
    """
    model, generator = make_model(torch.float64, decoding=decoding, action="frame"), torch.Generator().manual_seed(3)
    context, ids_BFK, actions = make_start(5, FRAMES, torch.float64, generator)
    known_BFK = torch.rand(ids_BFK.shape, generator=generator) < 0.5
    string = string_of_ids(context, ids_BFK, LAYOUT)
    hidden, predicting = model.predicting(string, actions, known_BFK=known_BFK)
    whole = model.hidden_states(string, actions)[:, LAYOUT.prelude :]
    torch.testing.assert_close(hidden, whole, atol=1e-12, rtol=0)
    unasked, before = model.predicting(string, actions, known_BFK=None)
    torch.testing.assert_close(unasked, whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(before, whole.unflatten(1, (FRAMES, LAYOUT.stride))[:, :, :-1], atol=1e-12, rtol=0)
    for frame in range(FRAMES):
        shorter = string_of_ids(context, ids_BFK[:, : frame + 1], LAYOUT)
        alone = model.predicting(shorter, actions[:, : frame + 1], known_BFK=known_BFK[:, : frame + 1], first=frame)[1]
        torch.testing.assert_close(predicting[:, frame], alone[:, 0], atol=1e-12, rtol=0)


def test_a_query_sees_the_past_and_what_it_is_shown_and_the_string_sees_no_query():
    model, generator = make_model(torch.float64, decoding=DECODINGS["masked 2"]), torch.Generator().manual_seed(4)
    context, ids_BFK, actions = make_start(1, FRAMES, torch.float64, generator)
    known_BFK = torch.zeros(1, FRAMES, K, dtype=torch.bool)
    known_BFK[:, :, 1] = True

    def read(ids: Tensor, known: Tensor, acted: Tensor) -> tuple[Tensor, Tensor]:
        return model.predicting(string_of_ids(context, ids, LAYOUT), acted, known_BFK=known)

    hidden, predicting = read(ids_BFK, known_BFK, actions)
    for frame, place in itertools.product(range(FRAMES), range(K)):
        other = ids_BFK.clone()
        other[:, frame, place] = LAYOUT.vocab_context + (other[:, frame, place] - LAYOUT.vocab_context + 1) % 13
        moved = (read(other, known_BFK, actions)[1] != predicting).any(-1)[0]  # [F, K]
        assert moved[frame + 1 :].all() and not moved[:frame].any()
        assert moved[frame].all() if place == 1 else not moved[frame].any()
    shifted = actions.clone()
    shifted[:, 1] += 1
    moved = (read(ids_BFK, known_BFK, shifted)[1] != predicting).any(-1)[0]
    assert moved[1:].all() and not moved[0].any()
    assert torch.equal(read(ids_BFK, ~known_BFK, actions)[0], hidden)


@pytest.mark.parametrize(("frames", "first"), [(1, 0), (4, 0), (4, 1), (3, 2)])
def test_what_is_seen_is_what_the_words_say(frames, first):
    there, end = sight(LAYOUT, frames, first=first, device=torch.device("cpu")), LAYOUT.length(frames)
    owners = [None] * end + [frame for frame in range(first, frames) for _ in range(K)]
    for row, column in itertools.product(range(len(owners)), repeat=2):
        if owners[row] is None:
            wanted = column <= row
        elif owners[column] is None:
            wanted = column < LAYOUT.sdf_position(owners[row])
        else:
            wanted = owners[row] == owners[column]
        assert bool(there.sees_MM[row, column]) is wanted, (row, column)
    places = [LAYOUT.sdf_position(frame) + place for frame in range(first, frames) for place in range(K)]
    assert there.positions_M.tolist() == [*range(end), *places]


@decodings
def test_a_frame_costs_its_passes_and_one_that_reads_it(monkeypatch, decoding):
    read = []
    advance = KVCache.advance
    monkeypatch.setattr(KVCache, "advance", lambda self, positions: (read.append(positions), advance(self, positions)))
    engine = TokenEngine(make_model(decoding=decoding), rows=3, frames=FRAMES, sampling=SAMPLED)
    generator = torch.Generator().manual_seed(0)
    engine.prefill(*make_start(3, 0, torch.float32, generator))
    for _ in range(FRAMES):  # the last one, too, fits into the cache
        engine.sample_frame(torch.zeros(3, ACTIONS), engine.uniform(generator))
    assert read == [LAYOUT.prelude, *FRAMES * [*(decoding.passes or 1) * [K], K + 1]]
    with pytest.raises(ValueError, match="does not fit an engine made for 4 frames"):
        engine.sample_frame(torch.zeros(3, ACTIONS), engine.uniform(generator))
    engine.rewind(0)
    with pytest.raises(ValueError, match="draws whole frames: separators must be forced"):
        engine.sample_string(3, None)


@decodings
def test_a_row_is_drawn_from_its_own_numbers_whoever_else_is_there(decoding):
    """Each of several processes draws for its rows what one process draws for them."""
    model = make_model(torch.float64, decoding=decoding)
    start = make_start(6, 1, torch.float64, torch.Generator().manual_seed(3))

    def made(rows: slice, noise: torch.Generator | RowNoise) -> Tensor:
        part = tuple(x[rows] for x in start)
        engine = TokenEngine(model, rows=6, frames=FRAMES, sampling=SAMPLED)
        engine.prefill(*part)
        action = torch.zeros(len(part[0]), ACTIONS, dtype=torch.float64)
        return engine.sample_frame(action, engine.uniform(noise)).ids_BK

    whole = made(slice(0, 6), torch.Generator().manual_seed(7))
    assert torch.equal(whole, made(slice(0, 6), torch.Generator().manual_seed(7)))
    assert not torch.equal(whole, made(slice(0, 6), torch.Generator().manual_seed(8)))
    for first in (0, 2, 4):
        own = RowNoise(generator=torch.Generator().manual_seed(7), first=first, rows=6)
        assert torch.equal(whole[first : first + 2], made(slice(first, first + 2), own))


def scripted(draws: tuple[int, ...], uniform_SB: Tensor | None, sampling: SamplingConfig, logits_BKV: Tensor):
    """Draws with fixed logits; what was known before each pass, and the ids."""
    seen: list[Tensor] = []

    def guess(ids_BK: Tensor, known_BK: Tensor) -> Tensor:
        seen.append(torch.where(known_BK, ids_BK, -1))
        return logits_BKV

    nothing = torch.zeros(logits_BKV.shape[:2], dtype=torch.int64)
    made = draw_in_passes(guess, lambda x: x, nothing, draws=draws, sampling=sampling, uniform_SB=uniform_SB)
    return seen, made


def test_the_surest_codes_come_first_where_nothing_is_drawn():
    logits_BKV = torch.zeros(1, 4, 5)
    for place, (code, surplus) in enumerate([(3, 1.0), (1, 4.0), (4, 2.0), (2, 3.0)]):
        logits_BKV[0, place, code] = surplus
    seen, made = scripted((1, 1, 2), None, GREEDY, logits_BKV)
    assert [x[0].tolist() for x in seen] == [[-1, -1, -1, -1], [-1, 1, -1, -1], [-1, 1, -1, 2]]
    assert made.tolist() == [[3, 1, 4, 2]]
    numbers = torch.rand(8, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scripted((1, 1, 2), numbers, GREEDY, logits_BKV)[1], made), "temperature 0 draws nothing"


def test_every_order_is_equally_likely_and_every_code_follows_its_distribution():
    rows, shape = 20_000, (4, 5)
    logits_BKV = torch.randn(*shape, generator=torch.Generator().manual_seed(2)).expand(rows, *shape)
    numbers = torch.rand(8, rows, generator=torch.Generator().manual_seed(3))
    warm = SamplingConfig(temperature=1.0, top_k=0, codes_only=True)
    seen, made = scripted((2, 2), numbers, warm, logits_BKV)
    first = (seen[1] >= 0).float()
    assert (first.sum(1) == 2).all()
    pairs = [(first[:, a] * first[:, b]).mean() for a, b in itertools.combinations(range(4), 2)]
    torch.testing.assert_close(torch.stack(pairs), torch.full((6,), 1 / 6), atol=0.015, rtol=0)
    for place, wanted_V in enumerate(logits_BKV[0].softmax(-1)):
        for chosen in (first[:, place] == 1, first[:, place] == 0):  # whenever it was drawn
            found_V = torch.bincount(made[chosen, place], minlength=5) / chosen.sum()
            torch.testing.assert_close(found_V, wanted_V, atol=0.025, rtol=0)


@pytest.mark.parametrize("codes", [1, 2, 4, 16, 64])
def test_the_passes_share_the_codes_and_the_last_ones_draw_most(codes):
    for passes in range(2, min(codes, 20) + 1):
        draws = DecodingConfig(kind="masked", passes=passes).draws(codes)
        assert len(draws) == passes and sum(draws) == codes and min(draws) >= 1
        assert draws[0] == min(draws)
    assert DECODINGS["parallel"].draws(codes) == (codes,)


def test_what_training_shows_is_what_the_passes_know():
    decoding, shape = DecodingConfig(kind="masked", passes=3), torch.Size((4000, 3, 16))
    assert decoding.draws(16) == (3, 5, 8)
    known = decoding.shown(shape, torch.Generator().manual_seed(0), device=torch.device("cpu"))
    counts = known.sum(-1).flatten()
    share = torch.bincount(counts, minlength=17) / len(counts)
    wanted = torch.zeros(17)
    wanted[torch.tensor([0, 3, 8])] = torch.tensor([3, 5, 8]) / 16
    torch.testing.assert_close(share, wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(known.float().mean((0, 1)), known.float().mean().expand(16), atol=0.02, rtol=0)
    one = DECODINGS["parallel"].shown(shape, torch.Generator(), device=torch.device("cpu"))
    assert one.shape == shape and not one.any()
    whole = RowNoise(generator=torch.Generator().manual_seed(0), first=0, rows=4000)
    part = RowNoise(generator=torch.Generator().manual_seed(0), first=1000, rows=4000)
    every = decoding.shown(shape, whole, device=torch.device("cpu"))
    assert torch.equal(every[1000:1009], decoding.shown(torch.Size((9, 3, 16)), part, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("kind", "passes", "message"),
    [
        ("sideways", None, "kind must be autoregressive, parallel or masked (got sideways)"),
        ("parallel", 1, "passes must be null with kind=parallel (got 1)"),
        ("autoregressive", 4, "passes must be null with kind=autoregressive (got 4)"),
        ("masked", None, "passes must be >= 2 with kind=masked (got None)"),
        ("masked", 1, "passes must be >= 2 with kind=masked (got 1)"),
        ("masked", 2.5, "passes must be >= 2 with kind=masked (got 2.5)"),
    ],
)
def test_what_is_no_decoding_is_refused(kind, passes, message):
    with pytest.raises(ValueError) as refused:
        DecodingConfig(kind=kind, passes=passes)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_more_passes_than_codes_are_refused_when_the_model_is_made():
    with pytest.raises(ValueError, match=r"passes must be <= 3, the codes of a frame \(got 4\)"):
        make_model(decoding=DecodingConfig(kind="masked", passes=4))


def test_an_autoregressive_model_has_nothing_of_the_queries():
    names = {name for name, _ in make_model().named_parameters()}
    more = {name for name, _ in make_model(decoding=DECODINGS["parallel"]).named_parameters()}
    assert more - names == {"frame_queries"}
    layout = TokenLayout(context=1, codes_context=2, codes_future=K, vocab_context=3, vocab_future=3)
    assert layout.vocab == 8, "no id was added to the vocabulary"


def test_the_benchmark_measures_every_decoding_that_is_asked_for(tmp_path, capsys):
    path = tmp_path / "rollout.json"
    options = ["sizes=micro", "rows=2", "horizon=2", "repeats=1", "codes=4,5", f"threads={torch.get_num_threads()}"]
    decodings = ["autoregressive", "parallel", "masked2"]
    assert rollout_benchmark([*options, f"decodings={','.join(decodings)}", f"json={path}"]) == 0
    found = json.loads(path.read_text())["rollouts"]
    assert [(r["codes"], r["decoding"]) for r in found] == list(itertools.product([4, 5], decodings))
    assert all(r["equal"] and r["frames_per_s"] > 0 for r in found)
    capsys.readouterr()
    for wrong, said in {
        "decodings=masked": "decodings must be some of",
        "decodings=sideways": "decodings must be some of",
        "decodings=masked5": "passes must be <= 4",
        "codes=0": "codes must be whole numbers >= 1",
    }.items():
        with pytest.raises(ValueError, match=said):
            rollout_benchmark([*options[:4], wrong])
    assert not capsys.readouterr().out, "nothing is measured before all is understood"
