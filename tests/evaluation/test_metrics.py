"""Frame metrics against their definitions written out in NumPy, and against numbers that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.evaluation.fvd import FeatureStats, FeatureSums, frechet
from worldmodel.evaluation.i3d import FEATURES, I3D, Pool, padded
from worldmodel.evaluation.metrics import mse, psnr, ssim

N, C, H, W = 3, 3, 13, 17


def frames(seed: int) -> Tensor:
    return torch.rand(N, C, H, W, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error_is_the_known_number() -> None:
    x = torch.full((2, 3, 4, 5), 0.5)
    assert mse(x, x + 0.1).tolist() == pytest.approx([0.01, 0.01])
    assert psnr(x, x + 0.1).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(x, x).tolist() == pytest.approx([80.0, 80.0])


def ssim_by_hand(x_HW: np.ndarray, y_HW: np.ndarray) -> list[float]:
    """Window by window, as in the paper that defines it."""
    places = np.arange(11) - 5
    weight = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for row in range(x_HW.shape[0] - 10):
        for column in range(x_HW.shape[1] - 10):
            a, b = (image[row : row + 11, column : column + 11] for image in (x_HW, y_HW))
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return found


def test_ssim_is_the_mean_over_windows_that_lie_within_the_frame() -> None:
    x, y = frames(0), frames(1)
    by_hand = [
        np.mean([ssim_by_hand(x[n, c].double().numpy(), y[n, c].double().numpy()) for c in range(C)]) for n in range(N)
    ]
    np.testing.assert_allclose(ssim(x, y).numpy(), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ssim(x, x).numpy(), 1.0, atol=1e-6)


def test_ssim_of_two_flat_frames_is_the_luminance_term_alone() -> None:
    x, y = torch.full((1, 3, 11, 12), 0.25), torch.full((1, 3, 11, 12), 0.75)
    assert ssim(x, y).item() == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=2e-4)


def test_metrics_are_in_float32_whatever_surrounds_them() -> None:
    x, y = frames(0), frames(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ssim(x, y)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, ssim(x, y), rtol=0, atol=0)
    assert psnr(x.bfloat16(), x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("other", [torch.rand(N, C, H, W + 1), torch.randint(255, (N, C, H, W), dtype=torch.uint8)])
def test_frames_of_another_shape_or_kind_are_refused(other: Tensor) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        mse(frames(0) if other.is_floating_point() else other, other)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(frames(0)[..., :10], frames(0)[..., :10])


def stats(rows: Tensor) -> FeatureStats:
    moments = FeatureSums()
    for batch in rows.split(7):
        moments.add(batch)
    return moments.stats()


def test_frechet_of_two_gaussians_is_the_formula_where_covariances_commute() -> None:
    one = FeatureStats(torch.tensor([1.0, 2.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 9.0, 0.0])).double(), 9)
    other = FeatureStats(
        torch.tensor([1.0, 0.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 16.0, 25.0])).double(), 9
    )
    assert frechet(one, other) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 4) ** 2 + 5**2)
    assert frechet(other, one) == pytest.approx(frechet(one, other))


def test_frechet_agrees_with_a_direct_root_of_the_product() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = (
        torch.randn(40, 5, generator=generator),
        torch.randn(60, 5, generator=generator) @ torch.randn(5, 5, generator=generator),
    )
    one, other = (stats(part) for part in rows)
    np.testing.assert_allclose(one.covariance.numpy(), np.cov(rows[0].double().numpy().T, bias=True))
    values = np.linalg.eigvals((one.covariance @ other.covariance).numpy())
    by_hand = float(
        (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace()
    ) - 2 * float(np.sqrt(values.astype(complex)).sum().real)
    assert frechet(one, other) == pytest.approx(by_hand)


def test_frechet_of_a_crowd_with_itself_is_nothing_even_with_fewer_rows_than_features() -> None:
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).double() * 30
    assert frechet(stats(rows), stats(rows)) == pytest.approx(0, abs=1e-8)
    assert frechet(stats(rows), stats(rows + 1)) == pytest.approx(50, rel=1e-9)


def test_one_video_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 videos"):
        stats(torch.ones(1, 4))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(9, 7, 2), (8, 3, 2), (5, 3, 1), (7, 2, 2), (4, 1, 1)])
def test_padding_gives_as_many_places_as_the_stride_asks_for(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size + 1, size + 2)
    k, s = (kernel,) * 3, (stride,) * 3
    out = torch.nn.functional.max_pool3d(padded(x, k, s), k, s)
    assert list(out.shape[2:]) == [math.ceil(n / stride) for n in x.shape[2:]]
    around = padded(x, k, s)
    missing = [a - b for a, b in zip(around.shape[2:], x.shape[2:], strict=True)]
    for axis, more in enumerate(missing):  # the odd one lies behind
        line = around.amax([a for a in range(5) if a != axis + 2])
        assert int(line.nonzero()[0]) == more // 2


def test_pooling_takes_the_maximum_over_its_window() -> None:
    x = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    assert Pool((1, 3, 3), (1, 2, 2))(x).flatten().tolist() == [10.0, 11.0, 14.0, 15.0]


def test_i3d_has_the_published_size_and_refuses_videos_too_short_for_it() -> None:
    with torch.device("meta"):
        model = I3D()
    assert sum(p.numel() for p in model.parameters()) == 12_697_264
    assert model.logits.out_channels == FEATURES
    with pytest.raises(ValueError, match="T >= 9 frames"):
        model(torch.rand(2, 8, 3, 16, 16))
