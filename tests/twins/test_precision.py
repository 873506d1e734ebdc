"""Products in bfloat16 and in bytes: what is rounded, by how much, and what is not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mbrl.run.validate import precisions
from tests.twins.test_engine import ACTIONS, FRAMES, GREEDY, make_model, make_start
from worldmodel.rollout import TokenEngine
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision, multiplies_bytes, pack, product
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.sequence import string_of_ids
from worldmodel.transformer import TokenModel
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig

ERROR = {"bfloat16": 0.05, "int8": 0.1}
"""Root mean square of a hidden state's error, against that of the state."""
needs_bytes = pytest.mark.skipif(not multiplies_bytes("cpu"), reason="needs an x86 CPU with VNNI")
ROUNDED = ["bfloat16", pytest.param("int8", marks=needs_bytes)]


def engine_of(model: TokenModel, precision: Precision) -> TokenEngine:
    return TokenEngine(model, rows=6, frames=FRAMES, sampling=GREEDY, weights=laid_out(model, GREEDY, precision))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("decoding", [AUTOREGRESSIVE, DecodingConfig(kind="masked", passes=2)], ids=lambda d: d.kind)
def test_hidden_states_are_off_by_a_few_percent_and_nothing_else_is_rounded(
    precision: Precision, decoding: DecodingConfig
) -> None:
    model, generator = make_model(decoding=decoding), torch.Generator().manual_seed(5)
    start, action = make_start(6, 2, torch.float32, generator), torch.randn(6, ACTIONS, generator=generator)
    exact, rounded = engine_of(model, "float32"), engine_of(model, precision)
    found, wanted = rounded.prefill(*start), exact.prefill(*start)
    assert found.hidden_BD.dtype == torch.float32 and 1e-4 < error(found.hidden_BD, wanted.hidden_BD) < ERROR[precision]
    drawn = exact.sample_frame(action, None)
    forced = rounded.force_frame(action, drawn.ids_BK)
    assert 1e-4 < error(forced.hidden_BD, drawn.hidden_BD) < ERROR[precision]
    assert rounded._cache is not None and rounded._cache.k_LBHNC.dtype == torch.float32
    for block in rounded._weights.blocks:
        assert {getattr(matrix, "dtype", None) for matrix in block} == {
            torch.bfloat16 if precision == "bfloat16" else None
        }
    assert rounded._weights.head.dtype == rounded._weights.embedding.dtype == torch.float32


@pytest.mark.parametrize("precision", ROUNDED)
def test_changed_weights_are_laid_out_anew(precision: Precision) -> None:
    model, start = make_model(), make_start(6, 2, torch.float32, torch.Generator().manual_seed(6))
    engine = engine_of(model, precision)
    before = engine.prefill(*start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert engine.issued(before.tickets_B1) is None
    wanted = engine_of(model, precision).prefill(*start).hidden_BD
    assert torch.equal(engine.prefill(*start).hidden_BD, wanted)
    assert not torch.equal(before.hidden_BD, wanted)


def test_a_product_is_that_of_its_rounded_factors() -> None:
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(5, 32, generator=generator), torch.randn(7, 32, generator=generator)
    wanted = x.bfloat16().double() @ weight.bfloat16().double().T
    found = product(x, weight.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=0.05)


@needs_bytes
def test_a_product_of_bytes_is_that_of_whole_numbers_row_by_row() -> None:
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(2, 5, 32, generator=generator), torch.randn(7, 32, generator=generator)
    x[0, 1], x[1, 3, 4] = 0.0, math.nan
    packed = pack(weight, torch.qint8)
    step, scale = x.abs().amax(-1, keepdim=True) / 127, weight.abs().amax(1) / 127
    whole = (x / step).round().double() @ (weight / scale[:, None]).round().double().T
    found, broken = product(x, packed), torch.isnan(x).any(-1)
    assert found.dtype == torch.float32 and found[broken].isnan().all(), "what is no number stays none"
    torch.testing.assert_close(found[0, 1], torch.zeros(7))
    good = ~broken & (x != 0).any(-1)
    torch.testing.assert_close(found[good].double(), (whole * step * scale)[good], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(product(x[b : b + 1, t], packed)[0], found[b, t]) for b, t in good.nonzero().tolist())


@pytest.mark.parametrize("precision", ROUNDED)
def test_given_codes_are_as_likely_as_before_and_most_of_the_likeliest_ones_stay(precision: Precision) -> None:
    model, generator = make_model(), torch.Generator().manual_seed(8)
    context, ids_BFK, actions_BFA = make_start(6, FRAMES, torch.float32, generator)
    string_BN = string_of_ids(context, ids_BFK, model.layout)
    logits = {}
    for how in ("float32", precision):
        weights = laid_out(model, GREEDY, how)
        weights.refresh()
        config, positions = model.llm.config, string_BN.shape[1]
        cache = KVCache(
            layers=config.layers, rows=6, heads=config.heads, positions=positions,
            channels=config.hidden // config.heads, dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip
        with torch.no_grad():
            logits[how] = weights.logits(weights(model.embed(string_BN, actions_BFA), cache, keep=positions))[:, :-1]
    nats = {how: float(torch.nn.functional.cross_entropy(x.mT, string_BN[:, 1:])) for how, x in logits.items()}
    same = (logits["float32"].argmax(-1) == logits[precision].argmax(-1)).float().mean()
    assert nats["float32"] != nats[precision] and abs(nats["float32"] - nats[precision]) < 0.02
    assert same > 0.9


def test_bytes_are_refused_where_they_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not multiplies_bytes("cpu") and not multiplies_bytes("cuda")
    groups = {"worldmodel": SimpleNamespace(rollout_precision="int8"), "compute": SimpleNamespace(device="cpu")}
    assert list(precisions(groups)) == [
        "worldmodel.rollout_precision=int8 needs an x86 CPU with VNNI (got compute.device=cpu); set bfloat16"
    ]
    engine = engine_of(make_model(), "int8")
    with pytest.raises(
        ValueError, match=r"rollout_precision=int8 needs an x86 CPU with VNNI \(got cpu\); set bfloat16"
    ):
        engine.prefill(*make_start(6, 2, torch.float32, torch.Generator().manual_seed(6)))
