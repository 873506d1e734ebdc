"""What the model is told of the robot and what it answers belong together, clip by clip and step by step."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel import proprio

B, Q = 3, 4


def a_clip(frames: int, seed: int) -> torch.Tensor:
    return torch.randn(B, frames, Q, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(frames=st.integers(2, 7), seed=st.integers(0, 100))
def test_the_target_leads_to_the_next_frame(frames: int, seed: int) -> None:
    clip_BFQ = a_clip(frames, seed)
    features_BFX = proprio.features(clip_BFQ)
    target_BFQ = proprio.acceleration_target(clip_BFQ, features_BFX)
    for j in range(1, frames):
        moved_BQ = proprio.integrate(clip_BFQ[:, j - 1], features_BFX[:, j], target_BFQ[:, j])
        torch.testing.assert_close(moved_BQ, clip_BFQ[:, j], rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(frames=st.integers(1, 7), seed=st.integers(0, 100))
def test_two_frames_know_what_the_whole_clip_knows(frames: int, seed: int) -> None:
    clip_BFQ = a_clip(frames + 1, seed)
    whole_BX = proprio.features(clip_BFQ)[:, -1]
    torch.testing.assert_close(proprio.next_features(clip_BFQ[:, :-1][:, -2:]), whole_BX)


def test_without_a_push_the_movement_goes_on() -> None:
    begun_BQ, step_BQ = torch.zeros(B, Q), torch.full((B, Q), 0.1)
    features_BX = proprio.next_features(torch.stack([begun_BQ, begun_BQ + step_BQ], 1))
    moved_BQ = proprio.integrate(begun_BQ + step_BQ, features_BX, torch.zeros(B, Q))
    torch.testing.assert_close(moved_BQ, begun_BQ + 2 * step_BQ)


def test_nothing_is_known_of_a_movement_before_two_frames() -> None:
    first_BX, second_BX = proprio.features(a_clip(3, 0)).unbind(1)[:2]
    assert not first_BX[:, Q:].any() and not second_BX[:, Q:].any()
