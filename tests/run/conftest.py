"""Training of the whole program in a forked child."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import run_child

Train = Callable[..., int]


@pytest.fixture
def train() -> Train:
    """`train(folder, *overrides, once=None, number=SIGKILL)`: see `run_child`."""

    def run(folder: Path, *overrides: str, **when: object) -> int:
        return run_child(["train", "experiment=debug", f"run_dir={folder}", *overrides], **when)  # type: ignore[arg-type]

    return run
