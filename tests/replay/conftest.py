"""Episodes whose every number says which episode and which step it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mbrl.replay.episode import Episode

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def make_episode() -> MakeEpisode:
    """Frame i is filled with (number, i, 7); step i has action (number, i, -1, 1) / 64 and reward 100 * number + i.

    What is known with frame i begins with (number, i): `proprio` [2], `state` [5], `snapshot` [3].
    """

    def make(number: int, decisions: int, *, env: int = 0, side: int = 5, terminated: int = 0) -> Episode:
        frames = np.zeros((decisions + 1, 3, side, side), np.uint8)
        frames[:, 0], frames[:, 1], frames[:, 2] = number, np.arange(decisions + 1)[:, None, None], 7
        step = np.arange(decisions, dtype=np.float32)
        last = np.arange(decisions) == decisions - 1
        known = np.zeros((decisions + 1, 5))
        known[:, 0], known[:, 1], known[:, 2:] = number, np.arange(decisions + 1), 1 / 3
        action = np.stack([np.full_like(step, number), step, -np.ones_like(step), np.ones_like(step)], axis=1) / 64
        return Episode(
            pixels=frames,
            proprio=known[:, :2].astype(np.float32),
            state=known.astype(np.float32),
            snapshot=known[:, :3].copy(),
            action=action.astype(np.float32),
            reward=100 * number + step,
            terminated=last & bool(terminated),
            truncated=last & (not terminated),
            success=last,
            env=env,
            number=number,
        )

    return make
