"""The Control Suite: what its table says, equal seeds, exact moments, its own rewards, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchrl.envs import check_env_specs

from mbrl.cli.main import main
from mbrl.envs import dmc, pixels
from mbrl.envs.row import rows_of
from mbrl.envs.simulator import symlog
from tests.envs.test_metaworld import NoPictures
from tests.envs.test_workers import assert_equal
from tests.envs.worlds import CONFIGS, config, made

VISION = config("protocol", "dmc_vision", quality="fast")
DOMAINS = sorted({name.split("-")[0] for name in dmc.TASKS})
MOMENTS = ("acrobot-swingup", "finger-turn_hard", "fish-swim", "hopper-hop", "humanoid_CMU-run", "lqr-lqr_6_2")
MOMENTS += ("manipulator-insert_peg", "point_mass-hard", "reacher-hard", "stacker-stack_2", "walker-walk")
DRAWN = ("quadruped-escape", "swimmer-swimmer6")  # a terrain, and a lamp over the target


def worlds(name: str, rows: int = 2, protocol: Any = VISION) -> list[Any]:
    return config("task", "dmc", name=name).build(protocol=protocol, rows=rows)


def noise(name: str, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (9, dmc.TASKS[name][0])).astype(np.float32)


def goes_on(world: Any, actions: Any) -> list[Any]:
    """All that can be seen of a world while it goes on."""
    seen: list[Any] = []
    for action in actions:
        step = world.step(action)
        seen.append((step, world.proprio().tobytes(), world.snapshot().tobytes(), world.draw().tobytes()))
    return seen


@pytest.mark.parametrize("name", dmc.TASKS)
def test_every_task_is_known_before_anything_is_built(name: str) -> None:
    task = config("task", "dmc", name=name)
    facts = task.facts(VISION)
    assert not list(task.complaints(VISION)) and not facts.success and not facts.discrete and not facts.expert
    assert min(facts.action_dim, facts.proprio_dim, facts.state_dim) > 0
    assert facts.snapshot_dim >= facts.state_dim and facts.terminates is (name[:3] == "lqr")


def test_what_is_asked_before_imports_no_simulator() -> None:
    code = (
        "import sys, yaml; from mbrl.envs.dmc import DMCTask; from mbrl.rundir.build import make\n"
        "protocol = make(yaml.safe_load(open('configs/protocol/dmc_vision.yaml')), 'protocol', trusted=False)\n"
        "task = DMCTask(name='walker-walk'); print(task.facts(protocol).action_dim)\n"
        "print(len(list(task.complaints(protocol))))\n"
        "print('mujoco' in sys.modules, 'dm_control' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    assert ran.stdout.split() == ["6", "0", "False", "False"]


def test_the_table_has_the_names_of_the_suite() -> None:
    assert [tuple(name.split("-")) for name in dmc.TASKS] == list(dmc.suite().ALL_TASKS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_table_has_the_sizes_of_the_suite(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    names = [name for name in dmc.TASKS if name.startswith(f"{domain}-")]
    for name in names[:1] + names[-1:] if domain == "dog" else names:  # a dog takes seconds to compile
        (row,) = rows_of(config("task", "dmc", name=name), VISION, numbers=[0], snapshots=True).values()
        frame = row.begin(0, 3).frame
        sizes = tuple(len(frame[key]) for key in ("proprio", "state", "snapshot"))
        assert (row.simulator._reach.size, *sizes) == dmc.TASKS[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*MOMENTS, *DRAWN])
def test_a_moment_goes_on_in_another_world_as_in_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in DRAWN:
        monkeypatch.setattr(pixels, "Painter", NoPictures)
    one, other = worlds(name)
    other.reset(6)
    for steps in (0, 1, 9):  # 0: right after a reset
        one.reset(5)
        goes_on(one, noise(name)[:steps])
        moment, told, frame = one.snapshot(), one.proprio(), one.draw()
        seen = goes_on(one, noise(name, 1))
        goes_on(other, noise(name, 2))
        assert other.snapshot().tobytes() != moment.tobytes()
        for world in (other, one):  # another world with a past of its own, and the same one rewound
            world.restore(moment)
            assert world.snapshot().tobytes() == moment.tobytes() and world.proprio().tobytes() == told.tobytes()
            assert (world.draw() == frame).all()
            assert goes_on(world, noise(name, 1)) == seen, f"after {steps} steps"
    one.close()


@pytest.mark.parametrize("name", ["cheetah-run", "quadruped-escape"])
def test_equal_seeds_give_equal_episodes_whatever_came_before(name: str) -> None:
    one, other = worlds(name)
    one.reset(4)
    first = one.snapshot()
    other.reset(9)
    goes_on(other, noise(name, 1))
    other._data.qvel[:] = 1e12  # the physics breaks down
    assert other.step(noise(name)[0]).unstable
    other.reset(4)
    assert other.snapshot().tobytes() == first.tobytes()
    assert goes_on(other, noise(name)) == goes_on(one, noise(name))
    other.reset(5)
    assert other.snapshot().tobytes() != first.tobytes()
    one.close()


@pytest.mark.parametrize("name", ["walker-walk", "fish-swim", "lqr-lqr_2_1"])
def test_rewards_and_observations_are_those_of_dm_control_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    (world,) = worlds(name, rows=1)
    alone = dmc.suite().load(*name.split("-"), task_kwargs={"random": 0})  # the random model of lqr, too
    alone.task.random.seed(7)
    world.reset(7)
    alone.reset()
    for action in noise(name):
        step, known = world.step(action), alone.step(action)
        told = np.concatenate([np.ravel(part) for part in known.observation.values()])
        assert step.reward == pytest.approx(known.reward, abs=1e-12)
        np.testing.assert_allclose(world.proprio(), symlog(told), atol=1e-5)
        np.testing.assert_allclose(world.state(), alone.physics.get_state(), rtol=1e-6)


def test_episodes_are_truncated_and_only_a_system_at_rest_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    (row,) = rows_of(config("task", "dmc"), dataclasses.replace(VISION, decisions=3), numbers=[0]).values()
    seen = [row.begin(0, 0), *(row.decide(action) for action in noise("walker-walk")[:3])]
    assert [(one.terminated, one.truncated) for one in seen] == [(False, False)] * 3 + [(False, True)]
    (world,) = worlds("lqr-lqr_2_1", rows=1)
    world.reset(0)
    assert not world.step(np.zeros(1, np.float32)).terminated
    world._data.qpos[:] = world._data.qvel[:] = 0
    world._physics.forward()
    assert world.step(np.zeros(1, np.float32)).terminated


def test_actions_are_scaled_to_the_actuators_limits_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    quadruped, lqr = worlds("quadruped-walk", rows=1)[0], worlds("lqr-lqr_6_2", rows=1)[0]
    for value, yaw, lift in ((-1.0, -1.0, -1.0), (0.0, 0.0, 0.05), (1.0, 1.0, 1.1)):
        quadruped.reset(0), lqr.reset(0)
        quadruped.step(np.full(12, value, np.float32))
        np.testing.assert_allclose(quadruped._data.ctrl[:2], [yaw, lift], atol=1e-7)
        lqr.step(np.full(2, value, np.float32))
        assert (lqr._data.ctrl == value).all()


def test_a_domain_may_be_seen_from_another_camera() -> None:
    numbers = {name: worlds(name, rows=1)[0]._painter._camera.fixedcamid for name in ("walker-walk", "quadruped-run")}
    assert numbers == {"walker-walk": 0, "quadruped-run": 2}
    named = dataclasses.replace(VISION, camera=config("protocol", "mwm").camera)
    with pytest.raises(ValueError, match=r"camera must be a free camera or one of side, back \(got corner4\)"):
        worlds("walker-walk", rows=1, protocol=named)


def test_worlds_with_one_painter_are_drawn_on_their_own_terrain() -> None:
    one, other = worlds("quadruped-escape")
    one.reset(1)
    frame = one.draw()
    other.reset(2)
    other._data.qpos[:] = one._data.qpos
    other._physics.forward()
    assert (other.draw() != frame).mean() > 0.2 and (one.draw() == frame).all()
    one.close()


def test_the_rows_keep_their_specs_and_give_the_same_bits_in_workers() -> None:
    how: dict[str, Any] = {"rows": 2, "decisions": 3, "quality": "fast", "snapshots": True}
    here, there = (made("dmc", "walker-walk", "dmc_vision", workers=workers, **how) for workers in (0, 2))
    check_env_specs(here, seed=0)
    here.episodes = there.episodes = [0, 0]

    def zeros(env: Any) -> Any:
        now, steps = env.reset(), []
        for _ in range(4):
            stepped, now = env.step_and_maybe_reset(now.set("action", env.action_spec.zero()))
            steps.append(stepped.clone())
        return steps

    for one, other in zip(zeros(here), zeros(there), strict=True):
        assert_equal(one, other)
    here.close(), there.close()


def test_the_suite_needs_no_opengl_of_its_own_no_mazes_and_no_old_numpy() -> None:
    code = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("labmaze", "tree", "requests", "tqdm"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
from mbrl.envs.dmc import suite
import os
env = suite().load("quadruped", "escape")
from dm_control import _render
print(len(env.reset().observation), _render.BACKEND, os.environ.get("MUJOCO_GL"))
"""
    for chosen in (None, "egl"):
        environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
        environment |= {"MUJOCO_GL": chosen} if chosen else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=CONFIGS.parent, env=environment, capture_output=True, text=True
        )
        assert done.stdout.split() == ["7", "off", str(chosen)], done.stderr


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    task, found = config("task", "dmc"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dm_control" else found(name))
    (said,) = task.complaints(VISION)
    assert said == f"walker-walk needs the package dm-control, which is not installed; type: {dmc.INSTALL}"
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]
    (pinned,) = [text.partition(";")[0] for text in project["dependencies"] if text.startswith("dm-control")]
    assert f" {pinned} " in dmc.INSTALL


