"""The instrument that asks whether a model knows which actions are better."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.baselines import RandomConfig
from benchmarks.dreams import compare, judge, played
from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.toy import ToyTask
from mbrl.oracle import OracleModel, OracleModelConfig
from mbrl.replay.episode import Episode
from worldmodel.seeds import Seeds

TOY = ProtocolConfig(
    name="toy", image=16, camera=None, flip="none", quality="fast", action_repeat=1, decisions=12, success_bonus=0.0,
    success="any", zero_action_first=False, deviations=(),
)  # fmt: skip


class Contrary(OracleModel):
    """Knows the states, and takes every action for its opposite."""

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        return super().imagine(state, -action_BA, generator)


@pytest.fixture(scope="module")
def world() -> tuple[OracleModel, OracleModel, list[Episode]]:
    """A simulator, a model that takes every action for its opposite, and episodes."""
    task = ToyTask(name="reach")
    env = make_envs(task, TOY, seeds=Seeds(0), stream="dreams", rows=1, snapshots=True)
    agent = RandomConfig(hold=2, noise=0.1).build(env_spec=env.env_spec, seeds=Seeds(0))
    simulator = OracleModelConfig().build(task=task, protocol=TOY, env_spec=env.env_spec)
    contrary = Contrary(task.build(protocol=TOY, rows=1)[0], TOY, env.env_spec)
    return simulator, contrary, played(agent, env, simulator.spec.obs_keys, 3)


def test_the_simulator_judges_itself_perfect_and_a_contrary_model_worse_than_nothing(
    world: tuple[OracleModel, OracleModel, list[Episode]],
) -> None:
    simulator, contrary, episodes = world
    found = compare(simulator, simulator, episodes, starts=6, count=5, seeds=Seeds(1))
    assert found.reward_r2_first == found.reward_r2_last == 1
    assert math.isclose(found.within, 1, abs_tol=1e-5) and math.isclose(found.gain, 1, abs_tol=1e-5)
    found = compare(contrary, simulator, episodes, starts=6, count=5, seeds=Seeds(1))
    assert found.within < -0.3 and found.gain < 0


def test_a_model_that_knows_states_but_not_actions_is_found_out() -> None:
    generator = torch.Generator().manual_seed(0)
    state_M11 = 5 * torch.randn(200, 1, 1, generator=generator)
    effect_MSH, guess_MSH = (torch.randn(200, 6, 4, generator=generator) for _ in range(2))
    found = judge(state_M11 + effect_MSH, state_M11 + guess_MSH)
    assert found.across > 0.9 and found.reward_r2_last > 0.8, "which is all that R2 shows"
    assert abs(found.within) < 0.1 and abs(found.gain) < 0.1
