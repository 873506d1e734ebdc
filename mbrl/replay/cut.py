"""How episodes are cut: real steps into an episode, an episode into clips and into windows.

Knows episodes and the clip's keys; nothing of models.
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

KEPT = ("pixels", "proprio", "state", "snapshot", "action", "next")
"""What of a real step an episode is made from, where it is there."""
EpisodeCodes = tuple[Tensor, Tensor]
"""Context codes [t*N] and codes [L+1, K] of a whole episode (context `first_frame`)."""


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


def clips_of(
    episode: Episode, spec: ModelSpec, first_W: NDArray[np.int64], *, length: int, codes: EpisodeCodes | None = None
) -> TensorDict:
    """Clips (worldmodel.spec) of `length` frames, one for each index of a first frame; batch [W].

    With context `sliding` a first frame must have `spec.context_frames` frames before it.
    """
    frame_WT = first_W[:, None] + np.arange(length)
    opens_WT = frame_WT == 0
    into_WT = np.maximum(frame_WT - 1, 0)  # decision i leads into frame i + 1, and nothing into frame 0
    arrays: dict[str, NDArray] = {
        "action": np.where(opens_WT[..., None], np.float32(0), episode.action[into_WT]),
        "reward": np.where(opens_WT, np.float32(0), episode.reward[into_WT]),
        "continue": np.where(opens_WT, np.float32(1), ~episode.terminated[into_WT]).astype(np.float32),
        "first": opens_WT,
    }
    arrays |= {key: getattr(episode, key)[frame_WT] for key in spec.reads if key != "pixels"}
    if "pixels" in spec.reads and codes is None:
        before_t = np.arange(-spec.context_frames, 0)
        context_Wt = (
            first_W[:, None] + before_t if spec.context == "sliding" else np.zeros((len(first_W), spec.context_frames))
        )
        arrays |= {"context": episode.pixels[context_Wt.astype(np.int64)], "pixels": episode.pixels[frame_WT]}
    clip = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if codes is not None:
        context_N, codes_FK = codes
        clip |= {
            "context_codes": context_N.long().expand(len(first_W), -1),
            "codes": codes_FK.long()[torch.from_numpy(frame_WT)],
        }
    return TensorDict(clip, batch_size=[len(first_W)])


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
