"""What a task says before anything is built is what its built worlds show."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mbrl.envs import metaworld, pixels, toy
from mbrl.envs.row import Row, rows_of
from mbrl.envs.simulator import EnvDataError, Expert, SimStep, Snapshots, Stateful, WorldFacts
from tests.envs.test_metaworld import NoPictures
from tests.envs.worlds import CONFIGS, COUNTING, Recorder, config, recorded


def assert_shown(task: Any, protocol: Any) -> None:
    """Facts against a world: an episode with a clumsy and one with a clever actor."""
    facts: WorldFacts = task.facts(protocol)
    assert not list(task.complaints(protocol))
    (row,) = rows_of(task, protocol, numbers=[0], snapshots=facts.snapshot_dim > 0).values()
    world: Any = row.simulator
    world.reset(0)
    assert isinstance(world, Stateful) is (facts.state_dim > 0), task.name
    assert world.state().shape == (facts.state_dim,) and world.proprio().shape == (facts.proprio_dim,)
    assert isinstance(world, Snapshots) is (facts.snapshot_dim > 0)
    assert world.snapshot().shape == (facts.snapshot_dim,), task.name
    assert isinstance(world, Expert) is facts.expert and world.expert().shape == (facts.action_dim,)
    one_hot = world.expert().sum() == 1 and set(world.expert().tolist()) == {0.0, 1.0}
    assert one_hot or not facts.discrete
    assert all(len(world.state()[part]) == part.stop - part.start for part in facts.parts.values())
    step = world.step(np.zeros(facts.action_dim, np.float32))
    assert (step.success is not None) is facts.success
    world.close()


@pytest.mark.parametrize("name", toy.TASKS)
def test_the_facts_of_the_toy_world_are_what_it_shows(name: str) -> None:
    task, protocol = config("task", "toy", name=name), config("protocol", "toy")
    assert_shown(task, protocol)
    (row,) = rows_of(task, protocol, numbers=[0]).values()
    seen = row.begin(0, 0)
    while not seen.ended:
        seen = row.decide(row.expert())
    assert seen.terminated is task.facts(protocol).terminates


@pytest.mark.metaworld
def test_the_facts_of_every_meta_world_task_are_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    for name in metaworld.TASKS:
        assert_shown(config("task", "metaworld", name=name), config("protocol", "default"))


def test_facts_and_complaints_import_no_simulator() -> None:
    code = (
        "import sys; from mbrl.envs.metaworld import MetaWorldTask; from mbrl.envs.protocol import *\n"
        "protocol = ProtocolConfig(name='x', image=64, camera=None, flip='none', quality='fast', action_repeat=2,\n"
        "    decisions=300, success_bonus=0.0, success='any', zero_action_first=False, deviations=())\n"
        "task = MetaWorldTask(name='reach-v3'); print(task.facts(protocol).state_dim)\n"
        "print(len(list(task.complaints(protocol))), 'mujoco' in sys.modules, 'metaworld' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    assert ran.stdout.split() == ["42", "2", "False", "False"]


@pytest.mark.parametrize(
    ("promise", "kind"),
    [
        ({"state_dim": 2}, "Stateful"),
        ({"proprio_dim": 1}, "Stateful"),
        ({"snapshot_dim": 3}, "Snapshots"),
        ({"expert": True}, "Expert"),
    ],
)
def test_a_world_that_lacks_what_its_facts_promise_is_refused(promise: dict[str, Any], kind: str) -> None:
    class Bare:
        def reset(self, seed: int) -> None: ...
        def step(self, action: Any) -> SimStep:
            return SimStep(0.0)

        def draw(self) -> Any: ...
        def close(self) -> None: ...

    facts = WorldFacts(action_dim=1, **promise)
    with pytest.raises(EnvDataError, match=f"the facts of bare promise what {kind} has, and Bare has not"):
        Row(Bare(), facts, config("protocol", "toy"), task="bare", number=0)


def test_a_world_that_terminates_against_its_facts_is_refused() -> None:
    ends = Recorder(
        {1: SimStep(0.0, terminated=True, success=False)}, facts=dataclasses.replace(COUNTING, terminates=False)
    )
    env = recorded([ends])
    now = env.reset()
    with pytest.raises(EnvDataError, match=r"terminated must be False, .* \(got True\) in row 0 of recorder"):
        env.step(now.set("action", env.expert_actions()))


def test_a_world_that_shows_success_against_its_facts_is_refused() -> None:
    env = recorded([Recorder(facts=dataclasses.replace(COUNTING, success=False))])
    now = env.reset()
    with pytest.raises(EnvDataError, match=r"success must be None, .* \(got False\) in row 0 of recorder"):
        env.step(now.set("action", env.expert_actions()))
