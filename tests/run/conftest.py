"""Runs of the whole program in a forked child: real processes that can be killed, without a second's import each."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import mbrl.cli.main
import mbrl.cli.train
import mbrl.run.train

Train = Callable[..., int]
WATCH = os.WEXITED | os.WNOHANG | os.WNOWAIT  # has the child ended? (and leave it for waitpid)


@pytest.fixture(autouse=True)
def said_to_nobody_afterwards() -> Iterator[None]:
    """A run in this process talks to a screen that is gone after its test."""
    yield
    for handler in list(logging.getLogger("mbrl").handlers):
        logging.getLogger("mbrl").removeHandler(handler)
        handler.close()


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`train(folder, *overrides, after=None, number=SIGKILL)`: its exit code; negative: died of that signal.

    `after` seconds from its start, or `once` something is so, the child gets the signal `number`.
    """
    torch.set_num_threads(1)

    def run(
        folder: Path,
        *overrides: str,
        after: float | None = None,
        once: Callable[[], bool] | None = None,
        number: int = signal.SIGKILL,
    ) -> int:
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                with (tmp_path / "child.log").open("a") as out:
                    os.dup2(out.fileno(), 1)
                    os.dup2(out.fileno(), 2)
                code = mbrl.cli.main.main(["train", "experiment=debug", f"run_dir={folder}", *overrides])
            os._exit(code)
        if after is not None or once is not None:
            time.sleep(after or 0.0)
            while once is not None and not once() and os.waitid(os.P_PID, child, WATCH) is None:
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run
