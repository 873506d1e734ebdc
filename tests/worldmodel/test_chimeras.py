"""Frames whose two codes must disagree: a decoding that draws them at once makes frames that do not exist."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.rollout import SamplingConfig, TokenEngine
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision
from worldmodel.seeds import Seeds
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig

LAYOUT = TokenLayout(context=1, codes_context=1, codes_future=2, vocab_context=2, vocab_future=2)
TRANSFORMER = TransformerConfig(
    hidden=32, layers=2, heads=2, mlp=64, positions=32, rope_theta=1e4, norm_eps=1e-6, dropout=0.0
)
HEADS = HeadConfig(action="slot", reward="none", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
DECODINGS = {
    "autoregressive": AUTOREGRESSIVE,
    "parallel": DecodingConfig(kind="parallel", passes=None),
    "masked": DecodingConfig(kind="masked", passes=2),
}
FRAMES, UPDATES, ROWS = 4, 250, 2000


def world(rows: int, *, chance: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Context [B, 1], codes [B, F, 2] and actions [B, F, 1]: one code is a bit, the other one its opposite.

    The bit is thrown anew in every frame (`chance`), or flips where the action is 1 and stays where it is -1.
    """
    context_B1 = torch.randint(2, (rows, 1), generator=generator)
    action_BF1 = torch.randint(2, (rows, FRAMES, 1), generator=generator) * 2.0 - 1
    bit_BF = (context_B1 + (action_BF1[..., 0] > 0).long().cumsum(1)) % 2
    if chance:
        bit_BF = torch.randint(2, bit_BF.shape, generator=generator)
    return context_B1, torch.stack([bit_BF, 1 - bit_BF], -1), action_BF1


@cache
def trained(decoding: str, chance: bool) -> tuple[TokenModel, float]:
    """A tiny model of the world, and its loss at the end (mean of 20 updates)."""
    seeds = Seeds(0)
    model = TokenModel(
        TRANSFORMER, LAYOUT, condition_dim=1, heads=HEADS, feature_dim=0, continues=False,
        generator=seeds.torch("init"), decoding=DECODINGS[decoding],
    )  # fmt: skip
    optimizer, last = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for update in range(UPDATES):
        context, codes, actions = world(64, chance=chance, generator=seeds.torch("world", update))
        noise = seeds.torch("noise", update)
        known = torch.ones(codes.shape[:2], dtype=torch.bool)
        losses = model.losses(
            context, codes, actions_BFA=actions, features_BFE=None, reward_BF=torch.zeros(known.shape),
            reward_mask_BF=known, continue_BF=torch.ones(known.shape), num_observed=0, generator=noise,
            known_BFK=model.decoding.shown(codes.shape, noise, device=codes.device),
        )  # fmt: skip
        optimizer.zero_grad()
        losses["codes"].backward()
        optimizer.step()
        last.append(float(losses["codes"].detach()))
    return model.eval(), sum(last[-20:]) / 20


def imagined(model: TokenModel, *, chance: bool, precision: Precision = "float32") -> tuple[Tensor, Tensor]:
    """What is true, and what is drawn with the same actions, codes [B, F, 2]."""
    context, codes, actions = world(ROWS, chance=chance, generator=Seeds(1).torch("world"))
    sampling = SamplingConfig(temperature=1.0, top_k=0, codes_only=True)
    weights = laid_out(model, sampling, precision)
    engine = TokenEngine(model, rows=ROWS, frames=FRAMES, sampling=sampling, weights=weights)
    engine.prefill(context, codes.new_zeros(ROWS, 0, 2), actions[:, :0])
    drawn = [
        engine.sample_frame(actions[:, frame], engine.uniform(Seeds(1).torch("draw", frame))).ids_BK
        for frame in range(FRAMES)
    ]
    return codes, torch.stack(drawn, 1) - LAYOUT.vocab_context


@pytest.mark.parametrize(
    ("decoding", "low", "high"), [("autoregressive", 0.0, 0.01), ("masked", 0.0, 0.01), ("parallel", 0.45, 0.55)]
)
def test_codes_that_must_disagree_do_unless_they_are_drawn_at_once(decoding: str, low: float, high: float) -> None:
    made = imagined(trained(decoding, True)[0], chance=True)[1]
    assert low <= float((made[..., 0] == made[..., 1]).float().mean()) <= high
    ones = made[..., 0].float().mean(0)  # of each frame
    torch.testing.assert_close(ones, torch.full((FRAMES,), 0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize(("decoding", "wanted"), [("masked", math.log(2) / 2), ("parallel", math.log(2))])
def test_the_loss_is_the_nats_a_code_of_what_is_drawn(decoding: str, wanted: float) -> None:
    """A fair bit and its opposite are one bit in two codes; drawn at once they cost a bit each."""
    assert trained(decoding, True)[1] == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_every_decoding_reads_the_past_and_the_action(decoding: str) -> None:
    true, made = imagined(trained(decoding, False)[0], chance=False)
    assert float((made == true).all(-1).all(-1).float().mean()) > 0.97


@pytest.mark.parametrize("decoding", DECODINGS)
def test_rounded_products_draw_nearly_the_same_frames_and_no_more_chimeras(decoding: str) -> None:
    model = trained(decoding, True)[0]
    exact, rounded = (imagined(model, chance=True, precision=how)[1] for how in ("float32", "bfloat16"))
    assert float((exact[:, 0] == rounded[:, 0]).float().mean()) > 0.97, "the same numbers: later frames follow others"
    rates = [float((made[..., 0] == made[..., 1]).float().mean()) for made in (exact, rounded)]
    assert rates[1] == pytest.approx(rates[0], abs=0.02)
