"""The same starts and the same actions in the simulator and in the model, side by side; `verdict.py` judges.

From real moments several sequences of actions are imagined, half of them the agent's own in its dreams, and tried in
the simulator (`mbrl.oracle`). A world that cannot go back to a moment has one sequence from each: what was done then.
"""

# M starts, S sequences of actions from each, H imagined frames, A action, K codes of a frame, R episodes at rest

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Agent, ModelBasedAgent, Policy
from mbrl.measure.instruments import beside, gone_on, policy_of
from mbrl.replay.cut import clips_of, real_frames
from mbrl.replay.episode import Episode
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.evaluation.metrics import mse
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

KINDS = ("trained", "random")
"""Who played the episode that a start is a moment of: the agent with its noise, or chance."""
PER_EPISODE = 3
"""Starts in one episode at most: moments of one episode have the goal, and much of the scene, in common."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A moment of a real episode that somebody (one of `KINDS`) played; frame `newest` is the last that is shown."""

    kind: str
    episode: Episode
    newest: int

    def clip(self, spec: ModelSpec) -> TensorDict:
        """What a model of this spec is shown, batch [1]."""
        return clips_of(self.episode, spec, np.array([self.newest - spec.burn_in + 1]), length=spec.burn_in)

    def followed(self, horizon: int) -> TensorDict:
        """What was done then and what came of it, [1, H], as `Dream.rollout` gives a path."""
        now, then = slice(self.newest, self.newest + horizon), slice(self.newest + 1, self.newest + horizon + 1)
        frames = torch.from_numpy(self.episode.pixels.copy())
        numbers = {
            "reward": torch.from_numpy(self.episode.reward[now].copy()),
            "continue": torch.from_numpy(~self.episode.terminated[now]).float(),
        }
        arrived = {"pixels": frames[then], **{key: value[:, None] for key, value in numbers.items()}}
        path = {"pixels": frames[now], "action": torch.from_numpy(self.episode.action[now].copy()), "next": arrived}
        return TensorDict(path, batch_size=[horizon])[None]


def starts_in(
    episode: Episode, spec: ModelSpec, *, kind: str, left: int, generator: np.random.Generator
) -> list[Start]:
    """Up to `PER_EPISODE` random moments with as many real frames as a model needs and `left` decisions to the end."""
    moments = np.arange(real_frames(spec) - 1, len(episode) + 1 - left)
    drawn = generator.choice(moments, min(PER_EPISODE, len(moments)), replace=False)
    return [Start(kind=kind, episode=episode, newest=int(moment)) for moment in np.sort(drawn)]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every sequence from every start, frame by frame, f32 [M, S, H].

    Attributes:
        reward: true; 0 once the world has ended.
        imagined_reward: times what is left of the imagined `continue`.
        shuffled_reward: the same, imagined with another sequence's actions.
        error: mean squared error of the imagined frame (`on_real`), of pixels in [0, 1].
        repeated: that of the last real frame, so also how much has changed since.
        shuffled: that of the frame (`on_real`) that was imagined with another sequence's actions.
        picture: that of the imagined frame as the model draws it.
        alive: 1 where the world had not ended before this frame, else 0, and then its frame counts for nothing.
    """

    reward: Tensor
    imagined_reward: Tensor
    shuffled_reward: Tensor
    error: Tensor
    repeated: Tensor
    shuffled: Tensor
    picture: Tensor
    alive: Tensor

    def of(self, at_M: Sequence[int] | slice, at_S: slice = slice(None)) -> Rows:
        """Some of the starts and of the sequences."""
        return Rows(**{field.name: getattr(self, field.name)[at_M][:, at_S] for field in fields(self)})

    @classmethod
    def stacked(cls, found: Sequence[Rows]) -> Rows:
        """Rows [S, H] of M starts as one."""
        return cls(**{field.name: torch.stack([getattr(one, field.name) for one in found]) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The rollouts [S, H] from one start: the true one, the imagined one, and the one with shuffled actions."""

    kind: str
    true: TensorDict
    imagined: TensorDict
    shuffled: TensorDict

    def rows(self) -> Rows:
        """They side by side, [S, H]."""
        true, imagined, shuffled = (path["next"] for path in (self.true, self.imagined, self.shuffled))
        last_real = self.true["pixels"][:, :1].expand_as(true["pixels"])
        dreamt = [on_real(path, last_real) for path in (self.imagined, self.shuffled)]
        errors = [by_frame(true["pixels"], other) for other in (*dreamt, last_real, imagined["pixels"])]
        return Rows(
            reward=earned(true),
            imagined_reward=earned(imagined),
            shuffled_reward=earned(shuffled),
            error=errors[0],
            shuffled=errors[1],
            repeated=errors[2],
            picture=errors[3],
            alive=gone_on(true["continue"][..., 0]),
        )


