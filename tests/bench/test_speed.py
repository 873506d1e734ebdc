"""The benchmark of a training step measures what a run would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.speed import main
from mbrl.cli.compose import compose
from mbrl.cli.train import fitted_to_model
from mbrl.measure.cost import cost_of
from mbrl.run.assemble import Configs

SMALL = ["experiment=debug", "schedule.dynamics.every=50", "schedule.dynamics.updates=3"]


def test_each_phase_has_its_time_and_the_operations_of_its_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    assert main([*SMALL, "updates=2", f"json={out}"]) == 0
    found = json.loads(out.read_text())
    phases = {phase["name"]: phase for phase in found["phases"]}
    assert list(phases) == ["collect", "tokenizer", "dynamics", "learn"]
    assert all(phase["ms"] > 0 and phase["gflop"] > 0 and phase["share"] > 0 for phase in phases.values())
    assert phases["dynamics"]["every_1000"] == 60
    assert phases["dynamics"]["seconds"] == pytest.approx(60 * phases["dynamics"]["ms"] / 1e3)
    plain: Any = fitted_to_model(OmegaConf.to_container(compose("train", SMALL)), SMALL, trusted=True)
    update = cost_of(Configs.of(plain, trusted=True).groups).update
    assert phases["tokenizer"]["gflop"] * 1e9 == pytest.approx(update["tokenizer"], rel=0.01)
    assert capsys.readouterr().out.count("\n") == 6
    assert found["product_gflops"] > 0 and found["words"] == [*SMALL, "updates=2", f"json={out}"]


def test_without_a_world_model_the_agent_is_measured_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=debug", "agent=drqv2_cpu", "worldmodel=none", "updates=1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["collect", "learn"]
