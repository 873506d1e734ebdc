"""The configuration of pre-training: its own dataclasses, and what all of them must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mbrl.rundir.build import make_group
from mbrl.rundir.machine import check_device, check_matmul
from mbrl.rundir.sharing import pieces
from worldmodel.processes import Sharding
from worldmodel.spec import Part

GROUPS = ("stage", "data", "tokenizer", "transformer", "worldmodel", "schedule", "compute", "logger")
PARTS = ("tokenizer", "dynamics")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What is owed when, in updates (with two parts in training, one of each).

    Attributes:
        total: updates of the run.
        evaluate: every so many (and at the beginning and the end) validation clips are measured; 0: never.
        log: every so many a row of metrics.csv.
        save: every so many a checkpoint and `model/`.
        clips: validation clips that are measured; always the same.
    """

    total: int
    evaluate: int
    log: int
    save: int
    clips: int

    def __post_init__(self) -> None:
        for name in ("total", "log", "save", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.evaluate < 0:
            raise ValueError(f"evaluate must be >= 0 (got {self.evaluate})")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where it runs; `torchrun --nproc-per-node=N -m mbrl pretrain ...` gives each of N processes its rows of a batch.

    Attributes:
        device: `cpu`, `cuda` (with torchrun: the GPU of each process) or `cuda:<n>`.
        threads: torch threads of each process; results are exact for a fixed number of threads only.
        matmul: products of float32 matrices on a CPU: `ieee`, or `bf16`, faster (mbrl/rundir/machine.py).
        sharding: `ddp`: each process holds the whole model; `fsdp2`: a share of the transformer's weights, gradients
            and moments (stage=dynamics), for sizes that one GPU cannot hold.
    """

    device: str
    threads: int
    matmul: str
    sharding: Sharding

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be >= 1 (got {self.threads})")
        if self.sharding not in ("ddp", "fsdp2"):
            raise ValueError(f"sharding must be ddp or fsdp2 (got {self.sharding})")
        check_device(self.device)
        check_matmul(self.matmul)


@dataclass(frozen=True, kw_only=True)
class Configs:
    """All config dataclasses of a pre-training run, checked one by one and together.

    Attributes:
        init: a folder of weights to begin from; None: fresh ones.
        load: which parts of it.
        actions: whether the model is told the actions of the data.
    """

    seed: int
    keep: int
    init: str | None
    load: tuple[Part, ...]
    actions: bool
    groups: Mapping[str, Any]

    @classmethod
    def of(cls, plain: Mapping[str, Any], *, trusted: bool, world: int = 1) -> Configs:
        """From plain containers. Raises: ValueError naming the key."""
        groups = {name: make_group(plain, name, trusted=trusted) for name in GROUPS}
        for complaint in complaints(plain, groups, world):
            raise ValueError(complaint)
        return cls(
            seed=plain["seed"],
            keep=plain["keep"],
            init=plain["init"],
            load=tuple(plain["load"]),
            actions=plain["actions"],
            groups=groups,
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return self.groups[name]
        except KeyError as error:
            raise AttributeError(name) from error


def complaints(plain: Mapping[str, Any], groups: Mapping[str, Any], world: int) -> Iterator[str]:
    """Every disagreement: the key, its value, what it is up against, and a mend."""
    if not 0 <= plain["seed"] < 2**31:
        yield f"seed must be in [0, 2^31) (got {plain['seed']})"
    if plain["keep"] < 2:
        yield f"keep must be >= 2: the newest checkpoint may be the damaged one (got {plain['keep']})"
    if not plain["load"] or any(part not in PARTS for part in plain["load"]):
        yield f"load must be some of {', '.join(PARTS)} (got {plain['load']}); for example load=[tokenizer]"
    yield from models(groups)
    yield from pieces("stage", groups, world)
    if groups["compute"].sharding == "fsdp2" and groups["stage"].tokenizer is not None:
        yield "compute.sharding=fsdp2 shares the transformer: it needs stage=dynamics; use compute.sharding=ddp"
    yield from schedules(groups)


def models(groups: Mapping[str, Any]) -> Iterator[str]:
    """Tokenizer, transformer and world model fit together, and need nothing but clips."""
    model, tokenizer, transformer = groups["worldmodel"], groups["tokenizer"], groups["transformer"]
    if not hasattr(model, "losses"):
        yield "worldmodel must be one with weights to train, for example worldmodel=cpu"
        return
    if model.embedding == "levels" and tokenizer.quantizer != "fsq":
        yield (
            f"worldmodel.embedding=levels needs tokenizer.quantizer=fsq, whose codes have levels "
            f"(got {tokenizer.quantizer}); set worldmodel.embedding=table"
        )
    if model.proprio:
        yield "worldmodel.proprio must be false in pre-training: videos do not tell what a robot knows of itself"
    needed, there = tokenizer.layout.length(model.max_frames), transformer.positions
    if needed > there:
        yield (
            f"worldmodel.max_frames={model.max_frames} needs {needed} token positions, transformer.positions={there}; "
            f"lower worldmodel.max_frames to {max(0, (there - tokenizer.layout.prelude) // tokenizer.layout.stride)}"
        )
    for part, config in groups["stage"].parts.items():
        if part == "dynamics" and not model.burn_in < config.length <= model.max_frames:
            yield (
                f"stage.dynamics.length={config.length} must be > worldmodel.burn_in={model.burn_in} and <= "
                f"worldmodel.max_frames={model.max_frames}"
            )
        if part == "tokenizer" and config.length < 2:
            yield f"stage.tokenizer.length must be >= 2, a frame and the next (got {config.length})"


def schedules(groups: Mapping[str, Any]) -> Iterator[str]:
    """No update is made with a learning rate of nothing."""
    total = groups["schedule"].total
    for part, config in groups["stage"].parts.items():
        if config.optim.decay_steps and config.optim.decay_steps < total:
            yield (
                f"stage.{part}.optim.decay_steps={config.optim.decay_steps} must be 0 or >= schedule.total={total}: "
                "behind it the learning rate is 0"
            )
