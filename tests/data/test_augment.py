from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from mbrl.data.augment import CHANGES, RANGES, Look, applied, draw, resized

FRAMES = torch.randint(256, (5, 3, 22, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_a_drawn_box_lies_in_the_frame_and_has_the_area_and_shape_that_is_asked_for(strength) -> None:
    ranges = RANGES[strength]
    shares, ratios = [], []
    for seed in range(300):
        top, left, high, wide = draw(np.random.default_rng(seed), strength, height=120, width=200).box
        assert top >= 0 and left >= 0 and top + high <= 120 and left + wide <= 200
        shares.append(high * wide / 120**2)
        ratios.append(wide / high)
    assert ranges.area[0] * 0.97 < min(shares) < ranges.area[0] + 0.05
    assert ranges.area[1] - 0.05 < max(shares) < ranges.area[1] * 1.03
    assert ranges.ratio[0] * 0.98 < min(ratios) < max(ratios) < ranges.ratio[1] * 1.02


def test_colours_come_in_every_order_and_within_their_ranges() -> None:
    looks = [draw(np.random.default_rng(seed), "weak", height=64, width=64).colours for seed in range(300)]
    assert len({tuple(name for name, _ in look) for look in looks}) == 24
    assert all(
        abs(amount) <= 0.05 if name == "hue" else 0.9 <= amount <= 1.1 for look in looks for name, amount in look
    )


def test_the_same_generator_gives_the_same_clip_and_all_frames_get_the_same_draw() -> None:
    still = FRAMES[:1].expand(5, -1, -1, -1)
    one, two = (
        applied(still, draw(np.random.default_rng(7), "strong", height=22, width=30), side=16) for _ in range(2)
    )
    assert one.shape == (5, 3, 16, 16) and one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert all(torch.equal(one[0], frame) for frame in one)
    other = applied(still, draw(np.random.default_rng(8), "strong", height=22, width=30), side=16)
    assert not torch.equal(one, other)


def test_without_augmentation_a_frame_of_the_right_size_is_untouched_and_others_are_resized_whole() -> None:
    square = FRAMES[..., :22]
    whole = draw(np.random.default_rng(0), "none", height=22, width=22)
    assert torch.equal(applied(square, whole, side=22), square)
    flat = torch.full((2, 3, 40, 60), 77, dtype=torch.uint8)
    assert (applied(flat, draw(np.random.default_rng(0), "none", height=40, width=60), side=16) == 77).all()


def test_resizing_is_antialiased_a_fine_pattern_becomes_its_mean() -> None:
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    inner = resized(stripes, height=16, width=16)[..., 2:-2, 2:-2]
    assert (inner.int() - 100).abs().max() <= 2


def test_hue_is_that_of_hsv() -> None:
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.random((1, 3, 1, 50), np.float32))
    pixels[..., 0], pixels[..., 1] = 0.4, 1.0  # grey has no hue
    for turns in (0.0, 0.05, -0.3, 0.5):
        turned = CHANGES["hue"](pixels, turns)
        for place in range(50):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[0, :, 0, place].tolist())
            expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
            assert turned[0, :, 0, place].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_of_one_changes_nothing_and_zero_takes_it_away(name: str) -> None:
    frames = FRAMES.float() / 255
    assert torch.allclose(CHANGES[name](frames, 1.0), frames, atol=1e-6)
    gone = CHANGES[name](frames, 0.0)
    if name == "brightness":
        assert (gone == 0).all()
    if name == "contrast":
        assert (gone.amax((1, 2, 3)) - gone.amin((1, 2, 3))).abs().max() < 1e-6
    if name == "saturation":
        assert (gone.amax(1) - gone.amin(1)).abs().max() < 1e-6


def test_a_box_that_never_fits_becomes_the_central_square() -> None:
    look = draw(np.random.default_rng(0), "weak", height=4, width=1)
    assert look.box in {(top, 0, 1, 1) for top in range(4)}
    assert applied(FRAMES, Look(box=(4, 4, 9, 9), colours=()), side=9).equal(FRAMES[..., 4:13, 4:13])
