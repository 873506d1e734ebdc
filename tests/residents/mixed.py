"""An agent that holds two others: a share of the training episodes is played by `other`, all else by `inner`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Agent, Memory, Metrics, Mode, Replay, build
from worldmodel.seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """Attributes:
    share: of the training episodes that `other` plays.
    """

    inner: Any
    other: Any
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1] (got {self.share})")

    def build(self, *, runtime: Mapping[str, Any], seeds: Seeds) -> Mixed:
        return Mixed(self.share, seeds, inner=build(self.inner, runtime), other=build(self.other, runtime))


class Mixed:
    """Who plays is drawn where an episode begins. Memory: `other_plays` bool [E, 1], and each agent's own by name."""

    def __init__(self, share: float, seeds: Seeds, **agents: Agent) -> None:
        self.share, self.seeds, self.agents = share, seeds, agents

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        after, actions = TensorDict({}, batch_size=td.batch_size), {}
        for name, agent in self.agents.items():
            before = None if memory is None else memory.get(name, None)
            actions[name], own = agent.act(td, before, mode, step=step)
            if own is not None:
                after[name] = own
        if mode == "evaluate":
            return actions["inner"], after
        plays_E1 = torch.rand(len(td), 1, generator=self.seeds.torch("mixed", step)) < self.share
        if memory is not None:
            plays_E1 = torch.where(td["is_init"], plays_E1, memory["other_plays"])
        return torch.where(plays_E1, actions["other"], actions["inner"]), after.set("other_plays", plays_E1)

    def learn(self, replay: Replay, update: int) -> Metrics:
        other = self.agents["other"].learn(replay, update)
        return {
            **{f"other/{name}": value for name, value in other.items()},
            **self.agents["inner"].learn(replay, update),
        }

    def state_dict(self) -> dict[str, Tensor]:
        held = {name: agent.state_dict() for name, agent in self.agents.items()}
        return {f"{name}.{key}": tensor for name, state in held.items() for key, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, agent in self.agents.items():
            inside = {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            agent.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in inside.items()})
