"""Who acts when data are collected: an expert, an expert that trembles, chance, or the agent of a training run.

Actions are functions of (seed, task, policy, number of the episode) and of what is seen: not of earlier episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.envs.rows import RowsEnv
from mbrl.run.collect import acted
from mbrl.rundir.build import make
from worldmodel.seeds import Seeds

NAMES = ("scripted", "random", "noisy")
CORRELATION = 0.8
"""Of the noise of `noisy` from one decision to the next: white noise hardly moves an arm, a lasting push does."""


class Acting(Protocol):
    """One who acts in one row."""

    def act(self, now: TensorDict, *, number: int, decision: int) -> Tensor:
        """Action f32 [1, A] for the real step `now` [1], decision `decision` of episode `number`."""
        ...


class Expert:
    """The world's scripted expert plus noise: e' = 0.8 e + 0.6 noise * N(0, 1), of deviation `noise`; 0 is none."""

    def __init__(self, env: RowsEnv, *, noise: float, seeds: Seeds) -> None:
        """Raises: ValueError if there is no expert to ask."""
        if not env.facts.expert:
            raise ValueError(f"{env.task} has no scripted expert: collect with policy=random")
        self._env, self._noise, self._seeds = env, noise, seeds
        self._last: Tensor = torch.zeros(1)

    def act(self, now: TensorDict, *, number: int, decision: int) -> Tensor:
        """See `Acting`."""
        action_1A = self._env.expert_actions()
        if self._noise:
            fresh = torch.randn(action_1A.shape, generator=self._seeds.torch("noise", number, decision)) * self._noise
            kept = (1 - CORRELATION**2) ** 0.5
            self._last = CORRELATION * self._last + kept * fresh if decision else fresh
            action_1A = action_1A + self._last
        return action_1A


class Still:
    """Zero actions."""

    def __init__(self, env: RowsEnv) -> None:
        self._action_dim = env.env_spec.action_dim

    def act(self, now: TensorDict, *, number: int, decision: int) -> Tensor:
        """See `Acting`."""
        return torch.zeros(1, self._action_dim)


class Played:
    """An agent of `agents.api`, with its memory."""

    def __init__(self, agent: Any, env: RowsEnv, *, obs_keys: tuple[str, ...] = (), past_decisions: int = 0) -> None:
        """`past_decisions`: those that the agent has behind it: schedules of its noise go on from there."""
        self._agent, self._env, self._obs_keys, self._decisions = agent, env, obs_keys, env.env_spec.decisions
        self._past_decisions = past_decisions
        self._memory: Any = None

    @torch.no_grad()
    def act(self, now: TensorDict, *, number: int, decision: int) -> Tensor:
        """See `Acting`."""
        if not decision:
            self._memory = None
        step = self._past_decisions + number * self._decisions + decision  # each episode draws numbers of its own
        action_1A, self._memory = acted(
            self._agent, self._env, now, self._memory, "explore", step=step, obs_keys=self._obs_keys
        )
        return action_1A


def build(policy: Mapping[str, Any], env: RowsEnv, *, random: Mapping[str, Any], own: Path | None = None) -> Acting:
    """Who a data set's card describes.

    Args:
        policy: `policy`, `seed`, and `noise` or `run`, as in `Card.policies`.
        random: the configuration of the agent that acts by chance (configs/agent/random.yaml).
        own: the user's folder of configurations, whose classes a run may name.
    Raises: ValueError where there is no expert, or the run is none.
    """
    name = policy["policy"]
    seeds = Seeds(Seeds(policy["seed"]).integer(f"data/{env.task}/{name}"))
    if name == "random":
        config: Any = make(random, "agent", trusted=False)
        return Played(config.build(env_spec=env.env_spec, seeds=seeds), env)
    if name == "run":
        return agent_of(Path(policy["run"]), env, own=own)
    return Expert(env, noise=policy.get("noise", 0.0), seeds=seeds)


def agent_of(folder: Path, env: RowsEnv, *, own: Path | None = None) -> Played:
    """The agent of a run's newest checkpoint, with the weights that `mbrl eval` scores.

    Raises: ValueError if the run is of another task or protocol than `env`, or has classes that are not ours.
    """
    from mbrl.run.restore import configs_of, read_trained

    configs = configs_of(folder, own=own, device="cpu")
    if (configs.task.name, configs.protocol) != (env.task, env.protocol):
        raise ValueError(
            f"policy={folder} learned {configs.task.name} under protocol {configs.protocol.name}: "
            f"it cannot act in {env.task} under protocol {env.protocol.name}; give its own task and protocol"
        )
    trained = read_trained(folder, configs)
    trained.eval_setup.evaluator.env.close()  # only its agent plays here
    agent, model = trained.eval_setup.agent, trained.eval_setup.model
    return Played(agent, env, obs_keys=model.spec.obs_keys, past_decisions=trained.decisions)