def earned(arrived: TensorDict) -> Tensor:
    """The rewards on arriving in each frame, times the probability of getting there, f32 [S, H]."""
    return arrived["reward"][..., 0] * gone_on(arrived["continue"][..., 0])


def on_real(path: TensorDict, last_real_SHCXY: Tensor) -> Tensor:
    """What the dream changes in its own picture of the last real frame, on that frame itself, u8 [S, H, 3, X, X].

    What a tokenizer cannot draw is missing in both of the dream's pictures; a model is asked for what it predicts.
    """
    changed = path["next", "pixels"].short() - path["pixels"][:, :1].short()
    return (last_real_SHCXY.short() + changed).clamp(0, 255).to(torch.uint8)


def by_frame(truth_SHCXY: Tensor, other_SHCXY: Tensor) -> Tensor:
    """Mean squared error of each u8 frame, of pixels in [0, 1], f32 [S, H]."""
    truth, other = (frames.flatten(0, 1).float() / 255 for frames in (truth_SHCXY, other_SHCXY))
    return mse(truth, other).unflatten(0, truth_SHCXY.shape[:2])


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A model beside the world.

    Attributes:
        dream: the model's.
        simulator: the world's own (mbrl.oracle), or None where it cannot go back to a moment.
        agent: half of the sequences are its own, as it acts in dreams, if it learns there.
        chance: whose are the others; it looks at nothing.
        sequences: S, 1 without a simulator.
        horizon: H.
        seeds: of everything that is drawn.
    """

    dream: Dream
    simulator: Dream | None
    agent: Agent
    chance: Agent
    sequences: int
    horizon: int
    seeds: Seeds

    @property
    def own(self) -> int:
        """How many of the sequences are the agent's; they come first."""
        return self.sequences // 2 if self.simulator and isinstance(self.agent, ModelBasedAgent) else 0

    def paths(self, starts: Sequence[Start]) -> Iterator[Paths]:
        """The rollouts from every start."""
        return map(
            self._tried if self.simulator else self._recorded, range(len(starts)), starts, (*starts[1:], starts[0])
        )

    def _tried(self, number: int, start: Start, _next: Start) -> Paths:
        """Imagines all sequences, then takes the same actions in the simulator.

        Shuffled: an agent's sequence is told a random one's actions, and the other way round.
        """
        assert self.simulator is not None
        state, truly = (dream.encode(start.clip(dream.spec)) for dream in (self.dream, self.simulator))
        imagined = self._rollout(self.dream, state, *self._policy(number, state["latent"].device), number)
        action_SHA = imagined["action"]
        others = action_SHA.roll(self.sequences // 2, 0)
        return Paths(
            kind=start.kind,
            true=self._rollout(self.simulator, truly, fixed_actions(action_SHA), 0, number),
            imagined=imagined,
            shuffled=self._rollout(self.dream, state, fixed_actions(others), 0, number),
        )

    def _recorded(self, number: int, start: Start, other: Start) -> Paths:
        """Imagines what was done; shuffled: what was done after another start."""
        true, others = start.followed(self.horizon), other.followed(self.horizon)
        state = self.dream.encode(start.clip(self.dream.spec))
        return Paths(
            kind=start.kind,
            true=true,
            imagined=self._rollout(self.dream, state, fixed_actions(true["action"]), 0, number),
            shuffled=self._rollout(self.dream, state, fixed_actions(others["action"]), 0, number),
        )

    def _rollout(self, dream: Dream, state: TensorDict, policy: Policy, memory: Any, number: int) -> TensorDict:
        """All sequences from one state; those of one `number` draw the same random numbers."""
        return dream.rollout(
            policy,
            dream.fork(state, self.sequences),
            memory,
            self.horizon,
            stream="audit/frames",
            draw=number,
            keys=("latent", "pixels"),
        ).path.cpu()

    def _policy(self, number: int, device: torch.device) -> tuple[Policy, Any]:
        """Who acts in the dream from start `number`, and the memory to begin with."""

        def chance(td: TensorDict, step: Any) -> tuple[Tensor, Any]:  # a stream that no episode of its own is played by
            action_BA, _ = self.chance.act(td, None, "evaluate", step=number * self.horizon + step)
            return action_BA.to(device), step + 1

        if not self.own:
            return chance, 0
        assert isinstance(self.agent, ModelBasedAgent)
        noise = self.seeds.torch("audit/policy", number, device=device)
        return beside(policy_of(self.agent, noise), chance, self.own), (None, 0)


def compared(
    sides: SideBySide, starts: Sequence[Start], *, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Rows, list[Paths]]:
    """All starts: their numbers [M, S, H], and the rollouts from the first two of each kind, to be looked at."""
    rows: list[Rows] = []
    shown: list[Paths] = []
    for done, paths in enumerate(sides.paths(starts), 1):
        rows.append(paths.rows())
        if sum(one.kind == paths.kind for one in shown) < 2:
            shown.append(paths)
        if on_progress is not None:
            on_progress(done, len(starts))
    return Rows.stacked(rows), shown


# -- which actions are better -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Whether a model knows which of several sequences of actions is better; nan where there is nothing to know.

    Reward R2 over all starts says little about that: states differ far more than the actions that one can take in them.
    What a policy gradient needs is the correlation *within* a start.

    Attributes:
        within: correlation of true and imagined returns of the sequences from a start, averaged over starts.
        within_error: its standard error over starts.
        across: correlation of true and imagined mean returns of the starts.
        gain: what the sequence that looks best in imagination truly gains over the mean, as a share of what the best
            one gains; 1 for an oracle model, 0 for one that knows nothing.
    """

    within: float
    within_error: float
    across: float
    gain: float


def ranking(true_MSH: Tensor, imagined_MSH: Tensor) -> Ranking:
    """Compares rewards of the same action sequences, f32 [M, S, H]; returns are their sums.

    >>> truth = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    >>> found = ranking(truth, truth)
    >>> round(found.within, 3), round(found.across, 3), round(found.gain, 3)
    (1.0, 1.0, 1.0)
    """
    true_MS, imagined_MS = true_MSH.double().sum(2), imagined_MSH.double().sum(2)
    true_C, imagined_C = (x - x.mean(1, keepdim=True) for x in (true_MS, imagined_MS))
    # starts in which no sequence makes a difference say nothing
    tells_M = true_C.std(1) > 1e-3 * true_MS.std().clamp_min(1e-12)
    product_M = (true_C * imagined_C).mean(1)
    sizes_M = (true_C.square().mean(1) * imagined_C.square().mean(1)).sqrt().clamp_min(1e-12)
    within_T = (product_M / sizes_M)[tells_M]
    chosen_M = true_C.gather(1, imagined_C.argmax(1, keepdim=True))[:, 0]
    return Ranking(
        within=float(within_T.mean()),
        within_error=float(within_T.std() / len(within_T) ** 0.5) if len(within_T) > 1 else math.nan,
        across=correlation(true_MS.mean(1), imagined_MS.mean(1)),
        gain=float(chosen_M.sum() / true_C.amax(1).sum()),
    )


def correlation(one_N: Tensor, other_N: Tensor) -> float:
    """Pearson's; nan of fewer than two values, or where either never differs."""
    return float(torch.corrcoef(torch.stack([one_N, other_N]))[0, 1]) if len(one_N) > 1 else math.nan


# -- at rest -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Zero actions after zero actions: R dreams beside what the world then did, frame by frame, f32 [R, H].

    Attributes:
        moved: mean squared change of the world's frame since the last real one.
        imagined_moved: that of the imagined frame since the dream's own picture of the last real one.
        codes: share of the frame's codes that have changed since; None of a model without them.
        reward: true.
        imagined_reward: imagined.
    """

    moved: Tensor
    imagined_moved: Tensor
    codes: Tensor | None
    reward: Tensor
    imagined_reward: Tensor


def at_rest(dream: Dream, episodes: Sequence[Episode], *, horizon: int) -> Rest:
    """Dreams of the last `horizon` decisions of episodes without any action but zero; at least so long."""
    starts = [Start(kind="rest", episode=one, newest=len(one) - horizon) for one in episodes]
    true: TensorDict = torch.cat([start.followed(horizon) for start in starts])
    shown: TensorDict = torch.cat([start.clip(dream.spec) for start in starts])
    state = dream.encode(shown)
    imagined = dream.rollout(
        fixed_actions(true["action"]), state, 0, horizon, stream="audit/rest", draw=0, keys=("latent", "pixels")
    ).path.cpu()
    moved, imagined_moved = (
        by_frame(path["next", "pixels"], path["pixels"][:, :1].expand_as(path["pixels"])) for path in (true, imagined)
    )
    return Rest(
        moved=moved,
        imagined_moved=imagined_moved,
        codes=codes_changed(dream.spec, imagined),
        reward=true["next", "reward"][..., 0],
        imagined_reward=imagined["next", "reward"][..., 0],
    )


def codes_changed(spec: ModelSpec, path: TensorDict) -> Tensor | None:
    """Share of a frame's codes that are not those of the path's first frame, f32 [R, H]; read off the latent."""
    if spec.codes is None or "codes" not in spec.latent:
        return None
    now, then = (spec.part_of(latent, "codes") for latent in (path["latent"][:, :1], path["next", "latent"]))
    return (now != then).unflatten(-1, (spec.codes.future, -1)).any(-1).float().mean(-1)
