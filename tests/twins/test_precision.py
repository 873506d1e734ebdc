"""Products in bfloat16: what is rounded, by how much, and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.twins.test_engine import ACTIONS, FRAMES, GREEDY, make_model, make_start
from worldmodel.rollout import TokenEngine
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision, product
from worldmodel.transformer import TokenModel
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig


def engine_of(model: TokenModel, precision: Precision) -> TokenEngine:
    return TokenEngine(model, rows=6, frames=FRAMES, sampling=GREEDY, weights=laid_out(model, GREEDY, precision))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("decoding", [AUTOREGRESSIVE, DecodingConfig(kind="masked", passes=2)], ids=lambda d: d.kind)
def test_hidden_states_are_off_by_about_a_percent_and_nothing_else_is_rounded(decoding: DecodingConfig) -> None:
    model, generator = make_model(decoding=decoding), torch.Generator().manual_seed(5)
    start, action = make_start(6, 2, torch.float32, generator), torch.randn(6, ACTIONS, generator=generator)
    exact, rounded = engine_of(model, "float32"), engine_of(model, "bfloat16")
    found, wanted = rounded.prefill(*start), exact.prefill(*start)
    assert found.hidden_BD.dtype == torch.float32 and 1e-4 < error(found.hidden_BD, wanted.hidden_BD) < 0.05
    drawn = exact.sample_frame(action, None)
    forced = rounded.force_frame(action, drawn.ids_BK)
    assert 1e-4 < error(forced.hidden_BD, drawn.hidden_BD) < 0.05
    assert rounded._cache is not None and rounded._cache.k_LBHNC.dtype == torch.float32
    for block in rounded._weights.blocks:
        assert {matrix.dtype for matrix in block} == {torch.bfloat16}
    assert rounded._weights.head.dtype == rounded._weights.embedding.dtype == torch.float32


def test_changed_weights_are_laid_out_anew() -> None:
    model, start = make_model(), make_start(6, 2, torch.float32, torch.Generator().manual_seed(6))
    engine = engine_of(model, "bfloat16")
    before = engine.prefill(*start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert engine.issued(before.tickets_B1) is None
    wanted = engine_of(model, "bfloat16").prefill(*start).hidden_BD
    assert torch.equal(engine.prefill(*start).hidden_BD, wanted)
    assert not torch.equal(before.hidden_BD, wanted)


def test_a_product_is_that_of_its_rounded_factors() -> None:
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(5, 32, generator=generator), torch.randn(7, 32, generator=generator)
    wanted = x.bfloat16().double() @ weight.bfloat16().double().T
    found = product(x, weight.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=0.05)
