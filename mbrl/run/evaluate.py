"""How good is an agent: whole episodes on seeds that training never sees; training's randomness is not touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict

from mbrl.envs.rows import RowsEnv
from mbrl.progress import told
from mbrl.replay.cut import KEPT, episode_of
from mbrl.replay.episode import Episode
from mbrl.run.collect import Acts, acted
from mbrl.rundir.result import Episodes


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Attributes:
    episodes: episodes of the first and the last evaluation.
    interim: episodes of those in between, which have starts and goals of their own.
    rows: environments that are stepped side by side.
    weights: whose score the final one is: those at the `last` env step, or the `best` by the interim evaluations.
    """

    episodes: int
    interim: int
    rows: int
    weights: Literal["last", "best"]

    def __post_init__(self) -> None:
        if self.weights not in ("last", "best"):
            raise ValueError(f"weights must be last or best (got {self.weights})")
        for name in ("episodes", "interim", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")


@dataclass(frozen=True)
class Score(Episodes):
    """What an evaluation gave."""

    first: Episode
    """The first of its episodes, whole."""


class Evaluator:
    """Scores agents on the episodes 0, 1, 2, ... of a stream: the same starts and goals each time."""

    def __init__(self, env: RowsEnv, *, obs_keys: tuple[str, ...]) -> None:
        """`obs_keys`: what of a real step the world model reads; agents see this and pixels (`ModelSpec.obs_keys`)."""
        self.env = env
        self.obs_keys = obs_keys
        self.rows = env.batch_size[0]

    def score(self, agent: Acts, episodes: int, *, stream: str = "evaluate") -> Score:
        """Plays `episodes` whole episodes in mode `evaluate`, all rows side by side, as many rounds as it takes.

        Args:
            stream: names the starts and goals; `select` for what is chosen by, so that `evaluate` stays untouched.
        """
        self.env.stream = stream
        rounds, decisions = math.ceil(episodes / self.rows), self.env.env_spec.decisions
        tell = told("decisions of the evaluation")
        played = [self._round(agent, number, lambda done: tell(done, rounds * decisions)) for number in range(rounds)]
        steps_ET = [steps for round_ in played for steps in round_][:episodes]
        rule, knows = self.env.protocol.success, self.env.facts.success
        return Score(
            returns=tuple(float(steps["next", "reward"].sum()) for steps in steps_ET),
            success=tuple(solved(steps, rule) for steps in steps_ET) if knows else None,
            success_last=tuple(solved(steps, "last") for steps in steps_ET) if knows else None,
            success_step=tuple(map(first_success, steps_ET)) if knows else None,
            first=episode_of(list(steps_ET[0].unbind(0)), env=0, number=0),
        )

    @torch.no_grad()
    def _round(self, agent: Acts, number: int, tell: Callable[[int], None]) -> list[TensorDict]:
        """One episode per row: its real steps, batch [T]; all of a step only in the very first episode.

        Args:
            tell: takes how many decisions are behind this evaluation.
        """
        self.env.episodes = [number] * self.rows
        now, memory = self.env.reset(), None
        playing = [True] * self.rows
        steps: list[list[TensorDict]] = [[] for _ in range(self.rows)]
        decision = 0
        while any(playing):
            step = number * self.env.env_spec.decisions + decision  # each round draws its own numbers
            tell(step)
            action_EA, memory = acted(agent, self.env, now, memory, "evaluate", step=step, obs_keys=self.obs_keys)
            stepped, now = self.env.step_and_maybe_reset(now.set("action", action_EA))
            for row in range(self.rows):
                if playing[row]:
                    kept = KEPT if row == number == 0 else (("next", "reward"), ("next", "success"))
                    steps[row].append(stepped[row].select(*kept, strict=False).clone())
                    playing[row] = not bool(stepped["next", "done"][row])
            decision += 1
        return [torch.stack(row) for row in steps]


def solved(steps: TensorDict, rule: str) -> bool:
    """Whether an episode counts as a success: at `any` decision, or at the `last`."""
    success = steps["next", "success"]
    return bool(success.any() if rule == "any" else success[-1])


def first_success(steps: TensorDict) -> int | None:
    """The decision of an episode's first success, counted from 1; None where there is none."""
    at = steps["next", "success"].flatten().nonzero()
    return int(at[0]) + 1 if len(at) else None
