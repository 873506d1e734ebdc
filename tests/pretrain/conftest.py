"""Pre-training of the whole program in a forked child, on a small data set made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.children import run_child
from tests.pretrain.runs import Pretrain
from tests.pretrain.sets import dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes told actions and rewards."""
    return dataset(tmp_path_factory.mktemp("data") / "squares", episodes=8)


@pytest.fixture
def pretrain() -> Pretrain:
    """`pretrain(words, once=None)`: see `run_child`."""
    return run_child
