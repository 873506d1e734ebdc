"""What is measured while a run learns, so that nobody guesses where it fails; nothing here changes what is learned.

A freshly finished episode is held out for the world model until the next fit: that is when it is measured. All random
draws come from streams of their own, named by the episode's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from agents.api import Agent, ModelBasedAgent, Policy
from mbrl.measure.probe import LEAST_EPISODES, probe
from mbrl.replay.clips import ClipReplay
from mbrl.replay.cut import EpisodeCodes, Windows, clips_of, longest_horizon, windows
from mbrl.replay.episode import Episode
from worldmodel.answers import shown, wrong
from worldmodel.api import Tokenizing, WorldModel
from worldmodel.dream.imagine import Dream, asked, fixed_actions
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

FRAMES = (1, 5, 10)
"""Imagined frames after which the reward is compared."""
GATED = 5
"""The one of them that the actor's gate looks at."""
WINDOWS = 10
"""Windows of an episode at most."""
REST = 0.2
"""A start counts for value against return if at most this share of its discounted future lies behind the end."""
COUNTED = 10
"""Episodes, the newest, over which codes are counted."""
PROBED = 1500
"""Frames for the probe at most."""
PROBED_ANEW = 256
"""The same where every frame has a context of its own, and so must be tokenized for it."""


def compared(spec: ModelSpec) -> tuple[int, ...]:
    """The imagined frames after which the reward is compared: 1, 5, 10, or the model's last where it ends before."""
    last = spec.max_frames - spec.burn_in
    return tuple(sorted({min(frame, last) for frame in FRAMES}))


def gated(spec: ModelSpec) -> str:
    """The column that the actor's gate looks at: R2 after 5 imagined frames, or the model's last if there are fewer."""
    return f"heldout/reward_r2_{min(GATED, compared(spec)[-1])}"


def r_squared(true: Tensor, predicted: Tensor, variance: float) -> float:
    """1 - mean squared error / `variance`: 1 for a perfect prediction, about 0 for the mean. nan without variance."""
    return 1 - float((true - predicted).square().mean()) / variance if variance > 0 else math.nan


