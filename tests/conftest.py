"""What every test may ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mbrl.data.dataset import write_card
from mbrl.replay.episode import write_episode
from tests.children import laid, run_child
from tests.data.numbered import CARD, numbered

Train = Callable[..., int]
MakeSet = Callable[..., Path]


def as_imported() -> None:
    """The logger as a process finds it that runs nothing: pytest gives one that does not propagate a second handler."""
    said = logging.getLogger("mbrl")
    for handler in list(said.handlers):
        said.removeHandler(handler)
        handler.close()
    said.setLevel(logging.NOTSET)
    said.propagate = True


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """A run in this process talks to a screen that is gone after its test, and chooses how matrices are multiplied."""
    precision = torch.backends.mkldnn.matmul.fp32_precision
    as_imported()  # the fixture of a module, which is older than this one, may have been a run
    yield
    torch.backends.mkldnn.matmul.fp32_precision = precision
    as_imported()


@pytest.fixture
def train() -> Train:
    """`train(folder, *overrides, once=None, number=SIGKILL)`: see `run_child`."""

    def run(folder: Path, *overrides: str, **when: object) -> int:
        return run_child(["train", *laid("experiment=debug", f"run_dir={folder}", *overrides)], **when)  # type: ignore[arg-type]

    return run


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
