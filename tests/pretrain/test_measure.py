"""What a validation says of a transformer, whoever predicts its codes."""

from __future__ import annotations

import math

import pytest
import torch

from mbrl.pretrain import measure
from tests.worldmodel.test_ivideogpt import build, clip

DECODINGS = ["{kind:autoregressive}", "{kind:parallel}", "{kind:masked,passes:3}"]


@pytest.mark.parametrize("decoding", DECODINGS)
def test_an_untrained_model_knows_nothing_of_any_predicted_frame_and_chance_has_no_part(
    decoding: str,
) -> None:
    model = build(f"worldmodel.decoding={decoding}").eval()
    with torch.no_grad():
        model.tokens.llm.lm_head.basis.zero_()
    clips = clip(model, 5)
    found = measure.dynamics(model, clips).numbers
    assert found == measure.dynamics(model, clips).numbers
    frames = {name for name in found if name.startswith("dynamics/ce_") and name[-1].isdigit()}
    assert frames == {f"dynamics/ce_{frame}" for frame in (1, 2, 3, 4)}
    for name in (*frames, "dynamics/ce", "dynamics/ce_shuffled"):
        assert found[name] == pytest.approx(math.log(model.layout.vocab), abs=1e-5)


@pytest.mark.parametrize("decoding", DECODINGS[1:])
def test_what_is_measured_is_the_loss_without_the_codes_that_were_shown(decoding: str) -> None:
    model = build(f"worldmodel.decoding={decoding}").eval()
    tokens, shape = model.tokens, (2, 3, model.layout.codes_future)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, tokens.llm.config.hidden, generator=generator)
    codes = torch.randint(model.layout.vocab_future, shape, generator=generator)
    known = tokens.decoding.shown(codes.shape, generator, device=codes.device)
    assert known is not None
    each = -tokens.llm.logits(hidden).log_softmax(-1).gather(-1, codes[..., None] + model.layout.vocab_context)[..., 0]
    for row, frame in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        wanted = each[row, frame][~known[row, frame]].mean()
        torch.testing.assert_close(tokens.frame_loss(hidden, codes, known)[row, frame], wanted)
    torch.testing.assert_close(tokens.frame_loss(hidden, codes, None), each.mean(-1))
