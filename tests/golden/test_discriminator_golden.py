"""The patch discriminator against recorded logits of the published one, and its hinge losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_sets import DATA
from safetensors.torch import load_file

from worldmodel.losses.discriminator import PatchDiscriminator, discriminator_loss, generator_loss

SETS = [path.parent for path in sorted(DATA.glob("*/discriminator.npz"))]


def golden(folder: Path) -> tuple[PatchDiscriminator, dict[str, torch.Tensor]]:
    tensors = load_file(folder / "discriminator.safetensors")
    discriminator = PatchDiscriminator(hidden=tensors["shuffle.weight"].shape[1])
    discriminator.load_state_dict(tensors)
    arrays = np.load(folder / "discriminator.npz", allow_pickle=False)
    return discriminator.eval(), {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_every_recorded_array_comes_out_equal(folder: Path) -> None:
    discriminator, arrays = golden(folder)
    assert set(arrays) == {"frames", "logits"}
    before = {k: v.clone() for k, v in discriminator.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(discriminator(arrays["frames"]), arrays["logits"], atol=1e-4, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in discriminator.state_dict().items())


def test_power_iteration_in_training_finds_the_largest_singular_value() -> None:
    torch.manual_seed(3)
    discriminator = PatchDiscriminator(hidden=16).train()
    for _ in range(120):
        discriminator(torch.rand(1, 3, 32, 32))
    conv = discriminator.encoder[2]
    sigma = conv.weight_u @ conv.weight_orig.flatten(1) @ conv.weight_v
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2), rtol=1e-3, atol=1e-5)


def test_training_on_real_and_fake_frames_tells_them_apart() -> None:
    torch.manual_seed(4)
    discriminator = PatchDiscriminator(hidden=16).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    real, fake = torch.rand(6, 3, 32, 32), torch.rand(6, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = []
    for _ in range(120):
        loss = discriminator_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5
    assert sum(losses[-20:]) / 20 < 0.6 * losses[0]
    assert generator_loss(discriminator(fake)) > generator_loss(discriminator(real))


def test_hinge_losses_have_their_margins() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, fake) == pytest.approx(0.25 + 0.5)
    assert generator_loss(fake) == pytest.approx(1.5)


def test_a_width_that_four_levels_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden must be a multiple of 8"):
        PatchDiscriminator(hidden=20)
