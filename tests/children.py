"""The whole program in a forked child: a real process that can be killed, without a second's import each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch

import mbrl.cli.main
import mbrl.cli.pretrain
import mbrl.cli.train
import mbrl.pretrain.assemble
import mbrl.pretrain.train
import mbrl.run.train

WATCH = os.WEXITED | os.WNOHANG | os.WNOWAIT  # has the child ended? (and leave it for waitpid)


def laid(*words: str) -> list[str]:
    """Words over words: of two for the same key the later one."""
    return list({word.partition("=")[0]: word for word in words}.values())


def run_child(
    line: list[str],
    *,
    once: Callable[[], bool] | None = None,
    number: int = signal.SIGKILL,
    first: Callable[[], object] | None = None,
) -> int:
    """`mbrl` with these words: its exit code; negative: died of that signal.

    `once` something is so, the child gets the signal `number`. `first` is done in the child alone.
    """
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if first is not None:
                first()
            code = mbrl.cli.main.main(line)
        except BaseException:  # no exception may leave the child: it would go on as a second pytest
            traceback.print_exc()
        os._exit(code)
    if once is not None:
        while not once() and os.waitid(os.P_PID, child, WATCH) is None:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines_said(run: Path, what: str = "") -> int:
    """How many lines of the run's console.log hold `what`."""
    log = run / "console.log"
    return sum(what in line for line in log.read_text().splitlines()) if log.exists() else 0


def moments(run: Path, kills: int, *, seed: int, lines: int) -> Iterator[Callable[[], bool]]:
    """Random moments of a run's life, on any machine: up to `lines` more lines of its log, and a little."""
    random = Random(seed)
    for _ in range(kills):
        until, wait = lines_said(run) + random.randint(0, lines), random.uniform(0, 0.1)

        def come(until: int = until, wait: float = wait) -> bool:
            if lines_said(run) < until:
                return False
            time.sleep(wait)
            return True

        yield come
