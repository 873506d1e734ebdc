"""The two quantizers on vectors alone: inverse maps, statistics against collapse, nearest codes and their loss."""

from __future__ import annotations

import torch

from worldmodel.tokenizer.quantizer import FiniteScalarQuantizer, VectorQuantizer


def test_scalar_codes_and_vectors_are_inverse_for_every_code() -> None:
    quantizer = FiniteScalarQuantizer((7, 3, 2), positions=1).eval()
    codes = torch.arange(42).view(6, 7)
    vectors = quantizer.vectors(codes)
    assert vectors.unique(dim=0).abs().max() == 1
    assert vectors.flatten(0, 1).unique(dim=0).shape == (42, 3)
    latents = torch.atanh(vectors.clamp(-0.999, 0.999))  # eval statistics are still mean 0 and variance 1
    assert torch.equal(quantizer.codes(latents), codes)
    quantized = quantizer(latents, quantize=True, generator=None)
    torch.testing.assert_close(quantized.vectors, vectors)


def test_batch_statistics_spread_nearly_constant_latents_over_many_codes() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8), positions=1).train()
    generator = torch.Generator().manual_seed(0)
    latents = 5 + 1e-3 * torch.randn(400, 3, generator=generator)
    assert quantizer(latents, quantize=True, generator=None).codes.unique().numel() > 100
    for _ in range(200):
        quantizer(latents, quantize=True, generator=None)
    # what is used outside training has followed, and asking for codes does not move it
    before = quantizer.running_mean.clone()
    assert quantizer.codes(latents).unique().numel() > 100
    assert torch.equal(quantizer.running_mean, before)


def test_places_that_differ_far_more_than_frames_do_not_keep_to_one_code_each() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.tensor([-9.0, -3.0, 3.0, 9.0]).view(4, 1) + 0.01 * torch.randn(60, 4, 3, generator=generator)
    quantizer = FiniteScalarQuantizer((8, 8, 8), positions=4).train()
    codes = quantizer(latents, quantize=True, generator=None).codes
    assert all(codes[:, k].unique().numel() > 25 for k in range(4))


def test_the_nearest_code_wins_and_the_loss_pulls_both_ways() -> None:
    generator = torch.Generator().manual_seed(5)
    quantizer = VectorQuantizer(11, 3)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.randn(11, 3, generator=generator))
    latents = torch.randn(2, 5, 3, generator=generator, requires_grad=True)
    distances = (latents.detach()[:, :, None] - quantizer.embedding.weight).square().sum(-1)
    out = quantizer(latents, quantize=True, generator=None)
    assert torch.equal(out.codes, distances.argmin(-1))
    torch.testing.assert_close(out.commit, 2 * distances.min(-1).values.mean() / 3)
    out.commit.backward()
    torch.testing.assert_close(latents.grad, 2 * (latents - quantizer.vectors(out.codes)).detach() / latents.numel())
    assert quantizer.embedding.weight.grad is not None
    assert quantizer.embedding.weight.grad.abs().max() > 0


def test_features_of_scalar_codes_tell_each_code_and_what_neighbours_share() -> None:
    levels = (3, 5, 2)
    features_CJ = FiniteScalarQuantizer(levels, positions=1).features()
    assert features_CJ.shape == (30, sum(levels) + 3)
    assert len(features_CJ.unique(dim=0)) == 30
    one_hot = features_CJ[:, : sum(levels)]
    shared = one_hot @ one_hot.T  # in how many dimensions two codes have the same level
    assert bool((shared.diagonal() == 3).all()) and shared[0, 1] == 2, "code 1 differs from code 0 in one dimension"


def test_jitter_moves_the_asked_share_of_levels_by_one() -> None:
    quantizer = FiniteScalarQuantizer((6, 7), positions=1)
    codes = torch.randint(42, (4000,), generator=torch.Generator().manual_seed(0))
    moved = quantizer.jittered(codes, 0.2, torch.Generator().manual_seed(1))
    steps = torch.stack([moved % 6 - codes % 6, moved // 6 - codes // 6], -1)
    assert int(steps.abs().max()) == 1
    share = float(steps.abs().float().mean())  # at the border half of the moves lead nowhere
    assert 0.16 < share < 0.2
    assert torch.equal(quantizer.jittered(codes, 0.0, torch.Generator().manual_seed(1)), codes)


def test_codes_of_a_book_have_nothing_in_common_and_jitter_to_any_other() -> None:
    quantizer = VectorQuantizer(9, 2)
    assert torch.equal(quantizer.features(), torch.eye(9))
    codes = torch.full((3000,), 4)
    moved = quantizer.jittered(codes, 0.5, torch.Generator().manual_seed(1))
    assert len(moved.unique()) == 9 and 0.4 < float((moved != codes).float().mean()) < 0.5
