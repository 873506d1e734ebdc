"""Pre-training of the whole program in a forked child, on a small data set made once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mbrl.cli.main
import mbrl.cli.pretrain
import mbrl.pretrain.assemble
import mbrl.pretrain.train
from tests.pretrain.runs import Pretrain
from tests.pretrain.sets import dataset


@pytest.fixture(autouse=True)
def said_to_nobody_afterwards() -> Iterator[None]:
    """A run in this process talks to a screen that is gone after its test."""
    yield
    for handler in list(logging.getLogger("mbrl").handlers):
        logging.getLogger("mbrl").removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes told actions and rewards."""
    return dataset(tmp_path_factory.mktemp("data") / "squares", episodes=8)


@pytest.fixture
def pretrain(tmp_path: Path) -> Pretrain:
    """`pretrain(words, after=None)`: the exit code; negative: died of SIGKILL, `after` seconds from its start."""
    torch.set_num_threads(1)

    def run(line: list[str], *, after: float | None = None) -> int:
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                with (tmp_path / "child.log").open("a") as out:
                    os.dup2(out.fileno(), 1)
                    os.dup2(out.fileno(), 2)
                code = mbrl.cli.main.main(line)
            os._exit(code)
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run
