"""Planners through the whole of `mbrl train`: trained, killed, gone on with, scored; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mbrl.cli.main import main
from mbrl.io.checkpoint import read_newest
from tests.agents.test_planner import picture
from tests.children import moments, run_child
from tests.run.test_resume import assert_same_run

Train = Callable[..., int]

FEW = ["agent.horizon=3", "agent.candidates=6", "agent.elites=2", "agent.iterations=2"]
SHORT = ["schedule.total=126", "evaluation.episodes=2", "evaluation.interim=1", "evaluation.rows=2"]
SHORT += ["protocol.decisions=13", *FEW]
INNER = ["agent.inner=dreamer_toy", "agent.inner.horizon=3", "agent.inner.batch_size=6", "agent.inner.units=16"]
SILENT = "worldmodel.heads={reward:none,bins:0,low:0,high:0,width:0}"
GATED = "schedule.gate={episodes:2,reward_r2:0.1,codes_alive:0}"


def test_kills_change_nothing(tmp_path: Path, train: Train) -> None:
    whole, folder = tmp_path / "uninterrupted", tmp_path / "killed"
    words = [*SHORT, "agent=mppi", *INNER, "agent.proposals=2"]
    assert train(whole, *words) == 0
    for come in moments(folder, 1, seed=3, lines=8):
        train(folder, *words, once=come)
    assert train(folder, *words) == 0
    assert_same_run(whole, folder)
    assert run_child(["eval", f"run={whole}", "episodes=2"]) == 0
    assert len(json.loads((whole / "evaluation.json").read_text())["final"]["returns"]) == 2
    state = read_newest(whole / "checkpoints").states["agent"]
    assert state and all(name.startswith("inner.") for name in state)


def test_a_goal_is_planned_for_without_a_reward_head(tmp_path: Path, train: Train) -> None:
    goal = picture(tmp_path / "goal.png", torch.zeros(3, 32, 32, dtype=torch.uint8))
    words = ["agent=cem", "agent.objective=goal_codes", f"agent.goal={goal}", SILENT]
    assert train(tmp_path / "run", *SHORT, *words) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["final"]["returns"]


def test_it_beats_chance_in_the_world_itself_and_has_no_state(tmp_path: Path, train: Train) -> None:
    folder = tmp_path / "run"
    words = ["worldmodel=oracle", "agent=cem", "agent.horizon=5", "agent.candidates=16", "agent.elites=4"]
    words += ["agent.iterations=2", "schedule.prefill=100", "schedule.total=150", "evaluation.episodes=4"]
    assert train(folder, *words, "evaluation.rows=4", "schedule.evaluate.every=0") == 0
    result = json.loads((folder / "result.json").read_text())
    chance, planned = (result[who]["returns"] for who in ("random", "final"))
    assert min(planned) > max(chance) and sum(planned) > 1.5 * sum(chance)
    assert read_newest(folder / "checkpoints").states["agent"] == {}


# -- what it refuses --------------------------------------------------------------------------------------------------

REFUSED = """
worldmodel=none | needs a world model to dream in (got CEMConfig with
task.name=reach-discrete | a planner refines continuous actions, and this task has a choice of 5
agent.horizon=9 | agent.horizon=9 is further than the world model is trained
agent.objective=goal_pixels | agent.goal must be a PNG with objective=goal_*, else null (got None)
agent.goal=goal.png | agent.goal must be a PNG with objective=goal_*, else null (got
agent.objective=goal_pixels agent.goal=NOWHERE | agent.goal must be a PNG file that can be read (got NOWHERE
agent.objective=goal_pixels agent.goal=TEXT | agent.goal must be a PNG file that can be read (got TEXT
agent.objective=goal_pixels agent.goal=LARGE | agent.goal must have 32 x 32 pixels (got 40 x 30: LARGE)
agent.objective=goal_codes agent.goal=RIGHT worldmodel=oracle | goal_codes needs a world model with codes
agent.objective=pixels | must be one of reward, goal_pixels, goal_codes (got pixels)
SILENT | an agent learns from imagined rewards
agent.objective=goal_pixels agent.goal=RIGHT SILENT GATED | schedule.gate.episodes=2 waits for rewards
agent.inner=random | agent.inner must be an agent with a policy and a value in dreams
agent.proposals=3 | agent.proposals must be 0 without an inner agent (got 3)
agent.inner=dreamer_toy agent.proposals=64 | agent.proposals must be in [0, candidates=64) (got 64)
agent.inner=dreamer_toy agent.objective=goal_pixels agent.goal=RIGHT | agent.proposals must be >= 1 with an inner agent
agent.elites=65 | agent.elites must be in [2, candidates=64] (got 65)
agent.std=0 | agent.std must be > 0 (got 0
agent.noise_correlation=1 | agent.noise_correlation must be in [0, 1) (got 1
agent=mppi agent.min_std=2 | agent.min_std must be in [0, std=1.0] (got 2
agent=mppi agent.temperature=0 | agent.temperature must be > 0 (got 0
"""
ROWS = [[part.strip() for part in line.split(" | ")] for line in REFUSED.strip().splitlines()]


@pytest.mark.parametrize(("line", "say"), ROWS, ids=[line for line, _ in ROWS])
def test_it_refuses_in_one_line(line: str, say: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: str(tmp_path / name.lower()) for name in ("NOWHERE", "TEXT", "LARGE", "RIGHT")}
    Path(places["TEXT"]).write_text("a goal")
    for name, size in (("LARGE", (40, 30)), ("RIGHT", (32, 32))):
        Image.new("RGB", size).save(places[name], format="PNG")
    for name, path in (places | {"SILENT": SILENT, "GATED": GATED}).items():
        line, say = line.replace(name, path), say.replace(name, path)
    words = line.split() if line.startswith("agent=") else ["agent=cem", *line.split()]
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and say in said
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {"run.lock"}, "the mended command may use the folder"
