"""Planners: action sequences are refined in a dream, the first action is taken, then all is planned anew.

* CEM, the cross-entropy method: PlaNet (Hafner et al. 2019, arXiv:1811.04551), algorithm 2.
* MPPI, model-predictive path integral control: Williams et al. 2017 (arXiv:1707.02342), with elites and a least
  deviation as in TD-MPC2 (Hansen et al. 2024, arXiv:2310.16828).
* Goal images: visual planning as in VP2 (Tian et al. 2023, arXiv:2304.13723).

TorchRL's CEMPlanner and MPPIPlanner are not used: they copy what was seen for every candidate, begin every search at 0,
and draw from the global generator.

E environments, B of them whose windows are filled alike, J candidates, P proposals among them, K elites, N = B * J,
H horizon, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from tensordict import TensorDict
from torch import Tensor

from agents.api import (
    Agent,
    Dream,
    Memory,
    Metrics,
    Mode,
    ModelBasedAgent,
    Replay,
    action_of,
    build,
    metrics_of,
)
from agents.distributions import check_finite
from agents.memory import LatentFilter
from agents.parts import load, state_of
from agents.returns import lambda_returns
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, Rollout

Objective = Literal["reward", "goal_pixels", "goal_codes"]
SEEN: dict[Objective, str] = {"reward": "reward", "goal_pixels": "pixels", "goal_codes": "codes"}
"""What of each imagined state an objective looks at."""


@runtime_checkable
class InnerAgent(Agent, ModelBasedAgent, Protocol):
    """An agent that learns in dreams."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(ABC):
    """What CEM and MPPI have in common.

    Attributes:
        horizon: H, decisions that are planned.
        candidates: J, action sequences tried in an iteration.
        elites: K, the best of them, to which the next iteration is fitted.
        iterations: I, of a decision.
        std: deviation of the first iteration's candidates from the last plan (actions span [-1, 1]).
        noise_correlation: of a candidate's deviations at successive decisions, in [0, 1).
        noise: deviation of the Gaussian noise on executed actions in training.
        gamma: discount per planned decision, in (0, 1].
        objective: `reward`: discounted rewards as far as the episode goes on, and the inner agent's value behind them;
            `goal_pixels`: nearness of the imagined frames to a goal image, pixel by pixel; `goal_codes`: nearness of
            their code vectors to the goal's, for which no frame is decoded.
        goal: the goal image, a PNG of the protocol's size; null with objective=reward.
        proposals: P, candidates acted out by the inner agent's policy in each decision; 0 without `inner`.
        inner: an agent that learns in dreams (`agents.api.ModelBasedAgent`), with its policy and its value; null: none,
            and nothing learns.
    """

    horizon: int
    candidates: int
    elites: int
    iterations: int
    std: float
    noise_correlation: float
    noise: float
    gamma: float
    objective: Objective
    goal: str | None
    proposals: int
    inner: Any

    def __post_init__(self) -> None:
        for name, right, text in (
            ("horizon", self.horizon >= 1, ">= 1"),
            ("iterations", self.iterations >= 1, ">= 1"),
            ("elites", 2 <= self.elites <= self.candidates, f"in [2, candidates={self.candidates}]"),
            ("std", self.std > 0, "> 0"),
            ("noise_correlation", 0 <= self.noise_correlation < 1, "in [0, 1)"),
            ("noise", self.noise >= 0, ">= 0"),
            ("gamma", 0 < self.gamma <= 1, "in (0, 1]"),
            ("objective", self.objective in SEEN, f"one of {', '.join(SEEN)}"),
            ("goal", bool(self.goal) is (self.objective != "reward"), "a PNG with objective=goal_*, else null"),
            ("proposals", 0 <= self.proposals < self.candidates, f"in [0, candidates={self.candidates})"),
            ("proposals", not self.proposals or self.inner is not None, "0 without an inner agent"),
            (
                "proposals",
                self.proposals or self.inner is None or self.objective == "reward",
                f">= 1 with an inner agent and objective={self.objective}, which its value says nothing about",
            ),
        ):
            if not right:
                raise ValueError(f"{name} must be {text} (got {getattr(self, name)})")

    @abstractmethod
    def refit(self, elite_BKHA: Tensor, score_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation f32 [B, H, A] of the next iteration's candidates."""

    def build(
        self, *, env_spec: EnvSpec, dream: Dream, seeds: Seeds, device: str, runtime: Mapping[str, Any]
    ) -> Planner:
        """A planner in `dream`. Raises: ValueError in one line for what it cannot do."""
        spec = dream.spec
        if env_spec.discrete:
            raise ValueError(
                f"a planner refines continuous actions, and this task has a choice of {env_spec.action_dim}"
            )
        spec.require_horizon(self.horizon)
        if self.objective == "reward" and not spec.rewards:
            raise ValueError(
                "agent.objective=reward needs a world model that predicts rewards; give agent.objective=goal_pixels"
            )
        if self.objective == "goal_codes" and "codes" not in spec.latent:
            raise ValueError(
                "agent.objective=goal_codes needs a world model with codes in its latent "
                f"(got {', '.join(spec.latent)}); give agent.objective=goal_pixels"
            )
        inner = None if self.inner is None else build(self.inner, runtime)
        if inner is not None and not isinstance(inner, InnerAgent):
            raise ValueError(
                f"agent.inner must be an agent with a policy and a value in dreams (got {type(self.inner).__name__})"
            )
        goal = None if self.goal is None else read_goal(Path(self.goal), side=spec.image).to(device)
        return Planner(self, dream=dream, seeds=seeds, device=device, goal=goal, inner=inner)


@dataclass(frozen=True, kw_only=True)
class CEMConfig(PlannerConfig):
    """The cross-entropy method: elites count alike."""

    def refit(self, elite_BKHA: Tensor, score_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the elites."""
        std_BHA, mean_BHA = torch.std_mean(elite_BKHA, 1, correction=0)
        return mean_BHA, std_BHA


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(PlannerConfig):
    """Path integrals: elites count by their scores.

    Attributes:
        temperature: lambda, in units of the objective: an elite weighs exp((score - best score) / lambda). TD-MPC2 and
            VP2 multiply by its inverse.
        min_std: the deviation does not fall below it; `std`, with which it begins, is the most.
    """

    temperature: float
    min_std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0 (got {self.temperature})")
        if not 0 <= self.min_std <= self.std:
            raise ValueError(f"min_std must be in [0, std={self.std}] (got {self.min_std})")

    def refit(self, elite_BKHA: Tensor, score_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and deviation of the elites."""
        weight_BK11 = (score_BK / self.temperature).softmax(1)[..., None, None]
        mean_BHA = (weight_BK11 * elite_BKHA).sum(1)
        variance_BHA = (weight_BK11 * (elite_BKHA - mean_BHA[:, None]) ** 2).sum(1)
        return mean_BHA, variance_BHA.sqrt().clamp(self.min_std, self.std)


class Planner:
    """Acts on what it finds in dreams; learns what its inner agent learns, if it has one.

    Memory: that of `LatentFilter`, and `plan` f32 [E, H, A], and the inner agent's under `inner`.
    """

    def __init__(
        self,
        config: PlannerConfig,
        *,
        dream: Dream,
        seeds: Seeds,
        device: str,
        goal: Tensor | None,
        inner: InnerAgent | None,
    ) -> None:
        self._config, self._dream, self._seeds, self._device = config, dream, seeds, device
        self._goal = goal  # u8 [3, side, side]
        self._inner = inner
        self._parts = {} if inner is None else {"inner": inner}
        self._filter = LatentFilter(dream)
        apart_HH = torch.arange(config.horizon)[:, None] - torch.arange(config.horizon)
        correlation_HH = torch.tensor(config.noise_correlation).pow(apart_HH.abs())  # of a first-order process
        self._colour_HH = torch.linalg.cholesky(correlation_HH).to(device)

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`. Mode `evaluate` takes the plan's first action, `explore` adds noise to it."""
        before, now = memory, self._filter.see(td, memory)
        plan_EHA = torch.zeros(len(td), self._config.horizon, now["action"].shape[-1], device=td["is_init"].device)
        if before is not None:  # warm start: the last plan, one decision on; nothing where an episode begins
            plan_EHA[:, :-1] = torch.where(td["is_init"].reshape(-1, 1, 1), 0.0, before["plan"][:, 1:])
        goals = self._goals(now)  # before the starts, whose keys and values then stay where their forks find them
        for rows, start in self._filter.starts(now, device=self._device):
            goal = None if goals is None else goals[rows.to(goals.device)]
            plan_EHA[rows] = self._refined(plan_EHA[rows].to(self._device), start, goal, step).to(plan_EHA.device)
        action_EA = plan_EHA[:, 0]
        if mode == "explore":
            noise_EA = torch.randn(action_EA.shape, generator=self._seeds.torch("planner/noise", step))
            action_EA = (action_EA + self._config.noise * noise_EA.to(action_EA.device)).clamp(-1, 1)
        now.update({"action": action_EA, "plan": plan_EHA})
        if self._inner is not None:  # it sees the real steps, so that its schedules count the run's decisions
            own = None if before is None else before["inner"].copy().set("action", before["action"])  # as executed
            _, now["inner"] = action_of(self._inner, td, own, mode, step=step)
        return action_EA, now

    def _refined(self, mean_BHA: Tensor, start: TensorDict, goal: Tensor | None, step: int) -> Tensor:
        """The mean to which the last iteration's elites led, f32 [B, H, A]."""
        config, (rows, horizon, actions) = self._config, mean_BHA.shape
        if config.objective == "goal_pixels":
            self._dream.decode(start)  # the context's decoding, once for all of its forks
        std_BHA, proposal_BPHA = torch.full_like(mean_BHA, config.std), self._proposals(start, step)
        forks = self._dream.fork(start, config.candidates)  # what was seen is read once for all candidates
        for iteration in range(config.iterations):
            draw = step * config.iterations + iteration
            generator = self._seeds.torch("planner/actions", draw, device=self._device)
            shape = (rows, config.candidates - config.proposals, horizon, actions)
            noise_BJHA = self._colour_HH @ torch.randn(shape, generator=generator, device=self._device)
            drawn_BJHA = (mean_BHA[:, None] + std_BHA[:, None] * noise_BJHA).clamp(-1, 1)
            plan_BJHA = torch.cat([drawn_BJHA, proposal_BPHA], 1)
            score_BJ = self._scores(plan_BJHA.flatten(0, 1), forks, goal, draw).unflatten(0, (rows, -1))
            best_BK, index_BK = score_BJ.topk(config.elites, 1)
            elite_BKHA = plan_BJHA.gather(1, index_BK[..., None, None].expand(-1, -1, horizon, actions))
            mean_BHA, std_BHA = config.refit(elite_BKHA, best_BK)
        check_finite("scores of plans", score_BJ)
        return mean_BHA

    def _proposals(self, start: TensorDict, step: int) -> Tensor:
        """What the inner agent's policy would do, f32 [B, P, H, A]."""
        config, rows = self._config, len(start)
        if self._inner is None or not config.proposals:
            return torch.empty(rows, 0, config.horizon, self._dream.spec.action_dim, device=self._device)
        policy = self._inner.dream_policy(self._seeds.torch("planner/policy", step, device=self._device))
        forks = self._dream.fork(start, config.proposals)
        found = self._dream.rollout(policy, forks, None, config.horizon, stream="planner/proposals", draw=step)
        return found.path["action"].unflatten(0, (rows, config.proposals))

    # -- what is planned for -------------------------------------------------------------------------------------------

    def _scores(self, plan_NHA: Tensor, forks: TensorDict, goal: Tensor | None, draw: int) -> Tensor:
        """Sum over h of gamma^h times what is wanted of imagined state h, f32 [N]; more is better."""
        config = self._config
        found = self._dream.rollout(
            lambda td, h: (plan_NHA[:, h], h + 1),
            forks,
            0,
            config.horizon,
            stream="planner/frames",
            draw=draw,
            keys=(SEEN[config.objective],),
        )
        if goal is None:
            wanted_NH, continue_NH = (found.path["next", key][..., 0] for key in ("reward", "continue"))
        else:
            wanted_NH = -distances(found, SEEN[config.objective], goal)
            continue_NH = torch.ones_like(wanted_NH)  # an end is no escape from the distance
        value_NH = torch.zeros_like(wanted_NH)
        if goal is None and self._inner is not None:
            value_NH[:, -1] = self._inner.value(found.state["latent"])
        return lambda_returns(wanted_NH, value_NH, config.gamma * continue_NH, 1.0)[:, 0]

    def _goals(self, memory: TensorDict) -> Tensor | None:
        """What imagined states are compared with, in each row: the goal's pixels in [0, 1], or its code vectors."""
        if self._goal is None:
            return None
        rows, spec = len(memory), self._dream.spec
        if self._config.objective == "goal_pixels":
            return (self._goal.float() / 255).expand(rows, -1, -1, -1)
        # codes stand for a frame beside its context: the goal is read as the frame behind this episode's
        clip: dict[str, Tensor] = {key: memory[key][:, -1:] for key in spec.obs_keys}
        clip |= {"context": memory["context"], "pixels": self._goal.expand(rows, 1, -1, -1, -1)}
        clip["action"] = torch.zeros(rows, 1, spec.action_dim)
        clip = {key: value.to(self._device) for key, value in clip.items()}
        state = self._dream.encode(TensorDict(clip, batch_size=[rows]))
        return spec.part_of(state["latent"], "codes")

    def learn(self, replay: Replay, update: int) -> Metrics:
        """The inner agent's update."""
        return {} if self._inner is None else metrics_of(self._inner, replay, update)

    def state_dict(self) -> dict[str, Tensor]:
        """The inner agent's, its names behind `inner.`."""
        return state_of(self._parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`. Raises: ValueError if a name is missing, unknown or has another shape."""
        load(self._parts, state)


def distances(found: Rollout, key: str, goal_B: Tensor) -> Tensor:
    """Mean squared difference between what imagined states show of `key` and the goal [B, ...], f32 [N, H]."""
    goal_N = goal_B.repeat_interleave(len(found.state) // len(goal_B), 0)
    seen = found.path["next", key].unbind(1)  # one frame after the other: all of them as floats are large
    return torch.stack([(as_float(seen_N) - goal_N).square().flatten(1).mean(1) for seen_N in seen], 1)


def as_float(value: Tensor) -> Tensor:
    """Frames in [0, 1], all else as it is."""
    return value.float() / 255 if value.dtype == torch.uint8 else value


def read_goal(path: Path, *, side: int) -> Tensor:
    """A goal image, u8 [3, side, side].

    Raises: ValueError in one line if it is not there, no PNG, or of another size.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (side, side):
                width, height = image.size
                raise ValueError(f"agent.goal must have {side} x {side} pixels (got {width} x {height}: {path})")
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"agent.goal must be a PNG file that can be read (got {path}: {error})") from error