BASE = ["train", "experiment=debug", "task=dmc"]
SMALL = [
    "protocol=dmc_vision",
    "protocol.image=32",
    "protocol.decisions=25",
    "protocol.quality=fast",
    "task.name=cartpole-swingup",
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.name=walker_walk"], "of the 51 tasks of the Control Suite (got 'walker_walk'); nearest: walker-walk"),
        (["protocol=default"], "protocol.camera must be a camera of the model in the Control Suite (got protocol def"),
        (["protocol=toy"], "must be a camera of the model in the Control Suite (got protocol toy); use protocol=dmc_v"),
        (
            ["protocol.action_repeat=4"],
            "1000 simulator steps in the Control Suite (got 2000); lower protocol.decisions",
        ),
        (["protocol.zero_action_first=true"], "protocol.zero_action_first must be false in the Control Suite"),
        (["protocol.success_bonus=1"], "protocol.success_bonus=1.0 needs a success, which walker-walk knows none of"),
        (["protocol.camera.number=-1"], "protocol.camera.number must be >= 0 (got -1)"),
        (["demos=5"], "demos=5 needs a scripted expert, and walker-walk has none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = [] if words[0].startswith("protocol=") else ["protocol=dmc_vision"]
    assert main([*BASE, *protocol, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "run").exists()


def test_a_dreamer_is_trained_in_it_and_ranked_by_returns(tmp_path: Path) -> None:
    words = ["worldmodel.proprio=true", "schedule.total=150", "evaluation.rows=2", f"run_dir={tmp_path / 'run'}"]
    assert main([*BASE, *SMALL, *words]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"] == "cartpole-swingup" and result["protocol"]["name"] == "dmc_vision"
    assert result["final"]["success"] is None and len(result["final"]["returns"]) == 3
    assert all(0 <= one <= 50 for one in result["final"]["returns"]), "25 decisions of two steps with rewards in 0..1"
