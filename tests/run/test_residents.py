"""Other residents through the whole of `mbrl train`: models without codes or with masked ones, none, nested agents."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mbrl.cli.main import main
from mbrl.io.checkpoint import read_newest
from tests.children import moments
from tests.run.test_resume import assert_same_run, leaves

Train = Callable[..., int]

OWN = f"--config-dir={Path(__file__).parents[1] / 'residents' / 'configs'}"
KILLS, LINES = 3, 9
TOGETHER = ("agent=mixed", "agent.other=critic", "agent.other.units=8", "schedule.total=200")


def columns(path: Path) -> set[str]:
    """Columns of a table that hold any number."""
    with path.open() as lines:
        return {name for row in csv.DictReader(lines) for name, value in row.items() if value}


@pytest.mark.parametrize(
    "words",
    [
        ("worldmodel=conv", "schedule.total=200"),
        ("worldmodel=none", "agent=critic", "schedule.total=200"),
        ("worldmodel=masked", "schedule.total=200"),
        TOGETHER,
    ],
    ids=["a model without codes", "no model", "frames in two passes", "an agent in an agent"],
)
def test_kills_change_nothing(tmp_path: Path, train: Train, words: tuple[str, ...]) -> None:
    whole, folder = tmp_path / "uninterrupted", tmp_path / "killed"
    assert train(whole, *words, OWN) == 0
    killed = [train(folder, *words, OWN, once=come) < 0 for come in moments(folder, KILLS, seed=5, lines=LINES)]
    assert any(killed)
    assert train(folder, *words, OWN) == 0
    assert_same_run(whole, folder)


def test_a_model_without_codes_is_fitted_dreamt_in_measured_and_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "experiment=debug", "worldmodel=conv", "schedule.total=150", f"run_dir={run}", OWN]) == 0
    table = columns(run / "metrics.csv")
    assert {
        "dynamics/reward",
        "agent/critic_loss",
        "heldout/reward_rmse_5",
        "heldout/surprise",
        "heldout/return_imagined",
    } <= table
    assert not [name for name in table if "code" in name or name.startswith(("tokenizer/", "probe/"))]
    assert "openloop/l1_last" in columns(run / "eval.csv") and list((run / "videos").glob("openloop-*.gif"))
    assert json.loads((run / "run.json").read_text())["world_model"] == "conv"
    assert main(["eval", f"run={run}", "episodes=2", OWN]) == 0


def test_without_a_model_nothing_is_measured_of_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "worldmodel=none",
        "agent=critic",
        "schedule.total=150",
        "schedule.gate={episodes:0,reward_r2:0,codes_alive:0}",
    ]
    assert main(["train", "experiment=debug", *words, f"run_dir={run}", OWN]) == 0
    table = columns(run / "metrics.csv")
    assert "agent/q_loss" in table
    assert not [name for name in table if name.startswith(("heldout/", "probe/", "replay/", "dynamics/", "tokenizer/"))]
    before = read_newest(run / "checkpoints").states
    assert before["model"] == {} and not any(
        isinstance(one, torch.Tensor) for one in leaves(before["updater"]).values()
    )
    assert main(["eval", f"run={run}", "episodes=2", OWN]) == 0


def test_agents_in_an_agent_keep_weights_and_memory_apart(tmp_path: Path, train: Train) -> None:
    assert train(tmp_path / "run", *TOGETHER, "agent.inner=critic", "worldmodel=none", OWN) == 0
    agent = read_newest(tmp_path / "run" / "checkpoints").states["agent"]
    inner, other = ({name for name in agent if name.startswith(f"{who}.")} for who in ("inner", "other"))
    assert inner | other == agent.keys() and {name.partition(".")[2] for name in inner} == {
        name.partition(".")[2] for name in other
    }
    assert agent["inner.actor.0.weight"].shape == (32, 192) and agent["other.actor.0.weight"].shape == (8, 192)
    assert agent["inner.q_optim.updates"] == agent["other.q_optim.updates"] == 6
