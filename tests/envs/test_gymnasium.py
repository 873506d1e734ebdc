"""Worlds of Gymnasium: their actions, ends, frames and seeds, and every environment that cannot be one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.envs import check_env_specs

from mbrl.cli.main import main
from mbrl.envs import gymnasium as ours
from mbrl.envs.gymnasium import GymnasiumTask, facts_of, letterboxed
from mbrl.envs.row import rows_of
from mbrl.envs.simulator import symlog
from mbrl.rundir.build import make
from tests.envs.test_workers import assert_equal
from tests.envs.worlds import CONFIGS, config, made

RULES = config("protocol", "gymnasium", image=16)


def world(name: str) -> Any:
    return config("task", "gymnasium", name=name).build(protocol=RULES, rows=1)[0]


class Lamp(gymnasium.Env):  # type: ignore[type-arg]
    """Shows the number that was chosen last as a grey, ends at 7, knows two numbers of any size."""

    action_space: Any = Discrete(3, start=5)
    observation_space: Any = Box(-np.inf, np.inf, (2,))
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    lit: Any = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.lit = action
        return np.array([1000.0, -1000.0]), 1.0, bool(np.all(action == 7)), False, {}

    def render(self) -> Any:
        return np.full((40, 50, 3), self.lit if isinstance(self.action_space, Discrete) else 9, np.uint8)


def registered(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """The id of a lamp with other class attributes."""
    name = f"Lamp{len(gymnasium.registry)}-v0"
    kind = type("Changed", (Lamp,), changes)
    monkeypatch.setitem(gymnasium.registry, name, EnvSpec(name, kind))
    monkeypatch.setattr(GymnasiumTask, "tasks", (*GymnasiumTask.tasks, name))
    facts_of.cache_clear()
    return name


@pytest.mark.parametrize(
    ("name", "action", "discrete", "told"),
    [
        ("CartPole-v1", 2, True, 4),
        ("Pendulum-v1", 1, False, 3),
        ("MountainCar-v0", 3, True, 2),
        ("FrozenLake-v1", 4, True, 0),
        ("Blackjack-v1", 2, True, 0),
    ],
)
def test_an_environment_says_itself_what_it_is_like(name: str, action: int, discrete: bool, told: int) -> None:
    task = config("task", "gymnasium", name=name)
    facts = task.facts(RULES)
    assert (facts.action_dim, facts.discrete, facts.proprio_dim, facts.state_dim) == (action, discrete, told, told)
    assert not facts.success and not facts.expert and not facts.snapshot_dim and not list(task.complaints(RULES))
    (row,) = rows_of(task, RULES, numbers=[0]).values()
    seen = [row.begin(0, 3), row.decide(np.eye(action, dtype=np.float32)[-1])]
    assert all(one.frame["pixels"].shape == (3, 16, 16) and one.frame["proprio"].shape == (told,) for one in seen)
    row.close()


def test_a_pole_that_falls_terminates_and_a_pendulum_is_truncated() -> None:
    (cart,) = rows_of(config("task", "gymnasium"), RULES, numbers=[0]).values()
    seen = cart.begin(0, 0)
    while not seen.ended:
        seen = cart.decide(np.array([0, 1], np.float32))
    assert seen.terminated and not seen.truncated and 5 < seen.decision < 20
    for limit, ends in ((1000, 200), (13, 13)):  # its own time limit, and that of the protocol
        rules = config("protocol", "gymnasium", image=16, decisions=limit)
        (pendulum,) = rows_of(config("task", "gymnasium", name="Pendulum-v1"), rules, numbers=[0]).values()
        seen = pendulum.begin(0, 0)
        while not seen.ended:
            seen = pendulum.decide(np.zeros(1, np.float32))
        assert seen.truncated and not seen.terminated and seen.decision == ends


def test_actions_are_scaled_to_the_bounds_of_a_box() -> None:
    one, alone = world("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    one.reset(7)
    alone.reset(seed=7)
    for action in (0.5, -1.0, 1.0, 0.0):
        observation, reward, *_ = alone.step(np.array([2 * action], np.float32))  # it has 2 Nm
        assert one.step(np.array([action], np.float32)).reward == reward
        np.testing.assert_array_equal(one.state(), observation)
        np.testing.assert_array_equal(one.proprio(), symlog(observation.astype(np.float64)))


def test_lopsided_bounds_of_any_shape_are_reached_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = np.array([[0, -3, 5]], np.float32), np.array([[1, 1, 9]], np.float32)
    name = registered(monkeypatch, action_space=Box(low, high))
    assert facts_of(name).action_dim == 3
    one = world(name)
    one.reset(0)
    for action, wanted in ((-1, low), (1, high), (0, (low + high) / 2)):
        one.step(np.full(3, action, np.float32))
        np.testing.assert_array_equal(one._env.unwrapped.lit, wanted)


def test_an_environment_of_ones_own_is_a_subclass_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "Mine-v0", EnvSpec("Mine-v0", Lamp))

    class Mine(GymnasiumTask):
        tasks = ("Mine-v0",)

    monkeypatch.setattr(sys.modules[__name__], "Mine", Mine, raising=False)
    node = {"_target_": f"{__name__}.Mine", "name": "Mine-v0"}
    assert make(node, "task", trusted=True).facts(RULES).action_dim == 3
    with pytest.raises(ValueError, match=r"task.name must be one of the 1 tasks of Gymnasium \(got 'CartPole-v1'\)"):
        make(node | {"name": "CartPole-v1"}, "task", trusted=True)


def test_a_choice_is_one_hot_and_may_be_counted_from_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    one = world(registered(monkeypatch))
    one.reset(0)
    for place, terminated in ((0, False), (1, False), (2, True)):
        step = one.step(np.eye(3, dtype=np.float32)[place])
        assert step.terminated is terminated and step.success is None
        assert one.draw().max() == 5 + place
    assert np.abs(one.proprio()).max() < 7 and one.state().tolist() == [1000.0, -1000.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 16, 64]))
def test_frames_of_any_size_fill_the_square_in_one_direction(height: int, width: int, side: int) -> None:
    drawn = (letterboxed(np.full((height, width, 3), 200, np.uint8), side) > 0).all(0)
    rows, columns = drawn.any(1).sum(), drawn.any(0).sum()
    assert drawn.sum() == rows * columns and max(rows, columns) == side
    assert abs(rows * max(height, width) - side * height) <= max(height, width), "the aspect is kept to half a pixel"
    for along in (drawn.any(1), drawn.any(0)):
        before, after = along.argmax(), along[::-1].argmax()
        assert 0 <= after - before <= 1, "it is in the middle"


def test_a_smaller_frame_is_an_average_and_keeps_its_colours() -> None:
    frame = np.zeros((4, 8, 3), np.uint8)
    frame[0, 0] = (200, 100, 40)
    small = letterboxed(frame, 4)
    assert small[:, 1, 0].tolist() == [50, 25, 10] and small.sum() == 85


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_equal_seeds_give_equal_episodes_whatever_came_before(name: str) -> None:
    one, other = world(name), world(name)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, facts_of(name).action_dim)).astype(np.float32)

    def played(env: Any, seed: int) -> list[Any]:
        env.reset(seed)
        return [(env.draw().tobytes(), env.step(action), env.state().tobytes()) for action in actions]

    first = played(one, 4)
    assert played(other, 9) != first
    assert played(other, 4) == first and played(one, 4) == first


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_rows_keep_their_specs_and_give_the_same_bits_in_workers(name: str) -> None:
    here, there = (made("gymnasium", name, "gymnasium", rows=2, image=16, workers=workers) for workers in (0, 2))
    check_env_specs(here, seed=0)
    here.episodes = there.episodes = [0, 0]
    nows = here.reset(), there.reset()
    for _ in range(12):
        action = here.action_spec.zero()
        action[:, 0] = 1
        (one, first), (other, second) = (
            env.step_and_maybe_reset(now.set("action", action)) for env, now in zip((here, there), nows, strict=True)
        )
        assert_equal(one, other)
        nows = first, second
    here.close(), there.close()


def test_drawing_is_silent_and_leaves_signals_to_the_run() -> None:
    code = (
        "import os, signal, time; from mbrl.envs.gymnasium import facts_of; facts_of('CartPole-v1')\n"
        "print('drawn', flush=True); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ours.SDL}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONFIGS.parent, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (-15, "drawn\n", "")


def test_mujoco_s_environments_are_drawn_without_a_display() -> None:
    code = """
