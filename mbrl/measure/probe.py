"""A probe: how much of some true quantity can be read out of features, on episodes that it was not fitted to.

Kernel ridge regression with a linear and a Gaussian part: it finds what a small network finds, without its luck and in
less time. Knows numbers only. N frames, E features of a frame, C features of its context, P numbers of the quantity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e4)
"""Tried on a part of the training episodes; the largest leaves nothing but the mean."""
ONE_IN = 4
"""One episode in so many is held out."""
LEAST_EPISODES = 4
"""With fewer there is none to hold out twice: for the result, and for the choice of kernel and ridge."""


@dataclass(frozen=True)
class Probed:
    """What was found on held-out episodes.

    Attributes:
        r2: share of the variance (around the mean of the training episodes) that is explained; None without any.
        rmse: root of the mean squared distance, in the quantity's own unit.
    """

    r2: float | None
    rmse: float


def probe(frame_NE: Tensor, context_NC: Tensor, target_NP: Tensor, episode_N: Tensor) -> Probed:
    """Fits on three quarters of the episodes and tests on the rest.

    The features are those of the frame alone, or of frame and context, whichever does better on a quarter of the
    training episodes; the ridge likewise. (An episode's context is one and the same, so it is easily learned by heart.)

    Args:
        episode_N: whose frame each row is, at least 4 episodes.
    Raises: ValueError for fewer.
    """
    if len(episode_N.unique()) < LEAST_EPISODES:
        raise ValueError(f"a probe needs at least {LEAST_EPISODES} episodes (got {len(episode_N.unique())})")
    target_NP = target_NP.double()
    test_N = held_out(episode_N)
    known_N = ~test_N
    near_NN, far_NN = (kernel(standardised(feature.double(), known_N)) for feature in (frame_NE, context_NC))
    inner_M, inside_MP = held_out(episode_N[known_N]), target_NP[known_N]
    best = None
    for kernel_NN in (near_NN, near_NN + far_NN):
        inside_MM = kernel_NN[known_N][:, known_N]
        for ridge in RIDGES:
            loss = float(miss(inside_MM, inside_MP, inner_M, ridge=ridge).square().sum())
            if best is None or loss < best[0]:
                best = loss, kernel_NN, ridge
    assert best is not None
    error = miss(best[1], target_NP, test_N, ridge=best[2]).square().sum()
    spread = (target_NP[test_N] - inside_MP.mean(0)).square().sum()
    r2 = float(1 - error / spread) if float(spread) > 1e-12 else None
    return Probed(r2=r2, rmse=float(error / test_N.sum()) ** 0.5)


def held_out(episode_N: Tensor) -> Tensor:
    """Which rows are held out, bool [N]: those of every fourth of the episodes that occur."""
    episodes, place_N = episode_N.unique(return_inverse=True)
    return (place_N + 1) % min(ONE_IN, len(episodes)) == 0


def standardised(feature_NE: Tensor, known_N: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the rows `known_N`; features that never move there are left out."""
    centred_NE = feature_NE - feature_NE[known_N].mean(0)
    deviation_E = centred_NE[known_N].std(0)
    moving_E = deviation_E > 1e-8
    return centred_NE[:, moving_E] / deviation_E[moving_E]


def kernel(feature_NE: Tensor) -> Tensor:
    """Sum of a linear and a Gaussian kernel [N, N]; the Gaussian's squared width is the mean squared distance."""
    linear_NN = feature_NE @ feature_NE.T / max(1, feature_NE.shape[1])
    norm_N = linear_NN.diagonal()
    distance_NN = (norm_N[:, None] + norm_N - 2 * linear_NN).clamp(min=0)
    return linear_NN + torch.exp(-distance_NN / distance_NN.mean().clamp(min=1e-12))


def miss(kernel_NN: Tensor, target_NP: Tensor, test_N: Tensor, *, ridge: float) -> Tensor:
    """Errors on the rows `test_N` of a fit to the others."""
    known_N = ~test_N
    mean_P = target_NP[known_N].mean(0)
    gram = kernel_NN[known_N][:, known_N] + ridge * torch.eye(int(known_N.sum()), dtype=kernel_NN.dtype)
    weight = torch.cholesky_solve(target_NP[known_N] - mean_P, torch.linalg.cholesky(gram))
    return target_NP[test_N] - mean_P - kernel_NN[test_N][:, known_N] @ weight
