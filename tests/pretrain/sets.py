"""Small data sets made in a test: a square that actions push about, 32 pixels wide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mbrl.data.dataset import Card, write_card
from mbrl.replay.episode import Episode, write_episode

SIDE, A = 32, 2


def episode(number: int, *, decisions: int, actions: bool = True, seed: int = 0) -> Episode:
    """A square on one of several grounds; an action moves it by up to 4 pixels in each direction."""
    random = np.random.default_rng([seed, number])
    place = random.uniform(6, SIDE - 6, 2)
    ground = np.uint8(random.integers(0, 120, (3, 1, 1)))
    action = random.uniform(-1, 1, (decisions, A)).astype(np.float32)
    frames = []
    for step in range(decisions + 1):
        frame = np.broadcast_to(ground, (3, SIDE, SIDE)).copy()
        y, x = place.round().astype(int)
        frame[:, max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = (255, 200, 20)[number % 3]
        frames.append(frame)
        if step < decisions:
            place = np.clip(place + 4 * action[step], 4, SIDE - 4)
    ended = np.zeros(decisions, np.bool_)
    ended[-1] = True
    return Episode(
        pixels=np.stack(frames).astype(np.uint8),
        proprio=np.zeros((decisions + 1, 0), np.float32),
        state=np.zeros((decisions + 1, 0), np.float32),
        snapshot=np.zeros((decisions + 1, 0), np.float64),
        action=action if actions else action[:, :0],
        reward=(action[:, 0] if actions else np.full(decisions, np.nan)).astype(np.float32),
        terminated=np.zeros(decisions, np.bool_),
        truncated=ended,
        success=np.zeros(decisions, np.bool_),
        env=0,
        number=number,
    )


def dataset(folder: Path, *, episodes: int = 7, decisions: int = 11, actions: bool = True, seed: int = 0) -> Path:
    """A data set of such episodes."""
    folder.mkdir(parents=True)
    for number in range(episodes):
        write_episode(folder, episode(number, decisions=decisions, actions=actions, seed=seed))
    card = Card(
        name=folder.name,
        source="made in a test",
        tasks=(),
        protocol=None,
        action_dim=A if actions else 0,
        rewards=actions,
        image=(SIDE, SIDE),
        rate=1.0,
        policies=(),
    )
    write_card(folder, card)
    return folder
