"""How far predicted frames are from the true ones: MSE, PSNR and SSIM, one number a frame, in float32.

Knows frames in [0, 1] only. The definitions are those of the published evaluation (spec 10.7); LPIPS has its own file.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BETTER = {"mse": min, "psnr": max, "ssim": max, "lpips": min, "fvd": min}
"""Which of several numbers is the best one."""
PSNR_EPSILON = 1e-8
"""Added to the squared error, so that equal frames have 80 dB and not infinitely many."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def mse(truth_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
    """Mean squared error over pixels and channels, f32 [N]."""
    _check(truth_NCHW, other_NCHW)
    return (truth_NCHW.float() - other_NCHW.float()).square().flatten(1).mean(1)


def psnr(truth_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, f32 [N]."""
    return decibels(mse(truth_NCHW, other_NCHW))


def decibels(mse_N: Tensor) -> Tensor:
    """The PSNR that a mean squared error stands for: 10 log10(1 / (mse + 1e-8))."""
    return -10 * torch.log10(mse_N + PSNR_EPSILON)


def ssim(truth_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), f32 [N]; 1 for equal frames.

    Gaussian window of 11x11 with sigma 1.5, only where it lies within the frame; local moments with weights that sum to
    one (no sample correction); data range 1, K1 0.01, K2 0.03; per channel, then the mean over places and channels.

    Raises: ValueError for frames smaller than the window.
    """
    _check(truth_NCHW, other_NCHW)
    if min(truth_NCHW.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels (got {list(truth_NCHW.shape[2:])})")
    with torch.autocast(truth_NCHW.device.type, enabled=False):
        x, y = truth_NCHW.float(), other_NCHW.float()
        mean_x, mean_y, xx, yy, xy = blurred(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
        c1, c2 = K1**2, K2**2
        structure = (2 * covariance + c2) / (variances + c2)
        return (structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)).flatten(1).mean(1)


def blurred(x_NCHW: Tensor) -> Tensor:
    """Each channel under the Gaussian window, [N, C, H - 10, W - 10]."""
    places_K = torch.arange(WINDOW, dtype=torch.float32, device=x_NCHW.device) - WINDOW // 2
    weight_K = torch.exp(-(places_K**2) / (2 * SIGMA**2))
    weight_K = weight_K / weight_K.sum()
    planes = x_NCHW.flatten(0, 1)[:, None]
    planes = functional.conv2d(functional.conv2d(planes, weight_K[None, None, :, None]), weight_K[None, None, None, :])
    return planes[:, 0].unflatten(0, x_NCHW.shape[:2])


def _check(truth_NCHW: Tensor, other_NCHW: Tensor) -> None:
    if truth_NCHW.shape != other_NCHW.shape or truth_NCHW.ndim != 4 or not truth_NCHW.is_floating_point():
        raise ValueError(
            "frames must be float [N, C, H, W] in [0, 1], both of one shape "
            f"(got {truth_NCHW.dtype} {list(truth_NCHW.shape)} and {other_NCHW.dtype} {list(other_NCHW.shape)})"
        )
