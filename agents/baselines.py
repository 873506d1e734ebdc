"""Agents that do not learn: random actions (also the first data of every run) and scripted experts.

Knows no particular world: an expert is a callable handed over at build time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Memory, Metrics, Mode, Replay
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

Expert = Callable[[Mode], Tensor]
"""The expert's actions f32 [E, A] in the worlds that are acted in now (those of training differ from evaluation's)."""

_STREAMS: dict[Mode, str] = {"explore": "explore", "evaluate": "evaluate-actions"}


class _Unlearning:
    """The half of the Agent protocol that needs weights; there are none."""

    def learn(self, replay: Replay, update: int) -> Metrics:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: actions are functions of the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises: ValueError for anything but {}."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state to load (got {', '.join(sorted(state))})")


def _check_noise(noise: float) -> None:
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be in 0..1 (got {noise})")


def _uniform(rows: int, spec: EnvSpec, generator: torch.Generator) -> Tensor:
    """Uniform actions f32 [rows, A]: in [-1, 1], or one-hot."""
    if spec.discrete:
        choice_E = torch.randint(spec.action_dim, (rows,), generator=generator)
        return torch.nn.functional.one_hot(choice_E, spec.action_dim).float()
    return torch.rand(rows, spec.action_dim, generator=generator) * 2 - 1


def _disturbed(action_EA: Tensor, noise: float, spec: EnvSpec, generator: torch.Generator) -> Tensor:
    """Gaussian noise of this deviation, clipped; discrete: each row's choice is replaced with this probability."""
    if not spec.discrete:
        return (action_EA + noise * torch.randn(action_EA.shape, generator=generator)).clamp(-1, 1)
    other_EA = _uniform(len(action_EA), spec, generator)
    replaced_E1 = torch.rand(len(action_EA), 1, generator=generator) < noise
    return torch.where(replaced_E1, other_EA, action_EA)


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """Attributes:
    hold: decisions for which a drawn action is kept. Held actions move an arm much farther than white noise does.
    noise: deviation of the Gaussian noise that is added at every decision; for discrete actions the probability that
        the held choice is replaced.
    """

    hold: int
    noise: float

    def __post_init__(self) -> None:
        if self.hold < 1:
            raise ValueError(f"hold must be >= 1 (got {self.hold})")
        _check_noise(self.noise)

    def build(self, *, env_spec: EnvSpec, seeds: Seeds) -> Random:
        """For environments of this kind."""
        return Random(self, env_spec, seeds)


class Random(_Unlearning):
    """Uniform actions, held and disturbed as configured; a function of the step alone."""

    def __init__(self, config: RandomConfig, env_spec: EnvSpec, seeds: Seeds) -> None:
        self.config, self.env_spec, self.seeds = config, env_spec, seeds

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """Actions f32 [E, A]."""
        stream, begin = _STREAMS[mode], step - step % self.config.hold
        action_EA = _uniform(td.batch_size[0], self.env_spec, self.seeds.torch(stream, begin))
        generator = self.seeds.torch(stream, step, 1)  # a draw of its own: the first one may be this step's too
        return _disturbed(action_EA, self.config.noise, self.env_spec, generator), memory


@dataclass(frozen=True, kw_only=True)
class ScriptedConfig:
    """Attributes:
    noise: as in `RandomConfig`; 0 is the expert itself.
    """

    noise: float

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def build(self, *, env_spec: EnvSpec, seeds: Seeds, expert: Expert) -> Scripted:
        """For environments of this kind; `expert` answers for the worlds of the given mode."""
        return Scripted(self, env_spec, seeds, expert)


class Scripted(_Unlearning):
    """Does what the world's own expert does; reads the simulator's state through it, so it is no fair baseline."""

    def __init__(self, config: ScriptedConfig, env_spec: EnvSpec, seeds: Seeds, expert: Expert) -> None:
        self.config, self.env_spec, self.seeds, self.expert = config, env_spec, seeds, expert

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """Actions f32 [E, A].

        Raises: ValueError if the expert speaks for another number of rows than `td` has.
        """
        action_EA = self.expert(mode)
        if action_EA.shape[0] != td.batch_size[0]:
            raise ValueError(f"expert must act in {td.batch_size[0]} rows (got {action_EA.shape[0]})")
        generator = self.seeds.torch(_STREAMS[mode], step)
        return _disturbed(action_EA, self.config.noise, self.env_spec, generator), memory
