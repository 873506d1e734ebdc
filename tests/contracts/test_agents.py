"""Every agent preset against the Agent protocol, on the toy world: a new YAML is tested at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mbrl.cli.compose import compose, packaged_configs
from mbrl.envs.make import make_envs
from mbrl.run.assemble import Configs, EvalSetup, assemble_eval
from mbrl.run.clock import Clock
from mbrl.run.collect import Collector
from mbrl.run.progress import Progress
from worldmodel.seeds import Seeds

AGENTS = sorted(path.stem for path in (packaged_configs() / "agent").glob("*.yaml"))
SMALL = (
    "agent.horizon=5",
    "agent.batch_size=4",
    "agent.layers=1",
    "agent.units=16",
)  # what the toy model's segment allows


class Rig:
    """A player, its training environments and a replay with a few episodes."""

    def __init__(self, folder: Path, agent: str) -> None:
        words = [
            "experiment=debug",
            "evaluation.rows=2",
            f"agent={agent}",
            *(SMALL if agent.startswith("dreamer") else ()),
        ]
        plain: Any = OmegaConf.to_container(compose("train", words))
        configs = Configs.of(plain, trusted=True)
        self.envs = make_envs(configs.task, configs.protocol, seeds=Seeds(0), stream="env", rows=2)
        self.player: EvalSetup = assemble_eval(configs, self.envs)
        self.player.evaluator.env.reset()
        model = self.player.model
        self.replay = configs.replay.build(
            folder=folder, spec=model.spec, seeds=Seeds(0), tokenize=model.tokenize, version=lambda: 0
        )
        collector = Collector(
            self.envs,
            self.replay,
            clock=Clock(),
            progress=Progress(),
            prefiller=self.player.prefiller,
            prefill=10**6,
            ready=lambda: True,
            reads=model.spec.reads,
        )
        while len(self.replay) < 100:
            collector.step(self.player.agent)


@pytest.fixture(params=AGENTS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return Rig(tmp_path / "replay", request.param)


def test_an_agent_acts_in_bounds_learns_and_leaves_the_world_model_alone(rig: Rig) -> None:
    agent, model = rig.player.agent, rig.player.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    now, memory = rig.envs.reset(), None
    for step in range(3):
        action, memory = agent.act(now.select("pixels", "is_init"), memory, "explore", step=step)
        assert action.shape == (2, 2) and action.dtype == torch.float32
        assert bool((action.abs() <= 1).all())
        _, now = rig.envs.step_and_maybe_reset(now.set("action", action))
    assert all(isinstance(key, str) for key in agent.learn(rig.replay, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_evaluation_draws_nothing_and_the_same_step_explores_the_same_way(rig: Rig) -> None:
    agent, now = rig.player.agent, rig.envs.reset().select("pixels", "is_init")
    for mode in ("evaluate", "explore"):
        torch.manual_seed(1)
        first, _ = agent.act(now, None, mode, step=4)
        torch.manual_seed(2)
        again, _ = agent.act(now, None, mode, step=4)
        assert torch.equal(first, again), mode


def test_a_saved_agent_goes_on_where_it_was(rig: Rig, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    agent = rig.player.agent
    agent.learn(rig.replay, 0)
    saved = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    agent.learn(rig.replay, 1)
    other = Rig(tmp_path / "other", request.node.callspec.params["rig"])
    other.player.agent.load_state_dict(saved)
    other.player.agent.learn(other.replay, 1)
    ours, theirs = agent.state_dict(), other.player.agent.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
