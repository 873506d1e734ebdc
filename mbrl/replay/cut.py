"""How episodes are cut: real steps into an episode, an episode into clips, transitions and windows.

THE rule, `led_into`: decision i leads from frame i into frame i + 1, and nothing leads into frame 0. Replay, data sets
and windows all cut by it. Knows episodes and the clip's keys; nothing of models, files or random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from mbrl.replay.episode import Episode
from worldmodel.spec import ModelSpec

# W rows, T frames of a clip, t context frames, N decisions of a transition, H decisions of a window

KEPT = ("pixels", "proprio", "state", "snapshot", "action", "next")
"""What of a real step an episode is made from, where it is there."""
Rows = Episode | Sequence[Episode]
"""One episode for all rows, or one for each."""
Indices = NDArray[np.int64]
EpisodeCodes = tuple[Tensor, Tensor]
"""Context codes [t*N] and codes [L+1, K] of a whole episode (context `first_frame`)."""


def taken(rows: Rows, key: str, index_WT: Indices) -> NDArray:
    """`key` of each row's episode at that row's indices (which must be in it), [W, T, ...]."""
    if isinstance(rows, Episode):
        return getattr(rows, key).take(index_WT, axis=0)
    made = np.empty((*index_WT.shape, *getattr(rows[0], key).shape[1:]), Episode.DTYPES[key])
    for made_T, episode, at_T in zip(made, rows, index_WT, strict=True):
        np.take(getattr(episode, key), at_T, axis=0, out=made_T, mode="clip")  # with other modes through a buffer
    return made


def led_into(rows: Rows, before_WT: Indices, frame_WT: Indices, *, action_dim: int) -> dict[str, NDArray]:
    """What led from frames `before` into frames `frame`: `action`, `reward`, `reward_mask`, `continue`; [W, T, ...].

    Where several decisions lie between the two, `action` is the first of them and `reward` the sum of all. A frame that
    is repeated behind the episode's end repeats what led into it, but for the reward. Nothing led into a frame whose
    `before` is -1 or lies behind it (shuffled frames): no action. Rewards are finite, 0 where `reward_mask` is not set.
    """
    decisions_W1 = np.array([len(rows)] if isinstance(rows, Episode) else [len(episode) for episode in rows])[:, None]
    led_WT = (before_WT >= 0) & (before_WT <= frame_WT)
    first_WT = np.clip(before_WT, 0, decisions_W1 - 1)
    action_WTA = taken(rows, "action", first_WT) if action_dim else np.zeros((*frame_WT.shape, 0), np.float32)
    reward_WT, ended_WT = taken(rows, "reward", first_WT), taken(rows, "terminated", first_WT)
    for row, place in np.argwhere(led_WT & (frame_WT - before_WT > 1)):
        episode = rows if isinstance(rows, Episode) else rows[row]
        between = slice(before_WT[row, place], frame_WT[row, place])
        reward_WT[row, place] = episode.reward[between].sum()
        ended_WT[row, place] = episode.terminated[between].any()
    mask_WT = led_WT & (before_WT < frame_WT) & ~np.isnan(reward_WT)
    return {
        "action": np.where(led_WT[..., None], action_WTA, np.float32(0)),
        "reward": np.where(mask_WT, reward_WT, np.float32(0)),
        "reward_mask": mask_WT,
        "continue": (~(led_WT & ended_WT)).astype(np.float32),
    }


def numbers_of(rows: Rows, spec: ModelSpec, frame_WT: Indices, *, before_W: Indices) -> dict[str, NDArray]:
    """All of a clip but its pictures: what led into its frames, and what else the model reads of them.

    Args:
        before_W: the frame from which each clip's first one was reached, -1 where nothing led into it.
    """
    before_WT = np.concatenate([before_W[:, None], frame_WT], 1)[:, : frame_WT.shape[1]]
    known = {key: taken(rows, key, frame_WT) for key in spec.obs_keys if key != "pixels"}
    return led_into(rows, before_WT, frame_WT, action_dim=spec.action_dim) | known


def clips_of(
    rows: Rows,
    spec: ModelSpec,
    first_W: Indices,
    *,
    length: int,
    codes: EpisodeCodes | Sequence[EpisodeCodes] | None = None,
) -> TensorDict:
    """Clips (worldmodel.spec) of `length` frames, one for each index of a first frame; batch [W].

    With context `sliding` a first frame must have `spec.context_frames` frames before it.

    Args:
        codes: of the rows' episodes; they stand in the clip instead of pixels (context `first_frame` only).
    """
    frame_WT = first_W[:, None] + np.arange(length)
    arrays = numbers_of(rows, spec, frame_WT, before_W=first_W - 1)
    if "pixels" in spec.obs_keys and codes is None:
        context_Wt = np.zeros((len(first_W), spec.context_frames), np.int64)
        if spec.context == "sliding":
            context_Wt = first_W[:, None] + np.arange(-spec.context_frames, 0)
        arrays |= {"context": taken(rows, "pixels", context_Wt), "pixels": taken(rows, "pixels", frame_WT)}
    clip = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if codes is not None:
        each = [codes] * len(first_W) if isinstance(codes, tuple) else codes
        clip["context_codes"] = torch.stack([context for context, _ in each]).long()
        clip["codes"] = torch.stack([codes_FK[at] for (_, codes_FK), at in zip(each, frame_WT, strict=True)]).long()
    return TensorDict(clip, batch_size=[len(first_W)])


def transitions_of(
    episodes: Sequence[Episode], decision_W: Indices, *, n_step: int, stack: int, keys: Sequence[str]
) -> TensorDict:
    """Transitions (worldmodel.spec) of up to `n_step` decisions, one for each index of a first one; batch [W].

    A stack that begins before the episode repeats frame 0. A transition that would cross the episode's end ends with
    its last frame, after `steps` < n_step decisions.
    """
    end_W1 = np.array([len(episode) for episode in episodes])[:, None]
    frame_WN = np.minimum(decision_W[:, None] + np.arange(n_step + 1), end_W1)  # the last one is repeated
    # behind the end: no reward, and the last `continue` again (1 leaves a product as it is, 0 has ended it already)
    led = led_into(episodes, frame_WN[:, :-1], frame_WN[:, 1:], action_dim=episodes[0].action.shape[1])

    def stacked(newest_W: Indices) -> dict[str, Tensor]:
        index_WS = np.maximum(newest_W[:, None] + np.arange(1 - stack, 1), 0)
        return {key: torch.from_numpy(taken(episodes, key, index_WS)).flatten(1, 2) for key in keys}

    then = {name: torch.from_numpy(led[name]) for name in ("reward", "continue")}
    then["steps"] = torch.from_numpy(frame_WN[:, -1] - decision_W)
    now = {**stacked(decision_W), "action": torch.from_numpy(led["action"][:, 0])}
    return TensorDict({**now, "next": {**stacked(frame_WN[:, -1]), **then}}, batch_size=[len(decision_W)])


@dataclass(frozen=True, kw_only=True)
class Windows:
    """W moments of one episode, H decisions before its end or more.

    Attributes:
        clip: what a model is shown: `spec.burn_in` frames behind their context, batch [W].
        newest: index of each clip's last real frame.
        action: the H actions that were taken then, f32 [W, H, A].
        reward: what they earned, f32 [W, H].
        truth: the frames that they led into, u8 [W, H, 3, S, S].
        proprio: the proprioception in these, f32 [W, H, Q].
    """

    clip: TensorDict
    newest: NDArray[np.int64]
    action: Tensor
    reward: Tensor
    truth: Tensor
    proprio: Tensor


def real_frames(spec: ModelSpec) -> int:
    """Real frames at the head of a window."""
    return spec.burn_in + (spec.context_frames if spec.context == "sliding" else 0)


def longest_horizon(spec: ModelSpec, episode: Episode) -> int:
    """Frames that can be imagined and compared in an episode; 0 if it is too short for any."""
    return max(0, min(spec.max_frames - spec.burn_in, len(episode) + 1 - real_frames(spec)))


def windows(
    episode: Episode, spec: ModelSpec, *, horizon: int, stride: int, codes: EpisodeCodes | None = None
) -> Windows:
    """Every `stride`-th moment of an episode that has `horizon` decisions before it ends.

    Args:
        codes: the episode's codes, which then stand in the clip instead of pixels (context `first_frame` only).
    Raises: ValueError if the episode is too short for one window.
    """
    seen = real_frames(spec)
    first_W = np.arange(seen - spec.burn_in, len(episode) + 2 - spec.burn_in - horizon, stride)
    if not len(first_W):
        raise ValueError(
            f"an episode of {len(episode) + 1} frames has no window of {seen} real and {horizon} imagined frames"
        )
    newest_W = first_W + spec.burn_in - 1
    then_WH = newest_W[:, None] + np.arange(horizon)  # decision i leads from frame i into frame i + 1
    return Windows(
        clip=clips_of(episode, spec, first_W, length=spec.burn_in, codes=codes),
        newest=newest_W,
        action=torch.from_numpy(episode.action[then_WH]),
        reward=torch.from_numpy(episode.reward[then_WH]),
        truth=torch.from_numpy(episode.pixels[then_WH + 1]),
        proprio=torch.from_numpy(episode.proprio[then_WH + 1]),
    )


def episode_of(steps: Sequence[TensorDict], *, env: int, number: int) -> Episode:
    """A whole episode from its real steps (the `KEPT` of each, batch []), as row `env` met them."""

    def frames(key: str) -> np.ndarray:
        if key not in steps[0].keys():  # noqa: SIM118 - a TensorDict has no `in`
            return np.zeros((len(steps) + 1, 0))
        return torch.stack([*(step[key] for step in steps), steps[-1]["next", key]]).numpy()

    def column(key: str) -> np.ndarray:
        return torch.stack([step["next", key].reshape(()) for step in steps]).numpy()

    return Episode(
        pixels=frames("pixels"),
        proprio=frames("proprio"),
        state=frames("state"),
        snapshot=frames("snapshot"),
        action=torch.stack([step["action"] for step in steps]).float().numpy(),
        reward=column("reward").astype(np.float32),
        terminated=column("terminated"),
        truncated=column("truncated"),
        success=column("success"),
        env=env,
        number=number,
    )
