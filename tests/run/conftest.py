"""Training of the whole program in a forked child."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import run_child

Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`train(folder, *overrides, once=None, number=SIGKILL)`: see `run_child`."""

    def run(folder: Path, *overrides: str, **when: object) -> int:
        line = ["train", "experiment=debug", f"run_dir={folder}", *overrides]
        return run_child(line, tmp_path, **when)  # type: ignore[arg-type]

    return run