class Instruments:
    """Measures a model and an agent on real episodes; draws nothing that training draws."""

    def __init__(
        self,
        *,
        model: WorldModel,
        agent: Agent,
        replay: ClipReplay,
        seeds: Seeds,
        parts: Mapping[str, slice],
        demos: int = 0,
    ) -> None:
        """Args:
        parts: what the probe looks for: names of slices of the simulator's state.
        demos: how many of the first episodes are demonstrations; their rewards would make any error look small.
        """
        self.demos = demos
        self.model, self.agent, self.replay, self.seeds, self.parts = model, agent, replay, seeds, dict(parts)

    # -- one held-out episode -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def heldout(self, episode: Episode, *, own: bool) -> dict[str, float]:
        """Columns `heldout/...` of an episode that is in replay but that the model was not fitted to.

        * `reward_r2_1`, `_5`, `_10`: R2 of the reward after so many imagined frames with the true actions, sampled as
          in dreams, from up to 10 moments; against the variance of the rewards of the WHOLE replay without
          demonstrations (a steady policy's episode has none of its own). That variance grows while the agent learns:
          `reward_rmse_*` is the same error in environment units.
        * `proprio_rmse_1`, `_5`, `_10`: root mean square error of the numbers of the imagined proprioception, where
          the model reads any. A robot that lags in dreams misses what it reaches for.
        * `codes`, `reward`, ...: the losses of the model's last part on this episode, as when it is fitted (dropout and
          jitter included; a strange context is here another clip's of the same episode).
        * `return_imagined`, `return_real`: discounted rewards of the next frames, imagined with the agent's own policy
          and as they followed. The dream's noise is white, the real one may be correlated.
        * `value`, `return_to_go`: the critic at these moments and the discounted rewards to the episode's end, with
          nothing put in place of what would come behind it, where the end is far enough (`REST`).

        Args:
            own: whether the agent acted in it; the last four columns need that, and a `ModelBasedAgent`.
        Returns: what could be measured and is finite; {} if the episode is too short for the model.
        """
        spec = self.model.spec
        horizon = min(longest_horizon(spec, episode), compared(spec)[-1])
        if not horizon:
            return {}
        stride = max(horizon, math.ceil(len(episode) / WINDOWS))
        real = windows(episode, spec, horizon=horizon, stride=stride, codes=self._memoised(episode))
        values = self._imagined(real, episode, own=own) | self._losses(real, episode)
        return {f"heldout/{name}": value for name, value in values.items() if math.isfinite(value)}

    def _imagined(self, real: Windows, episode: Episode, *, own: bool) -> dict[str, float]:
        """Imagination from every window: with the true actions and, beside them in one batch, with the policy's."""
        agent = self.agent if own and isinstance(self.agent, ModelBasedAgent) else None
        rows, horizon = real.reward.shape
        dream = Dream(self.model, seeds=self.seeds)
        state = dream.encode(real.clip if agent is None else torch.cat([real.clip, real.clip]))
        device = state["latent"].device
        policy: Policy = fixed_actions(real.action.to(device))
        memory: Any = 0
        if agent is not None:
            noise = self.seeds.torch("measure/policy", episode.number, device=device)
            policy, memory = beside(policy, policy_of(agent, noise), rows), (0, None)
        values = self._value(state["latent"][:rows], real, episode, agent) if agent else {}
        robot = ("proprio",) if "proprio" in self.model.spec.obs_keys else ()
        path = dream.rollout(
            policy, state, memory, horizon, stream="measure/frames", draw=episode.number, keys=("latent", *robot)
        ).path["next"].cpu()  # fmt: skip
        reward_BH, continue_BH = path["reward"][..., 0], path["continue"][..., 0]
        variance = self._reward_variance()
        for frame in compared(self.model.spec):
            if frame <= horizon:
                true, imagined = real.reward[:, frame - 1], reward_BH[:rows, frame - 1]
                values[f"reward_r2_{frame}"] = r_squared(true, imagined, variance)
                values[f"reward_rmse_{frame}"] = float((true - imagined).square().mean().sqrt())
                if robot:
                    error_WQ = path["proprio"][:rows, frame - 1] - real.proprio[:, frame - 1]
                    values[f"proprio_rmse_{frame}"] = float(error_WQ.square().mean().sqrt())
        if agent is not None:
            discount_H = discounts(agent.gamma, horizon)
            values["return_imagined"] = float(
                (discount_H * gone_on(continue_BH[rows:]) * reward_BH[rows:]).sum(1).mean()
            )
            values["return_real"] = float((discount_H * real.reward).sum(1).mean())
        return values

    def _value(self, latent_WD: Tensor, real: Windows, episode: Episode, agent: ModelBasedAgent) -> dict[str, float]:
        """The critic against what followed, at the starts that leave enough of the episode."""
        left_W = torch.from_numpy(len(episode) - real.newest)
        counts_W = (agent.gamma**left_W <= REST) | bool(episode.terminated[-1])
        if not counts_W.any():
            return {}
        value_W = agent.value(latent_WD)
        if not isinstance(value_W, Tensor) or value_W.shape != left_W.shape or not value_W.is_floating_point():
            raise wrong(agent, "value", f"a tensor of real numbers {list(left_W.shape)}", shown(value_W))
        reward_L = torch.from_numpy(episode.reward.copy())
        to_go = [discounts(agent.gamma, n) @ reward_L[len(episode) - n :] for n in left_W[counts_W].tolist()]
        return {
            "value": float(value_W[counts_W.to(latent_WD.device)].mean()),
            "return_to_go": float(torch.stack(to_go).mean()),
        }

    def _losses(self, real: Windows, episode: Episode) -> dict[str, float]:
        """The losses of the model's last part on these windows."""
        spec = self.model.spec
        if not spec.parts:
            return {}
        part = spec.parts[-1]
        length = spec.burn_in + real.reward.shape[1]
        first_W = real.newest - spec.burn_in + 1
        clip = clips_of(episode, spec, first_W, length=length, codes=self._memoised(episode))
        generator = self.seeds.torch("measure/losses", episode.number)
        losses = self.model.losses(clip, part, step=0, generator=generator)
        return {name.removeprefix(f"{part}/"): float(value) for name, value in losses.items() if name != "loss"}

    def _memoised(self, episode: Episode) -> EpisodeCodes | None:
        """The episode's codes as replay holds them, where one encoding serves the whole episode."""
        if not isinstance(self.model, Tokenizing) or self.model.spec.context != "first_frame":
            return None
        for index, stored in enumerate(self.replay.store.stored):
            if stored.episode.number == episode.number:
                return self._codes_at(index)
        return None  # a small replay has dropped it already

    def _features(self, index: int, at_F: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features of some frames of a stored episode: of their context [F, C], of their own codes [F, E]."""
        assert isinstance(self.model, Tokenizing)
        if self.model.spec.context == "first_frame":
            context_N, codes_FK = self._codes_at(index)
            context_1C, codes_1FE = self.model.code_features(context_N[None].long(), codes_FK[None, at_F].long())
            return context_1C.expand(len(at_F), -1), codes_1FE[0]
        clip = clips_of(self.replay.store.stored[index].episode, self.model.spec, at_F, length=1)
        context_FC, codes_F1E = self.model.code_features(*self.model.tokenize(clip["context"], clip["pixels"]))
        return context_FC, codes_F1E[:, 0]

    def _codes_at(self, index: int) -> EpisodeCodes:
        codes = self.replay.episode_codes(index)
        return codes.context, codes.frames

    def _reward_variance(self) -> float:
        held = [stored.episode for stored in self.replay.store.stored]
        own = [episode.reward for episode in held if episode.number >= self.demos]
        return float(np.concatenate(own).var())

    # -- many episodes -----------------------------------------------------------------------------------------------

    def codes_alive(self, draw: int) -> int | None:
        """Different codes of future frames: over the newest episodes, or, where every clip has its own, over 128 clips.

        Not over the whole replay, which would be encoded anew whenever the tokenizer has moved; nor over what happens
        to be memoised, which a resumed run does not know.

        Args:
            draw: names those clips.
        Returns: None for a model without codes.
        """
        if not isinstance(self.model, Tokenizing):
            return None
        if self.model.spec.context == "first_frame":
            newest = range(len(self.replay.store.stored))[-COUNTED:]
            held = [self._codes_at(index)[1].flatten() for index in newest]
            return len(torch.cat(held).unique())
        clip = self.replay.clips(128, max(1, self.model.spec.burn_in), stream="measure", draw=draw, codes=True)
        return len(clip["codes"].unique())

    @torch.no_grad()
    def probed(self) -> dict[str, float]:
        """Columns `probe/<part>_r2` and `_rmse`: what the codes know of the simulator's state; for measuring only.

        Features are the vectors of the frame's codes and of its context's, without the transformer's hidden state. A
        quarter of the replay's episodes is held out from the probe (the tokenizer was fitted to all of them).
        """
        if not (isinstance(self.model, Tokenizing) and self.parts):
            return {}
        stored = self.replay.store.stored
        known = stored[-1].episode.state.shape[1] if stored else 0
        anew = self.model.spec.context == "sliding"
        frames = sum(len(one.episode) for one in stored)
        stride = max(1, math.ceil(frames / (PROBED_ANEW if anew else PROBED)))
        codes, contexts, states, episodes = [], [], [], []
        for index, one in enumerate(stored):
            first = self.model.spec.context_frames if anew else 0
            at_F = np.arange(first + index % stride, len(one.episode) + 1, stride)
            if len(at_F) and one.episode.state.shape == (len(one.episode) + 1, known):  # not of another's recorder
                context_FC, codes_FE = self._features(index, at_F)
                contexts.append(context_FC.cpu())
                codes.append(codes_FE.cpu())
                states.append(torch.from_numpy(one.episode.state[at_F]))
                episodes.append(torch.full((len(at_F),), index))
        if len(episodes) < LEAST_EPISODES:
            return {}
        frame_NE, context_NC, state_NS, episode_N = (torch.cat(held) for held in (codes, contexts, states, episodes))
        values = {}
        for name, part in self.parts.items():
            found = probe(frame_NE, context_NC, state_NS[:, part], episode_N)
            values[f"probe/{name}_rmse"] = found.rmse
            if found.r2 is not None:
                values[f"probe/{name}_r2"] = found.r2
        return values


def policy_of(agent: ModelBasedAgent, noise: torch.Generator) -> Policy:
    """How it acts in its dreams. Raises: WrongAnswer for what cannot be asked."""
    policy = agent.dream_policy(noise)
    if not callable(policy):
        raise wrong(agent, "dream_policy", "a function of what is seen and a memory", shown(policy))
    return policy


def beside(one: Policy, other: Policy, rows: int) -> Policy:
    """The policy that asks `one` in the first rows and `other` in the rest."""

    def policy(td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
        acted = [asked(one, td[:rows], memory[0]), asked(other, td[rows:], memory[1])]
        return torch.cat([action for action, _ in acted]), tuple(held for _, held in acted)

    return policy


def gone_on(continue_BH: Tensor) -> Tensor:
    """How much of each row had not ended before it arrived in frame h, f32 [B, H]: so much of what it earns counts."""
    return torch.cat([torch.ones_like(continue_BH[:, :1]), continue_BH[:, :-1]], 1).cumprod(1)


def discounts(gamma: float, decisions: int) -> Tensor:
    """1, gamma, gamma^2, ... f32 [decisions]."""
    return gamma ** torch.arange(decisions, dtype=torch.float32)
