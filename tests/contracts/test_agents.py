"""Every agent preset against the Agent protocol, on the toy world: a new YAML is tested at once, whatever its name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from agents.api import Agent
from mbrl.cli.compose import compose, packaged_configs
from mbrl.envs.make import make_envs
from mbrl.run.assemble import Configs, EvalSetup, assemble_eval
from mbrl.run.clock import Clock
from mbrl.run.collect import Collector
from mbrl.run.progress import Progress
from worldmodel.seeds import Seeds

OWN = Path(__file__).parents[1] / "residents" / "configs"
AGENTS = sorted(path.stem for folder in (packaged_configs(), OWN) for path in (folder / "agent").glob("*.yaml"))
SMALL = {"batch_size": 4, "horizon": 5, "layers": 1, "units": 16, "channels": 4, "rollouts": 4, "initial": 2}
"""The most that these fields of a YAML keep, wherever in it they stand."""
DECISIONS = 100


def shrunk(node: Any) -> Any:
    """A plain config with its `SMALL` fields made small."""
    if not isinstance(node, dict):
        return node
    return {key: min(value, SMALL[key]) if key in SMALL else shrunk(value) for key, value in node.items()}


class Rig:
    """An agent, its training environments and a replay with a few episodes; the model reads proprioception too."""

    def __init__(self, folder: Path, agent: str) -> None:
        words = ["experiment=debug", "evaluation.rows=2", "worldmodel.proprio=true", "demos=1", f"agent={agent}"]
        plain: Any = OmegaConf.to_container(compose("train", words, OWN))
        plain["agent"] = shrunk(plain["agent"])
        self.configs = Configs.of(plain, trusted=True)
        self.envs = make_envs(self.configs.task, self.configs.protocol, seeds=Seeds(0), stream="env", rows=2)
        self.eval_setup = self.played()
        self.model = self.eval_setup.model
        self.replay = self.configs.replay.build(
            folder=folder,
            spec=self.model.spec,
            seeds=Seeds(0),
            tokenize=self.model.tokenize,
            version=lambda: 0,
            demos=1,
        )
        collector = Collector(
            self.envs,
            self.replay,
            clock=Clock(),
            progress=Progress(),
            prefiller=self.eval_setup.prefiller,
            prefill=DECISIONS,
            ready=lambda: True,
            obs_keys=self.model.spec.obs_keys,
        )
        while len(self.replay) < DECISIONS:
            collector.step(self.eval_setup.prefiller)

    def played(self) -> EvalSetup:
        """The same agent and model as at the beginning."""
        eval_setup = assemble_eval(self.configs, self.envs)
        eval_setup.evaluator.env.reset()
        return eval_setup

    def seen(self) -> TensorDict:
        """What an agent is shown of a first real step."""
        return self.envs.reset().select("pixels", "is_init", *self.model.spec.obs_keys)


@pytest.fixture(params=AGENTS, scope="module")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    precision = torch.backends.mkldnn.matmul.fp32_precision
    yield Rig(tmp_path_factory.mktemp("replay"), request.param)
    torch.backends.mkldnn.matmul.fp32_precision = precision


@pytest.fixture
def agent(rig: Rig) -> Agent:
    """As it was built."""
    return rig.played().agent


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_agent_acts_in_bounds_learns_and_leaves_the_world_model_alone(rig: Rig, agent: Agent) -> None:
    before, fresh = copied(rig.model.state_dict()), copied(agent.state_dict())
    now, memory = rig.envs.reset(), None
    for step in range(3):
        action, memory = agent.act(
            now.select("pixels", "is_init", *rig.model.spec.obs_keys), memory, "explore", step=step
        )
        assert action.shape == (2, 2) and action.dtype == torch.float32
        assert bool((action.abs() <= 1).all())
        _, now = rig.envs.step_and_maybe_reset(now.set("action", action))
    assert memory is None or all(isinstance(value, torch.Tensor) for value in memory.values(True, leaves_only=True))
    metrics = agent.learn(rig.replay, 0)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert same(rig.model.state_dict(), before)
    assert bool(fresh) != same(agent.state_dict(), fresh), "who has a state learns"


def test_evaluation_draws_nothing_and_the_same_step_explores_the_same_way(rig: Rig, agent: Agent) -> None:
    seen = rig.seen()
    for mode in ("evaluate", "explore"):
        torch.manual_seed(1)
        first, _ = agent.act(seen, None, mode, step=4)
        torch.manual_seed(2)
        again, _ = agent.act(seen, None, mode, step=4)
        assert torch.equal(first, again), mode


def test_a_saved_agent_goes_on_where_it_was(rig: Rig, agent: Agent) -> None:
    agent.learn(rig.replay, 0)
    saved = copied(agent.state_dict())
    agent.learn(rig.replay, 1)
    other = rig.played().agent
    other.load_state_dict(saved)
    assert same(other.state_dict(), saved)
    other.learn(rig.replay, 1)
    assert same(other.state_dict(), agent.state_dict())
