"""What is played for the goldens, and all they know of the program: whoever moves or renames a thing mends it here.

`python -m tests.golden_runs.scenes SCENE FILE` plays one scene in this process and writes its numbers and hashes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.api import DreamMetrics
from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.cli.train import as_plain
from mbrl.io.checkpoint import read_newest
from mbrl.run.assemble import Configs, assemble
from mbrl.rundir.stop import Stop
from tests.pretrain.sets import dataset
from worldmodel.dream.imagine import Dream
from worldmodel.seeds import Seeds

RENAMED: dict[str, str] = {"agent/imitation": "agent/bc_loss"}
"""Column or metric by its name in the goldens -> the name that the program has for it today, where that is another."""
CLOCKS = ("wall_s", "time/", "perf/")
"""Columns that tell the time of day, and nothing else."""

LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Which instructions the products may use, whatever the processor has."""
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "task=toy",
    "protocol=toy",
    "protocol.image=64",
    "compute.threads=1",
    "evaluation.rows=3",
    "schedule.prefill=100",
]
SMALL += ["worldmodel=cpu", "tokenizer=tiny", "transformer=tiny", "agent=dreamer_cpu", "agent.batch_size=16"]
SMALL += ["fit.tokenizer.batch=4", "fit.dynamics.batch=8"]
DEMOS = ["experiment=demos", "demos=1"]
TOY = ["experiment=toy", "seed=0", "compute.threads=1", "schedule.total=600", "schedule.prefill=250"]
TOY += [f"evaluation.{key}=10" for key in ("episodes", "interim", "rows")]
TOY += [
    f"schedule.{name}={{every:{every},start:{start},initial:{initial},updates:{updates}}}"
    for name, (every, start, initial, updates) in {
        "tokenizer": (100, 250, 10, 1),
        "dynamics": (50, 250, 8, 2),
        "learn": (50, 250, 4, 2),
        "evaluate": (300, 0, 0, 1),
        "log": (100, 100, 1, 1),
        "save": (300, 300, 1, 1),
    }.items()
]
RANKS = ["stage=both", "tokenizer=micro", "transformer=micro", "worldmodel=toy", "compute.threads=1"]
RANKS += ["data.validation_every=4", "stage.tokenizer.batch=6", "stage.tokenizer.length=4", "stage.dynamics.batch=4"]
RANKS += ["stage.dynamics.length=7", "schedule.total=2", "schedule.evaluate=2", "schedule.log=1", "schedule.save=2"]
RANKS += ["schedule.clips=3"]