import numpy as np
from tests.envs.worlds import config
task, rules = config("task", "gymnasium", name="InvertedPendulum-v5"), config("protocol", "gymnasium", image=16)
one, other = task.build(protocol=rules, rows=2)
one.reset(0), other.reset(1)
for _ in range(3):
    one.step(np.ones(1, np.float32))
frame = other.draw()
print((one.draw() != frame).any(), (other.draw() == frame).all(), len(np.unique(frame)) > 9, flush=True)
one.close(), other.close()
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONFIGS.parent, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 3), done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"action_space": MultiDiscrete([2, 3])}, "has MultiDiscrete actions; only Box and Discrete ones can be taken"),
        ({"action_space": Dict({"a": Discrete(2)})}, "has Dict actions; only Box and Discrete ones can be taken"),
        ({"action_space": Box(-1, np.inf, (2,))}, "has actions without bounds, which cannot be scaled from [-1, 1]"),
        ({"action_space": Box(0, 9, (2,), np.int64)}, "has a Box of int64 for actions; only floats can be scaled"),
        (
            {"metadata": {"render_modes": ["ansi"]}},
            "cannot be drawn: its render_modes have no rgb_array (got ['ansi'])",
        ),
        ({"render": lambda self: None}, "cannot be drawn: ValueError: a frame must be uint8 [height, width, 3] (got N"),
        ({"render": lambda self: np.zeros((4, 4))}, "must be uint8 [height, width, 3] (got float64 (4, 4))"),
        ({"reset": lambda self, **how: 1 / 0}, "cannot be drawn: ZeroDivisionError: division by zero"),
        ({"__init__": lambda self, **how: 1 / 0}, "cannot be made: ZeroDivisionError: division by zero"),
    ],
)
def test_an_environment_that_nobody_could_act_in_or_see_is_refused_in_one_line(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registered(monkeypatch, **changes)
    task = GymnasiumTask(name=name)
    (complaint,) = task.complaints(RULES)
    assert complaint.startswith(f"task.name={name} ") and said in complaint and "\n" not in complaint
    with pytest.raises(ValueError) as caught:
        task.facts(RULES)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("name", "package", "mend"),
    [
        ("CartPole-v1", "pygame", 'pip install "gymnasium[classic-control]"'),
        ("LunarLander-v3", "Box2D", 'pip install "gymnasium[box2d]"'),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_remedy(
    name: str, package: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts_of.cache_clear()
    for module in [module for module in sys.modules if module.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    (complaint,) = GymnasiumTask(name=name).complaints(RULES)
    assert complaint.startswith(f"task.name={name} cannot be ") and mend in complaint and "\n" not in complaint


BASE = ["train", "experiment=debug", "task=gymnasium"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.name=CartPole"], "tasks of Gymnasium (got 'CartPole'); nearest: CartPole-v1"),
        (["task.name=os:CartPole-v1"], "tasks of Gymnasium (got 'os:CartPole-v1'); nearest:"),
        (["protocol=default"], "one view (got protocol default); use protocol=gymnasium"),
        (["protocol.flip=rot180"], "protocol.flip none in Gymnasium"),
        (["protocol.zero_action_first=true"], "protocol.zero_action_first must be false in Gymnasium"),
        (["protocol.success_bonus=1"], "protocol.success_bonus=1.0 needs a success, which CartPole-v1 knows none of"),
        (["task.name=Blackjack-v1", "worldmodel.proprio=true"], "reads proprio, which Blackjack-v1 does not tell"),
        (["worldmodel=oracle"], "worldmodel reads snapshot, which CartPole-v1 does not tell"),
        (["demos=5"], "demos=5 needs a scripted expert, and CartPole-v1 has none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = [] if words[0].startswith("protocol=") else ["protocol=gymnasium", "protocol.decisions=100"]
    assert main([*BASE, *protocol, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "CartPole-v1",
            ["worldmodel.proprio=true", "worldmodel.max_frames=6", "fit.dynamics.length=6", "agent.horizon=4"],
        ),
        ("Pendulum-v1", ["worldmodel=none", "agent=random"]),
    ],
)
def test_an_agent_is_trained_in_it_and_ranked_by_returns(name: str, words: list[str], tmp_path: Path) -> None:
    small = ["protocol=gymnasium", "protocol.image=32", "protocol.decisions=30", f"run_dir={tmp_path / 'run'}"]
    assert main([*BASE, f"task.name={name}", *small, *words, "schedule.total=150", "evaluation.rows=2"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"] == name and result["final"]["success"] is None and len(result["final"]["returns"]) == 3
    signs = {one > 0 for one in result["final"]["returns"]}
    assert signs == {name == "CartPole-v1"}, "a pole that stands is worth 1, a pendulum that hangs below 0"
