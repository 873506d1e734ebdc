"""`mbrl train` in two processes: it learns what one learns, ends as one, and goes on with another number of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mbrl.io.checkpoint import checkpoint_paths, read_newest
from tests.run.test_resume import leaves, rows

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
ONCE, AGAIN = "{every: 50, start: 100, initial: 10, updates: 10}", "{every: 100, start: 100, initial: 1, updates: 1}"
SMALL = [
    *("experiment=debug", "schedule.total=150", "fit.tokenizer.batch=4", "fit.tokenizer.length=4"),
    *("fit.dynamics.batch=4", "agent.batch_size=4", "agent.horizon=3", "evaluation.episodes=1", "evaluation.rows=1"),
    *(f"schedule.{name}={ONCE}" for name in ("tokenizer", "dynamics", "learn")),
    *(f"schedule.{name}={AGAIN}" for name in ("evaluate", "save")),
    # Adam divides by the root of the mean square: where that is nearly 0 it would show nothing but how sums are rounded;
    # and rounding to codes makes much of little, so steps are small
    *("fit.tokenizer.optim.eps=1e-3", "fit.dynamics.optim.eps=1e-3", "fit.tokenizer.optim.lr=2e-4"),
    *("agent.actor_optim.eps=1e-3", "agent.critic_optim.eps=1e-3"),
]


def start(folder: Path, world: int, *words: str) -> list[subprocess.Popen[str]]:
    """The processes of one run, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "mbrl", "train", *SMALL, f"run_dir={folder}", *words]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            line,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes, and what each process said."""
    said = [process.communicate(timeout=100)[0] for process in processes]
    return [process.returncode for process in processes], said


def say_when(folder: Path, words: str) -> None:
    """Waits until console.log has these words."""
    path, patience = folder / "console.log", time.monotonic() + 60
    while not (path.exists() and words in path.read_text()):
        assert time.monotonic() < patience, f"no {words!r}"
        time.sleep(0.05)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for processes in (start(alone, 1), start(together, 2)):
        codes, said = ended(processes)
        assert not any(codes), said
    parts = ("model", "updater", "agent", "replay", "run")
    one, two = (
        leaves({part: read_newest(run / "checkpoints").states[part] for part in parts}) for run in (alone, together)
    )
    assert one.keys() == two.keys()
    assert one["/run/clock/done/tokenizer"] == one["/run/clock/done/dynamics"] == one["/run/clock/done/learn"] == 20
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        elif "/scores/" not in name:
            assert two[name] == value, name
    for name in ("tokenizer/loss", "dynamics/loss", "agent/critic_loss", "agent/advantage_std"):
        seen = [[float(row[name] or 0) for row in rows(run / "metrics.csv")] for run in (alone, together)]
        assert seen[0] == pytest.approx(seen[1], abs=1e-5), name


def test_a_stop_saves_once_and_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for world in (2, 1, 2):
        before = (folder / "console.log").read_text().count("env steps ") if folder.exists() else 0
        processes = start(folder, world, "schedule.log.every=2", "schedule.total=100000")
        patience = time.monotonic() + 60
        while not folder.exists() or (folder / "console.log").read_text().count("env steps ") < before + 2:
            assert time.monotonic() < patience
            time.sleep(0.05)
        saved = len(checkpoint_paths(folder / "checkpoints"))
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes, said = ended(processes)
        assert codes == [75] * world, said
        assert "stopped and saved" in said[0]
        assert len(checkpoint_paths(folder / "checkpoints")) in (saved + 1, 2)


def test_where_one_dies_the_others_end_with_one_line(tmp_path: Path) -> None:
    processes = start(tmp_path / "run", 2, "schedule.total=100000")
    say_when(tmp_path / "run", "env steps ")
    processes[1].kill()
    begun = time.monotonic()
    codes, said = ended(processes)
    assert codes == [1, -signal.SIGKILL] and time.monotonic() - begun < 30
    assert said[0].splitlines()[-1] == "error: process 0 of 2 ends: another one has ended or does not answer"
    assert "Traceback" not in said[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fit.dynamics.batch=5"], "fit.dynamics.batch=5 must be a multiple of 2 processes x accumulate=1"),
        (["agent.batch_size=5"], "agent.batch_size=5 must be a multiple of 2 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_all_in_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    codes, said = ended(start(tmp_path / "run", 2, *words))
    assert codes == [2, 2]
    assert all(line in text and "Traceback" not in text for text in said)
    assert not (tmp_path / "run").exists()
