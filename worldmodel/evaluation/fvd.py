"""The distance between two crowds of videos: Frechet distance of their features (FVD with I3D; spec 10.7).

Knows features only: rows of numbers. In float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureStats:
    """Mean [D] and population covariance [D, D] of features, and how many there were."""

    mean: Tensor
    covariance: Tensor
    count: int


class FeatureSums:
    """Features that come batch by batch."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def add(self, features_ND: Tensor) -> None:
        """Takes more rows."""
        self.batches.append(features_ND.detach().double().cpu())

    def stats(self) -> FeatureStats:
        """Raises: ValueError for fewer than two rows or numbers that are none."""
        features_ND = torch.cat(self.batches) if self.batches else torch.empty(0, 1)
        if len(features_ND) < 2 or not features_ND.isfinite().all():
            raise ValueError(
                f"FVD needs the finite features of at least 2 videos on each side (got {len(features_ND)})"
            )
        mean_D = features_ND.mean(0)
        centred_ND = features_ND - mean_D
        return FeatureStats(mean_D, centred_ND.T @ centred_ND / len(features_ND), len(features_ND))


def frechet(one: FeatureStats, other: FeatureStats) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2) S2^(1/2): nothing of it is complex or loses
    half its digits, also where fewer videos than features make both singular.
    """
    overlap = torch.linalg.svdvals(_root(one.covariance) @ _root(other.covariance)).sum()
    apart = (one.mean - other.mean).square().sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * overlap
    return max(0.0, float(apart + spread))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance; eigenvalues that are nothing but rounding count as 0."""
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    noise = eigenvalues.max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return (vectors * torch.where(eigenvalues > noise, eigenvalues, 0).sqrt()) @ vectors.T
