"""Data sets whose every pixel says which episode and which frame it is of."""

from __future__ import annotations

import numpy as np

from mbrl.data.dataset import Card
from mbrl.replay.episode import Episode

CARD = Card(
    name="drawn",
    source="made by a test",
    tasks=(),
    protocol=None,
    action_dim=3,
    rewards=True,
    image=(8, 8),
    rate=1.0,
    policies=(),
)


def numbered(
    number: int, decisions: int, *, side: int = 8, actions: int = 3, rewarded: bool = True, terminated: bool = False
) -> Episode:
    """Frame i is filled with (number, i, 7); step i has action (number, i, ...) / 64 and reward 100 * number + i."""
    pixels = np.zeros((decisions + 1, 3, side, side), np.uint8)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = number, np.arange(decisions + 1)[:, None, None], 7
    step = np.arange(decisions, dtype=np.float32)
    action = np.stack([np.full_like(step, number), step, -step], axis=1)[:, :actions] / 64
    known = np.stack([np.full(decisions + 1, number), np.arange(decisions + 1)], axis=1).astype(np.float32)
    last = step == decisions - 1
    return Episode(
        pixels=pixels,
        proprio=known,
        state=known[:, :0],
        snapshot=np.zeros((decisions + 1, 0)),
        action=action.astype(np.float32),
        reward=100 * number + step if rewarded else np.full(decisions, np.nan, np.float32),
        terminated=last & terminated,
        truncated=last & (not terminated),
        success=last & False,
        env=0,
        number=number,
    )
