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

from mbrl.cli.ranked import device_of
from mbrl.io.checkpoint import checkpoint_paths, read_newest
from mbrl.ranks import Ranks
from tests.run.test_resume import leaves, rows

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
LAST = (
    "{every: 0, start: 100, initial: 20, updates: 0}"  # nobody acts afterwards, so that all learn from the same frames
)
# Adam divides by the root of the mean square: where that is nearly 0 it shows nothing but how sums are rounded; and
# rounding to codes makes much of little, so the tokenizer's steps are small
OPTIMS = ("fit.tokenizer.optim", "fit.dynamics.optim", "agent.actor_optim", "agent.critic_optim")
SMALL = {
    "experiment": "debug",
    "schedule.total": "100",
    **{f"schedule.{name}": LAST for name in ("tokenizer", "dynamics", "learn")},
    **{"fit.tokenizer.batch": "4", "fit.tokenizer.length": "4", "fit.dynamics.batch": "4"},
    **{"agent.batch_size": "4", "agent.horizon": "3", "evaluation.episodes": "1", "evaluation.rows": "1"},
    **{f"{name}.eps": "1e-3" for name in OPTIMS},
    "fit.tokenizer.optim.lr": "5e-5",
}
PATIENCE_S = 300
"""For a machine that does much else besides."""


def start(folder: Path, world: int, **changed: str) -> list[subprocess.Popen[str]]:
    """The processes of one run, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = SMALL | {name.replace("__", "."): value for name, value in changed.items()} | {"run_dir": str(folder)}
    line = [sys.executable, "-m", "mbrl", "train", *(f"{name}={value}" for name, value in words.items())]
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
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    return [process.returncode for process in processes], said


def rows_told(folder: Path) -> int:
    """Progress lines so far."""
    path = folder / "console.log"
    return path.read_text().count("env steps ") if path.exists() else 0


def wait_for_rows(folder: Path, processes: list[subprocess.Popen[str]], *, least: int) -> None:
    """Waits until so many progress lines were told and something is saved."""
    patience = time.monotonic() + PATIENCE_S
    while rows_told(folder) < least or not checkpoint_paths(folder / "checkpoints"):
        assert time.monotonic() < patience and all(process.poll() is None for process in processes)
        time.sleep(0.05)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for processes in (start(alone, 1), start(together, 2)):
        codes, said = ended(processes)
        assert not any(codes), "\n".join(said)
    parts = ("model", "updater", "agent", "replay", "run")
    one, two = (
        leaves({part: read_newest(run / "checkpoints").states[part] for part in parts}) for run in (alone, together)
    )
    assert one.keys() == two.keys()
    assert one["/run/clock/done/tokenizer"] == one["/run/clock/done/dynamics"] == one["/run/clock/done/learn"] == 20
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            near = 1e-5 if "exp_avg" in name else 1e-6  # moments are of gradients, which are larger than their steps
            torch.testing.assert_close(two[name], value, rtol=0, atol=near, msg=lambda m, n=name: f"{n}: {m}")
        elif "/scores/" not in name:
            assert two[name] == value, name
    for name in ("tokenizer/loss", "dynamics/loss", "agent/critic_loss", "agent/advantage_std"):
        seen = [[float(row[name] or 0) for row in rows(run / "metrics.csv")] for run in (alone, together)]
        assert seen[0] == pytest.approx(seen[1], abs=1e-5), name


def test_where_one_dies_the_others_end_with_one_line_and_any_number_of_them_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start(folder, 2, schedule__total="100000")
    wait_for_rows(folder, processes, least=2)
    processes[1].kill()
    codes, said = ended(processes)
    assert codes == [1, -signal.SIGKILL], "\n".join(said)
    assert said[0].splitlines()[-1] == "error: process 0 of 2 ends: another one has ended or does not answer"
    assert "Traceback" not in said[0]
    for world in (1, 2):
        before, saved = rows_told(folder), read_newest(folder / "checkpoints").step
        processes = start(folder, world, schedule__total="100000")
        wait_for_rows(folder, processes, least=before + 1)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes, said = ended(processes)
        assert codes == [75] * world, "\n".join(said)
        assert f"resumed from step {saved}" in said[0] and "continued at env step" in said[0]
        assert said[0].count("stopped and saved") == 1
        step = int(said[0].split("stopped and saved at env step ")[1].split(";")[0])
        assert read_newest(folder / "checkpoints").states["run"]["clock"]["env_steps"] == step


def test_what_cannot_be_shared_is_refused_by_all_in_one_line(tmp_path: Path) -> None:
    codes, said = ended(start(tmp_path / "run", 2, agent__batch_size="5"))
    assert codes == [2, 2]
    assert all("agent.batch_size=5 must be a multiple of 2 processes" in text for text in said)
    assert all(len(text.splitlines()) == 1 for text in said)
    assert not (tmp_path / "run").exists()


def test_processes_that_share_a_machine_do_not_share_a_gpu() -> None:
    assert device_of("cuda:1", Ranks()) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"compute.device must be cuda with 2 processes.*got cuda:1"):
        device_of("cuda:1", Ranks(rank=0, world=2))
