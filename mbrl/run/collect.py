"""One real step: the agent acts, the environments move, finished episodes go to replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Agent, Memory, Mode, action_of
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import EnvDataError
from mbrl.replay.clips import ClipReplay
from mbrl.replay.cut import KEPT, episode_of
from mbrl.replay.episode import Episode
from mbrl.run.clock import Clock
from mbrl.run.progress import Progress
from worldmodel.answers import method


class Acts(Protocol):
    """Whoever acts: of an agent (`agents.api.Agent`), this alone."""

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`."""
        ...


def acted(
    agent: Acts, env: RowsEnv, now: TensorDict, memory: Memory, mode: Mode, *, step: int, obs_keys: tuple[str, ...]
) -> tuple[Tensor, Memory]:
    """The actions f32 [E, A] that `env` will execute where `agent` sees `now`, and the agent's memory.

    What an agent keeps under `action` (agents/memory.py: what leads into the next frame) is made the executed action:
    it is what replay holds, and so what the world model is told in training.
    """
    said_EA, memory = action_of(agent, now.select("pixels", "is_init", *obs_keys), memory, mode, step=step)
    try:
        action_EA = env.executed(said_EA)
    except EnvDataError as error:
        raise EnvDataError(f"{method(agent, 'act')}: {error}") from error
    if memory is not None and "action" in memory.keys() and memory["action"].shape == action_EA.shape:  # noqa: SIM118
        memory = memory.copy().set("action", action_EA.to(memory["action"]))
    return action_EA, memory


class Collector:
    """Steps E environments with an agent; every finished episode is in replay, and on disk, when `step` returns.

    Until `prefill` env steps have passed, and until the agent is `ready`, the `prefiller` acts; the agent takes over
    where all rows begin an episode.
    What is open when a run is interrupted is saved as the episodes' numbers and actions: resuming replays them.
    """

    def __init__(
        self,
        env: RowsEnv,
        replay: ClipReplay,
        *,
        clock: Clock,
        progress: Progress,
        prefiller: Agent,
        prefill: int,
        ready: Callable[[], bool],
        obs_keys: tuple[str, ...],
    ) -> None:
        """`obs_keys`: of a real step, what the world model reads; agents see this and pixels (`ModelSpec.obs_keys`)."""
        self.env = env
        self.replay = replay
        self.clock = clock
        self.progress = progress
        self.prefiller = prefiller
        self.prefill = prefill
        self.ready = ready
        self.obs_keys = obs_keys
        self.rows = env.batch_size[0]
        self.memory: Memory = None
        self.prefilling = True
        self.open: list[list[TensorDict]] = [[] for _ in range(self.rows)]  # transitions of each row's open episode
        self.now: TensorDict | None = None  # what the agents see next
        self.finished: list[Episode] = []  # episodes that ended in the newest step

    def step(self, agent: Agent) -> None:
        """One decision in every environment."""
        self.finished = []
        if self.now is None:
            self.now = self.env.reset()
        if self.prefilling and self.clock.env_steps >= self.prefill and self.ready():
            self._hand_over()
        actor = self.prefiller if self.prefilling else agent
        number = self.clock.decisions // self.rows
        action_EA, self.memory = acted(
            actor, self.env, self.now, self.memory, "explore", step=number, obs_keys=self.obs_keys
        )
        stepped, self.now = self.env.step_and_maybe_reset(self.now.set("action", action_EA))
        self._remember(stepped)
        self.clock.decisions += self.rows
        self.clock.env_steps += self.rows * self.env.env_spec.action_repeat

    def _hand_over(self) -> None:
        """The agent takes over where all rows begin an episode; rows that are out of step are made to begin one."""
        if len({len(steps) for steps in self.open}) > 1:
            self.open, self.now = [[] for _ in range(self.rows)], self.env.reset()
        if not any(self.open):
            self.prefilling, self.memory = False, None

    def _remember(self, stepped: TensorDict) -> None:
        for row in range(self.rows):
            self.open[row].append(stepped[row].select(*KEPT, strict=False).clone())
            if bool(stepped["next", "done"][row]):
                episode = episode_of(self.open[row], env=row, number=self.clock.episodes)
                self.open[row] = []
                self.replay.append(episode)
                self.finished.append(episode)
                success = bool(episode.success.any() if self.env.protocol.success == "any" else episode.success[-1])
                self.progress.episode(float(episode.reward.sum()), success if self.env.facts.success else None)
                self.clock.episodes += 1

    def state_dict(self) -> dict[str, Any]:
        """Episode numbers, the open episodes' actions, and the memory of whoever acts."""
        return {
            "started": self.now is not None,
            "prefilling": self.prefilling,
            "episodes": list(self.env.episodes),
            "actions": {
                str(row): torch.stack([s["action"] for s in steps]) for row, steps in enumerate(self.open) if steps
            },
            "memory": {} if self.memory is None else self.memory.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Re-creates the open episodes by repeating their actions in the simulators; exact."""
        self.prefilling = state["prefilling"]
        memory = state.get("memory") or {}
        self.memory = TensorDict(dict(memory), batch_size=[self.rows]) if memory else None
        self.open, self.now = [[] for _ in range(self.rows)], None
        if state["started"]:
            logged = state.get("actions") or {}
            nothing = torch.zeros(0, self.env.env_spec.action_dim)
            actions = [logged.get(str(row), nothing) for row in range(self.rows)]
            for row, steps in enumerate(self.env.replay_actions(state["episodes"], actions)):
                self.open[row] = [step.select(*KEPT, strict=False) for step in steps]
            self.now = self.env.current()
