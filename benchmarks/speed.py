"""What a step of training costs: time and counted operations of each of its phases, beside what the machine can do.

`python -m benchmarks.speed [words of mbrl train] updates=8 json=out.json`, for example `transformer=mini
tokenizer=tiny16`. Assembles that run in a folder that is deleted afterwards, fills its replay with one episode in every
environment, and then takes the phases of the loop in turns. Nothing is learned of use.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.machine import SIDE, peak_mib, product_rate, seconds
from mbrl.cli.compose import compose
from mbrl.cli.errors import guarded
from mbrl.cli.train import fitted_to_model
from mbrl.cli.words import path, whole, words
from mbrl.measure.cost import counted
from mbrl.run.assemble import Configs, assemble
from mbrl.run.run import Run
from mbrl.rundir.stop import Stop

KEYS = {"updates": whole(8), "json": path("a file")}
UNGATED = "schedule.gate={episodes:0,reward_r2:0,codes_alive:0}"


@dataclass(frozen=True)
class Phase:
    """One row of the table.

    Attributes:
        ms: median wall time of one decision in every environment, or of one update.
        gflop: operations of one (products and convolutions, two for each multiplication and addition).
        share: gflop per second over what the machine reaches in a product of large float32 matrices.
        every_1000: how many there are in 1000 env steps, once the first fits are done.
        seconds: what these take.
    """

    name: str
    ms: float
    gflop: float
    share: float
    every_1000: float
    seconds: float


def main(args: list[str]) -> int:
    """Measures, prints a table and, with json=PATH, writes it."""
    mine = [word for word in args if word.partition("=")[0] in KEYS]
    own, rest = words("benchmarks.speed", mine, KEYS), [*(word for word in args if word not in mine), UNGATED]
    composed: Any = OmegaConf.to_container(compose("train", rest))
    plain = fitted_to_model(composed, rest, trusted=True)
    protocol = plain["protocol"]
    plain["schedule"]["prefill"] = protocol["decisions"] * protocol["action_repeat"] * plain["compute"]["rows"]
    configs = Configs.of(plain, trusted=True)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(configs, Path(folder), info={}, stop=Stop())
        rate = product_rate(torch.device(configs.compute.device))
        phases = measured(run, configs, rate=rate, updates=own["updates"])
    print(f"{'phase':<12} {'ms':>9} {'GFLOP':>8} {'GFLOP/s':>8} {'share':>6} {'in 1000 env steps':>18} {'seconds':>8}")
    for p in phases:
        print(
            f"{p.name:<12} {p.ms:9.1f} {p.gflop:8.2f} {p.gflop / p.ms * 1e3:8.1f} {p.share:6.2f} {p.every_1000:18.1f}"
            f" {p.seconds:8.1f}"
        )
    peak = peak_mib(torch.device(configs.compute.device))
    print(
        f"{sum(p.seconds for p in phases):.1f} s in 1000 env steps; {rate / 1e9:.1f} GFLOP/s in a product of {SIDE} x "
        f"{SIDE}, {configs.compute.threads} threads; peak {peak:.0f} MiB"
    )
    if own["json"]:
        found = {"words": args, "product_gflops": rate / 1e9, "peak_mib": peak, "phases": [asdict(p) for p in phases]}
        own["json"].write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measured(run: Run, configs: Configs, *, rate: float, updates: int) -> Sequence[Phase]:
    """The phases, each `updates` times in turns with the others, after one of each that warms up and is counted."""
    finished = 0
    while finished < configs.compute.rows:
        finished += len(run.collect())
    numbers = dict.fromkeys((*run.model.spec.parts, "learn"), 0)

    def work_of(name: str) -> Callable[[], object]:
        def once() -> object:
            numbers[name] += 1
            if name == "learn":
                return run.agent.learn(run.drawn, numbers[name])
            return run.updater.update(name, numbers[name])

        return once

    cadences = {name: getattr(configs.schedule, name) for name in numbers}
    works: Mapping[str, Callable[[], object]] = {
        "collect": run.collect,
        **{name: work_of(name) for name, cadence in cadences.items() if cadence.ever},
    }
    operations = {name: counted(work) for name, work in works.items()}
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(updates):
        for name, work in works.items():
            spent[name].append(seconds(work, torch.device(configs.compute.device)))
    steps = configs.compute.rows * configs.protocol.action_repeat
    often = {"collect": 1000 / steps} | {
        name: 1000 * cadences[name].updates / cadences[name].every if cadences[name].every else 0.0
        for name in works.keys() - {"collect"}
    }
    medians = {name: statistics.median(times) for name, times in spent.items()}
    return [
        Phase(
            name=name,
            ms=1e3 * medians[name],
            gflop=operations[name] / 1e9,
            share=operations[name] / medians[name] / rate,
            every_1000=often[name],
            seconds=often[name] * medians[name],
        )
        for name in works
    ]


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
