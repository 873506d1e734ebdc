"""Rows of one start share its keys and values: the same dreams as from copies, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.twins.test_engine import ACTIONS, FRAMES, GREEDY, LAYOUT, make_model, make_start
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.pool import EnginePool, kv_bytes
from worldmodel.sequence import string_of_ids
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig

ROWS = 24
DECODINGS = [AUTOREGRESSIVE, DecodingConfig(kind="masked", passes=2)]


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: d.kind)
@pytest.mark.parametrize("action", ["slot", "frame"])
@pytest.mark.parametrize("seed", range(2))
def test_shared_starts_dream_what_copies_of_them_dream(decoding: DecodingConfig, action: str, seed: int) -> None:
    """Forks, forks of forks, imagined and given frames and rewinds (before a fork too), in any order."""
    model, rng = make_model(torch.float64, seed=seed, action=action, decoding=decoding), np.random.default_rng(seed)
    generator, copied = torch.Generator().manual_seed(seed), EnginePool(model, frames=FRAMES, sampling=GREEDY)
    shared = EnginePool(model, frames=FRAMES, sampling=GREEDY)
    rows, frames, state, nested = 0, 0, (torch.empty(0),) * 3, 0
    for _ in range(60):
        copies = int(rng.integers(2, 5))
        kind = rng.choice(["start", "fork", "fork", "rewind", "sample", "sample", "force"])
        if rows == 0 or kind == "start" or (kind == "fork" and rows * copies > ROWS):
            state = make_start(int(rng.integers(1, 4)), int(rng.integers(FRAMES)), torch.float64, generator)
            shared.engine(len(state[1]) * copies).prefill(*state, copies=copies)
            rows, frames, nested = len(state[1]) * copies, state[1].shape[1], 0
            state = tuple(x.repeat_interleave(copies, 0) for x in state)
        elif kind == "fork" and shared.engine(rows) is not shared.engine(rows * copies):
            shared.engine(rows * copies).fork(shared.engine(rows), frames, copies)
            rows, nested = rows * copies, nested + 1
            state = tuple(x.repeat_interleave(copies, 0) for x in state)
        elif kind == "rewind":
            frames = int(rng.integers(frames + 1))
            shared.engine(rows).rewind(frames)
            state = (state[0], state[1][:, :frames], state[2][:, :frames])
        elif frames < FRAMES:
            action_BA = torch.randn(rows, ACTIONS, generator=generator, dtype=torch.float64)
            copied.engine(rows).prefill(*state)
            if kind == "force":
                ids_BK = make_start(rows, 1, torch.float64, generator)[1][:, 0]
                found, wanted = (pool.engine(rows).force_frame(action_BA, ids_BK) for pool in (shared, copied))
            else:
                found, wanted = (pool.engine(rows).sample_frame(action_BA, None) for pool in (shared, copied))
            assert torch.equal(found.ids_BK, wanted.ids_BK)
            torch.testing.assert_close(found.hidden_BD, wanted.hidden_BD, atol=1e-12, rtol=0)
            state = (
                state[0],
                torch.cat([state[1], found.ids_BK[:, None]], 1),
                torch.cat([state[2], action_BA[:, None]], 1),
            )
            exact_BND = model.hidden_states(string_of_ids(state[0], state[1], LAYOUT), state[2])
            torch.testing.assert_close(found.hidden_BD, exact_BND[:, -1], atol=1e-12, rtol=0)
            frames += 1


def test_a_start_is_held_once_and_its_rows_hold_what_is_their_own() -> None:
    model, generator = make_model(), torch.Generator().manual_seed(1)
    start, a_position = (
        make_start(2, 1, torch.float32, generator),
        2 * 3 * 24 * 4,
    )  # keys and values, layers, width, bytes
    pool, most, read = EnginePool(model, frames=FRAMES, sampling=GREEDY), LAYOUT.length(FRAMES), LAYOUT.length(1)
    pool.engine(2).prefill(*start)
    pool.engine(8).fork(pool.engine(2), 1, 4)
    pool.engine(8).sample_frame(torch.zeros(8, ACTIONS), None)
    assert pool.engine(2).nbytes == a_position * 2 * most
    assert pool.engine(8).nbytes == a_position * (2 * read + 8 * (most - read))
    pool.engine(32).fork(pool.engine(8), 2, 4)
    assert pool.engine(32).nbytes == a_position * (2 * read + 32 * (most - read)), (
        "forks of forks share the first start"
    )
    again = EnginePool(model, frames=FRAMES, sampling=GREEDY)
    again.engine(32).prefill(*start, copies=16)
    again.engine(32).sample_frame(torch.zeros(32, ACTIONS), None)
    assert again.engine(32).nbytes == pool.engine(32).nbytes
    again.engine(32).prefill(*make_start(32, 1, torch.float32, generator))
    assert again.engine(32).nbytes == a_position * 32 * most, "what shares nothing holds all of its own"


def test_what_a_start_holds_does_not_change_when_its_engine_goes_on() -> None:
    model, generator = make_model(torch.float64), torch.Generator().manual_seed(2)
    start, other = (make_start(2, 1, torch.float64, generator) for _ in range(2))
    action_BA = torch.randn(6, ACTIONS, generator=generator, dtype=torch.float64)
    found = []
    for disturbed in (False, True):
        pool = EnginePool(model, frames=FRAMES, sampling=GREEDY)
        pool.engine(2).prefill(*start)
        pool.engine(6).fork(pool.engine(2), 1, 3)
        if disturbed:
            pool.engine(2).prefill(*other)
        found.append(pool.engine(6).sample_frame(action_BA, None).hidden_BD)
    assert torch.equal(*found)


def test_a_cache_that_is_full_says_so() -> None:
    cache = KVCache(layers=1, rows=4, heads=1, positions=3, channels=2, dtype=torch.float32, device=torch.device("cpu"))
    small = cache.empty(rows=1, positions=2)

    def written(to: KVCache, rows: int, positions: int) -> Tensor:
        k_BHNC, _ = to.extend(0, *torch.ones(2, rows, 1, positions, 2))
        to.advance(positions)
        return k_BHNC

    assert cache.nbytes == 0, "nothing is allocated yet"
    written(small, 1, 2)
    cache.take(small, rows=1, copies=4, positions=2)
    assert cache.position == 2 and written(cache, 4, 1).shape == (4, 1, 1, 2)
    with pytest.raises(ValueError, match="4 rows of 4 positions do not fit a cache of 4 rows of 3 positions"):
        written(cache, 4, 1)


@pytest.mark.parametrize("copies", [1, 16])
def test_the_formula_counts_what_an_engine_takes(copies: int) -> None:
    model, rows, frames = make_model(), 80, FRAMES
    start = make_start(rows // copies, 1, torch.float32, torch.Generator().manual_seed(3))
    engine = EnginePool(model, frames=frames, sampling=GREEDY).engine(rows)
    engine.prefill(*start, copies=copies)
    engine.sample_frame(torch.zeros(rows, ACTIONS), None)
    forks = {"starts": rows // copies, "shared": 1} if copies > 1 else {}
    assert kv_bytes(model.llm.config, LAYOUT, rows=rows, frames=frames, **forks) == engine.nbytes
