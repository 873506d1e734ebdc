"""Engines of one model: one set of weights, states known without a look at them, copies that are read once."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.twins.test_engine import ACTIONS, FRAMES, GREEDY, LAYOUT, SAMPLED, make_model, make_start
from worldmodel.rollout import TokenEngine, fused
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.pool import ENGINES, EnginePool


def test_a_state_is_known_by_its_tensor_without_a_look_at_it_until_somebody_writes_to_it():
    model, generator = make_model(), torch.Generator().manual_seed(4)
    engine = TokenEngine(model, rows=3, frames=FRAMES, sampling=GREEDY)
    frame_1 = engine.prefill(*make_start(3, 1, torch.float32, generator))
    frame_2 = engine.sample_frame(torch.zeros(3, ACTIONS), None)
    assert (engine.issued(frame_1.tickets_B1), engine.issued(frame_2.tickets_B1)) == (1, 2)
    assert engine.issued(frame_2.tickets_B1.clone()) is None and engine.issued(frame_2.tickets_B1[:]) is None
    frame_2.tickets_B1[:] = frame_2.tickets_B1.flip(0)
    assert engine.issued(frame_2.tickets_B1) is None and not engine.resident(frame_2.tickets_B1, 2)
    assert engine.issued(frame_1.tickets_B1) == 1
    with torch.no_grad():
        model.action_linear.weight.mul_(1.1)
    assert engine.issued(frame_1.tickets_B1) is None


def test_copies_of_a_start_go_on_as_if_each_had_been_read(monkeypatch):
    model, generator = make_model(torch.float64), torch.Generator().manual_seed(5)
    start = make_start(2, 2, torch.float64, generator)
    action = torch.randn(6, ACTIONS, generator=generator, dtype=torch.float64)
    pool = EnginePool(model, frames=FRAMES, sampling=GREEDY)
    wanted = (
        pool.engine(6).prefill(*(x.repeat_interleave(3, 0) for x in start)),
        pool.engine(6).sample_frame(action, None),
    )
    read = []
    advance = KVCache.advance
    monkeypatch.setattr(KVCache, "advance", lambda self, positions: (read.append(positions), advance(self, positions)))
    copied = pool.engine(6).prefill(*start, copies=3), pool.engine(6).sample_frame(action, None)
    one = pool.engine(2).prefill(*start)
    longer = pool.engine(2).sample_frame(action[:2], None)
    tickets = pool.engine(6).fork(pool.engine(2), 2, 3)
    forked = pool.engine(6).sample_frame(action, None)
    assert read == 2 * [LAYOUT.length(2), 1, 1, 1, 1] + [1, 1, 1, 1], "six rows are never read"
    assert pool.engine(6).issued(tickets) == 2 and tickets.shape == (6, 1)
    assert pool.engine(2).issued(longer.tickets_B1) == 3, "what is forked stays"
    torch.testing.assert_close(copied[0].hidden_BD, wanted[0].hidden_BD, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.hidden_BD.repeat_interleave(3, 0), wanted[0].hidden_BD, atol=1e-12, rtol=0)
    for found in (copied[1], forked):
        assert torch.equal(found.ids_BK, wanted[1].ids_BK)
        torch.testing.assert_close(found.hidden_BD, wanted[1].hidden_BD, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="10 rows do not fit an engine made for 8"):
        pool.engine(6).fork(pool.engine(2), 2, 5)
    with pytest.raises(ValueError, match="cannot fork 4 future frames: 3 are held"):
        pool.engine(6).fork(pool.engine(2), 4, 3)


def pointers(pool: EnginePool) -> list[int]:
    weights = pool._weights
    return [x.data_ptr() for x in (*itertools.chain(*weights.blocks), weights.embedding, weights.head)]


@pytest.mark.parametrize("composed", [False, True])
def test_all_sizes_share_one_set_of_weights_that_is_refreshed_in_place(monkeypatch, composed):
    laid: list[object] = []
    monkeypatch.setattr(
        fused, "fuse", lambda block, dtype, fuse=fused.fuse: (laid.append(block), fuse(block, dtype))[1]
    )
    features = torch.rand(LAYOUT.vocab, 6, generator=torch.Generator().manual_seed(1)) if composed else None
    model, generator = make_model(torch.float64, features=features), torch.Generator().manual_seed(6)
    pool = EnginePool(model, frames=FRAMES, sampling=SAMPLED)
    starts = {rows: make_start(rows, 1, torch.float64, generator) for rows in range(1, 40)}
    for rows, start in starts.items():
        pool.engine(rows).prefill(*start)
    assert len(laid) == 3, "each of three layers once"
    before = pointers(pool)
    for name, parameter in model.named_parameters():
        if name.startswith("reward_linear"):
            continue
        tickets = pool.engine(5).prefill(*starts[5]).tickets_B1
        hidden = pool.engine(5).force_frame(starts[5][2][:, 0], starts[5][1][:, 0]).hidden_BD
        logits = pool._weights.logits(hidden)
        with torch.no_grad():
            parameter.mul_(1.1)
        assert pool.engine(5).issued(tickets) is None, name
        pool.engine(7).prefill(*starts[7])
        assert pool.engine(5).issued(tickets) is None, "another size laid them out"
        pool.engine(5).prefill(*starts[5])
        after = pool.engine(5).force_frame(starts[5][2][:, 0], starts[5][1][:, 0]).hidden_BD
        assert not torch.allclose(pool._weights.logits(after), logits, rtol=1e-6), name
        assert pointers(pool) == before, name


def test_the_size_that_was_not_used_for_longest_goes():
    model, generator = make_model(), torch.Generator().manual_seed(7)
    pool, acting = EnginePool(model, frames=FRAMES, sampling=GREEDY), make_start(1, 1, torch.float32, generator)
    tickets = pool.engine(1).prefill(*acting).tickets_B1
    for power in range(1, ENGINES + 4):
        assert pool.engine(2**power).issued(tickets) is None
        assert pool.engine(1).issued(tickets) == 1, "used all the time"
    assert pool.engine(2 ** (ENGINES + 3)) is pool.engine(2 ** (ENGINES + 3) - 1), "the same bucket"
