"""Two processes on one batch are one process; one that dies is restarted, and the run goes on as if nothing was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mbrl.cli.main import main
from tests.pretrain.runs import rows, state_of, words
from worldmodel.evaluation.lpips import LPIPS
from worldmodel.evaluation.networks.cache import cached

ROOT = Path(__file__).resolve().parents[2]
# Adam divides by the root of the mean square: where that is nearly 0 it would show nothing but how sums are rounded
CALM = ["stage.{}.optim.eps=1e-3"]
VQ = ["tokenizer.quantizer=vq", "tokenizer.fsq_levels_context=[]", "tokenizer.fsq_levels_future=[]"]
MASKED = "worldmodel.decoding={kind:masked,passes:3}"
VQ += ["tokenizer.fsq_place_means=false", "worldmodel.embedding=table"]


def torchrun(notes: Path, line: list[str], *, dies_at: int = -1, restarts: int = 0) -> str:
    """Runs a command line in two processes; what they printed."""
    notes.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", str(ROOT / "tests/pretrain/dying.py"), str(notes), str(dies_at), *line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def calm(stage: str) -> list[str]:
    parts = {"both": ("tokenizer", "dynamics")}.get(stage, (stage,))
    return [word.format(part) for part in parts for word in CALM]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "overrides", "dies_at", "seen"),
    [
        # the CPU preset's every trick: shared FSQ statistics, jitter, strange contexts, masked means; and a death
        ("both", ["schedule.total=3"], 2, "continued at update 2"),
        ("tokenizer", [*VQ, "schedule.total=3"], -1, "2 processes"),
        ("dynamics", [*VQ, "compute.sharding=fsdp2", "schedule.total=3"], 2, "continued at update 2"),
        ("dynamics", [*VQ, MASKED, "compute.sharding=fsdp2", "schedule.total=2"], -1, "2 processes"),
    ],
    ids=["ddp-dies", "ddp-codebooks", "fsdp2-dies", "fsdp2-masked"],
)
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, data: Path, stage: str, overrides: list[str], dies_at: int, seen: str
) -> None:
    quiet = [*calm(stage), *overrides, "schedule.evaluate=0"]
    alone, together, notes = tmp_path / "alone", tmp_path / "together", tmp_path / "notes"
    torch.set_num_threads(1)
    assert main(words(stage, data, alone, *(word for word in quiet if "sharding" not in word))) == 0
    # more restarts than deaths: once in some 60 runs torch's own gloo thread ended a process, its heap damaged
    said = torchrun(notes, words(stage, data, together, *quiet), dies_at=dies_at, restarts=3 if dies_at >= 0 else 0)
    assert seen in said
    assert (notes / "died").exists() is (dies_at >= 0)
    one, two = state_of(alone), state_of(together)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if "/pretrainer/model" in name:
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    first, second = (load_file(notes / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert any("quantize" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first), "processes agree, codebooks too"
    losses = [
        [float(row[f"{stage if stage != 'both' else 'tokenizer'}/loss"]) for row in rows(run / "metrics.csv")]
        for run in (alone, together)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.fixture
def any_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perceptual distance of random weights, where the program looks for the real one."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TOKENDREAM_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = {
            name: value.abs() if name.startswith("lin") else value for name, value in LPIPS("vgg").state_dict().items()
        }
    save_file(weights, cached("lpips-vgg"))


@pytest.mark.distributed
@pytest.mark.usefixtures("any_lpips")
def test_two_processes_fight_the_adversary_that_one_fights(tmp_path: Path, data: Path) -> None:
    quiet = [*VQ, "worldmodel.losses.lpips=1.0", "schedule.total=3", "schedule.evaluate=0", "stage.precision=float32"]
    opponent = "stage.tokenizer.discriminator"
    quiet += [
        f"{opponent}.start=1",
        f"{opponent}.hidden=16",
        f"{opponent}.optim.eps=1e-3",
        "stage.tokenizer.accumulate=1",
    ]
    quiet += ["stage.tokenizer.optim.eps=1e-3"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    torch.set_num_threads(1)
    assert main(words("published_adversarial", data, alone, *quiet)) == 0
    torchrun(tmp_path / "notes", words("published_adversarial", data, together, *quiet))
    one, two = state_of(alone), state_of(together)
    learned = [name for name in one if "/model/" in name or "/adversary/" in name]
    assert any("/adversary/" in name for name in learned)
    for name in learned:
        if isinstance(one[name], torch.Tensor):
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert two[name] == one[name], name


@pytest.mark.distributed
def test_a_wrong_line_ends_all_processes_with_one_reason(tmp_path: Path, data: Path) -> None:
    with pytest.raises(AssertionError, match="must be a multiple of 2 processes"):
        torchrun(tmp_path / "notes", words("dynamics", data, tmp_path / "run", "stage.dynamics.batch=5"))
    assert not (tmp_path / "run" / "config.yaml").exists()
