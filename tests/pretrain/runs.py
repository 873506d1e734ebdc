"""Command lines of small pre-training runs, and what such a run has left behind."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbrl.io.checkpoint import read_newest
from tests.children import laid

Pretrain = Callable[..., int]

SMALL = [
    "tokenizer=micro",
    "transformer=micro",
    "worldmodel=toy",
    "compute.threads=1",
    "data.validation_every=4",
    "stage.tokenizer.batch=6",
    "stage.tokenizer.length=4",
    "stage.dynamics.batch=4",
    "stage.dynamics.length=7",
    "schedule.total=8",
    "schedule.evaluate=4",
    "schedule.log=2",
    "schedule.save=2",
    "schedule.clips=3",
]
CLOCKS = ("wall_s", "perf/")
"""Columns that tell the time of day, and nothing else."""


def words(stage: str, data: Path, folder: Path, *overrides: str) -> list[str]:
    """A command line; settings of a part that the stage does not train are left out."""
    trained = dict.fromkeys(("tokenizer", "adaptation", "published_adversarial"), ("tokenizer",))
    trained["dynamics"] = ("dynamics",)
    parts = trained.get(stage, ("tokenizer", "dynamics"))
    small = [word for word in SMALL if not word.startswith("stage.") or word.split(".")[1] in parts]
    return ["pretrain", *laid(f"stage={stage}", f"data.folders=[{data}]", f"run_dir={folder}", *small, *overrides)]


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """Every value of nested dicts, by its path."""
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in leaves(value, f"{name}/{key}").items()}
    return {name: node}


def state_of(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds of weights, moments and counters."""
    states = read_newest(folder / "checkpoints").states
    return leaves({part: states[part] for part in ("pretrainer", "run")})


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its clocks."""
    with path.open() as lines:
        return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in csv.DictReader(lines)]