class Played:
    """What a scene has shown so far.

    Attributes:
        prefix: stands before every name from now on.
        numbers: series by name, in the order of the updates; compared on every machine.
        hashes: of tensors, by name; compared where the arithmetic is the same.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self.numbers: dict[str, list[float | None]] = {}
        self.hashes: dict[str, str] = {}

    def row(self, metrics: Mapping[str, Any]) -> None:
        """One more number of each series but those that tell the time; an empty cell of a table is None."""
        golden = {today: name for name, today in RENAMED.items()}
        for name, value in metrics.items():
            if not name.startswith(CLOCKS):
                series = self.numbers.setdefault(self.prefix + golden.get(name, name), [])
                series.append(None if value == "" else float(value))

    def table(self, path: Path) -> None:
        """Every row of a CSV."""
        with path.open() as lines:
            for row in csv.DictReader(lines):
                self.row(row)

    def weigh(self, name: str, tensors: Iterable[Tensor]) -> None:
        """A hash of these tensors in whatever order: names, order and counters (single numbers) do not matter."""
        held = [tensor.detach().cpu().contiguous() for tensor in tensors if tensor.numel() > 1]
        assert held, f"nothing to hash for {name}"
        parts = sorted(
            hashlib.sha256(f"{t.dtype} {tuple(t.shape)}".encode() + t.numpy().tobytes()).hexdigest() for t in held
        )
        self.hashes[self.prefix + name] = hashlib.sha256("".join(parts).encode()).hexdigest()


def small(folder: Path, played: Played) -> None:
    """The CPU preset at smaller batches, on the toy world drawn as large as its tokenizer wants; then with all of
    `experiment=demos`: demonstrations, imitation and proprioception.
    """
    learn(folder, played, words=[], updates=20, episodes=6)
    played.prefix = "demos "
    learn(folder.with_name("demos"), played, words=DEMOS, updates=3, episodes=3)


def learn(folder: Path, played: Played, *, words: list[str], updates: int, episodes: int) -> None:
    """Each part of the model, the agent, a dream and an evaluation."""
    plain = as_plain(compose("train", [*SMALL, *words, f"run_dir={folder}"]))
    run = assemble(Configs.of(plain, trusted=True), folder, info={}, stop=Stop())
    with run.logger:
        run.demonstrate()
        while run.clock.env_steps < run.schedule.prefill:
            run.collector.step(run.agent)
            for episode in run.collector.finished:
                played.row({"prefill/return": float(episode.reward.sum())})
        for part in ("tokenizer", "dynamics"):
            for number in range(updates):
                played.row(run.updater.update(part, number))
            played.weigh(f"weights/{part}", run.model.parameters_of(part).values())
        for number in range(updates):
            learned = run.agent.learn(run.replay, number)
            assert isinstance(learned, DreamMetrics)
            played.row({**learned, "imagined_frames": learned.imagined_frames})
        agent = run.agent.state_dict()
        nets = [name for name in agent if name.startswith(("actor.", "critic."))]
        played.weigh("weights/agent", [agent[name] for name in nets])
        played.weigh("moments/agent", [agent[name] for name in agent if name not in nets])
        played.weigh("buffers", run.model.buffers())
        imagine(run, played)
        for value in run.evaluator.score(run.agent, episodes).returns:
            played.row({"evaluation/return": value})


def imagine(run: Any, played: Played) -> None:
    """One dream of six steps, under given actions."""
    seeds, spec = Seeds(7), run.model.spec
    actions_HBA = torch.rand(6, 4, spec.action_dim, generator=seeds.torch("actions")) * 2 - 1
    dream = Dream(run.model, seeds=seeds)
    start = dream.encode(run.replay.clips(4, spec.burn_in, stream="golden", draw=0))
    path = dream.rollout(
        lambda td, step: (actions_HBA[step], step + 1), start, 0, 6, stream="golden", draw=0, keys=("latent", "pixels")
    ).path
    for key in ("latent", "pixels", "reward", "continue"):
        played.weigh(f"dream/{key}", [path["next", key]])
        for step in path["next", key].unbind(1):
            played.row({f"dream/{key}": float(step.float().square().mean().sqrt())})


def toy(folder: Path, played: Played) -> None:
    """`mbrl train experiment=toy`, cut to 600 env steps in which everything happens."""
    with redirect_stdout(StringIO()) as said:
        code = main(["train", *TOY, f"run_dir={folder}"])
    assert code == 0, said.getvalue()
    trained(folder, played, {"model": "model", "agent": "agent"})
    played.prefix = "eval.csv "
    played.table(folder / "eval.csv")


def ranks(folder: Path, played: Played) -> None:
    """Two pre-training updates of both parts in two processes."""
    data = dataset(folder.with_name("squares"), episodes=8)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mbrl"]
    line = [sys.executable, *two, "pretrain", *RANKS, f"data.folders=[{data}]", f"run_dir={folder}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    trained(folder, played, {"pretrainer": "pretrained"})


def trained(folder: Path, played: Played, parts: Mapping[str, str]) -> None:
    """The table of a run and what its newest checkpoint holds of `parts`, which are hashed under the given names."""
    states = read_newest(folder / "checkpoints").states
    for part, name in parts.items():
        played.weigh(name, tensors(states[part]))
    played.prefix = "metrics.csv "
    played.table(folder / "metrics.csv")


def tensors(node: Any) -> list[Tensor]:
    """Every tensor in nested dicts."""
    if isinstance(node, Mapping):
        return [tensor for value in node.values() for tensor in tensors(value)]
    return [node] if isinstance(node, Tensor) else []


SCENES: dict[str, Callable[[Path, Played], None]] = {"small": small, "toy": toy, "ranks": ranks}


def fingerprint() -> dict[str, Any]:
    """What the bits depend on beside the program: the same here and there means that the bits must be the same."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.split(":", 1) for line in about.split("\n\n")[0].splitlines() if ":" in line]
    cpu = {key.strip(): value.strip() for key, value in lines}
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(cpu.get(key, "?") for key in ("vendor_id", "cpu family", "model")),
        "limits": " ".join(os.environ.get(key, "none") for key in LIMITS),
        "threads": torch.get_num_threads(),
    }


def play(scene: str, file: str) -> None:
    """Plays `scene` in a folder of its own and writes fingerprint, numbers and hashes to `file`."""
    played = Played()
    with tempfile.TemporaryDirectory() as place:
        SCENES[scene](Path(place) / "run", played)
    shown = {"fingerprint": fingerprint(), "numbers": played.numbers, "hashes": played.hashes}
    Path(file).write_text(json.dumps(shown))


if __name__ == "__main__":
    play(*sys.argv[1:])
