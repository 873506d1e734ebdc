"""Data sets on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mbrl.data.dataset import write_card
from mbrl.replay.episode import write_episode
from tests.data.numbered import CARD, numbered

MakeSet = Callable[..., Path]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """A data set of episodes of these lengths (decisions), in a folder of this name."""

    def make(name: str, lengths: list[int], *, first: int = 0, card: dict | None = None, **how: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for place, decisions in enumerate(lengths):
            write_episode(folder, numbered(first + place, decisions, **how))
        side, actions = int(how.get("side", 8)), int(how.get("actions", 3))
        fields = {
            "name": name,
            "image": (side, side),
            "action_dim": actions,
            "rewards": bool(how.get("rewarded", True)),
        }
        write_card(folder, replace(CARD, **(fields | (card or {}))))
        return folder

    return make
