"""Which clips a model is judged on: openings of episodes (published), windows of them, or windows of one episode."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from mbrl.data.dataset import EpisodeCache
from mbrl.data.mixture import folders_of
from mbrl.data.source import ClipSource, DataConfig
from mbrl.files import DamagedFile
from mbrl.predict.configs import PredictConfig
from mbrl.replay.cut import clips_of
from mbrl.replay.episode import NAME, read_episode
from mbrl.rundir.build import make
from mbrl.rundir.folder import allowed_classes, holds_run, read_config
from worldmodel.evaluation.predict import goal_clips
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

log = logging.getLogger("mbrl")

PUBLISHED_FRAMES = 16
"""Of a clip in the published evaluation of most models, those that are shown included (12 of RoboNet's and VP2's)."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips and where they come from.

    Attributes:
        clips: batch [C], as the model reads them.
        names: data set and episode of each.
        mode: `free`, `action` or `goal`.
        horizon: predicted frames.
        left_out: episodes that were too short.
        files: the episodes that they were drawn from.
    """

    clips: TensorDict
    names: list[str]
    files: list[Path]
    mode: str
    horizon: int
    left_out: int


def drawn(config: PredictConfig, data: DataConfig | Path, spec: ModelSpec) -> Clips:
    """The clips that `config` asks for; `data` is a configuration of data sets, or the file of one episode.

    Raises: ValueError in one line where model, mode and data do not go together.
    """
    mode = mode_of(config, spec)
    horizon, num_observed = (
        horizon_of(config, spec),
        spec.burn_in + (spec.context_frames if spec.context == "sliding" else 0),
    )
    # a goal stands in the context: one frame less lies in time before those that are predicted
    length = spec.burn_in + horizon - (1 if mode == "goal" else 0)
    if length < 1:
        raise ValueError(f"horizon must be >= 2 with mode=goal (got {horizon})")
    if isinstance(data, Path):
        clips, names, left_out, files = *_windows(data, config, spec, length), 0, [data]
    else:
        source = data.build(spec=spec, seeds=Seeds(config.seed), split=config.split, sampling="plain")
        frames = num_observed - spec.burn_in + length
        clips, names, left_out, files = _openings(source, config, frames, length)
    if mode == "goal":
        clips = goal_clips(clips, spec.context_frames)
    return Clips(clips=clips, names=names, files=files, mode=mode, horizon=horizon, left_out=left_out)


def mode_of(config: PredictConfig, spec: ModelSpec) -> str:
    """Raises: ValueError where the model cannot be asked so."""
    natural = "action" if spec.action_dim else "free"
    mode = natural if config.mode == "auto" else config.mode
    if mode == "action" and not spec.action_dim:
        raise ValueError("mode must be free or goal for a model that knows no actions (got action)")
    if mode == "free" and spec.action_dim:
        raise ValueError(
            "mode must be action for a model that was trained with actions (got free); "
            "baselines=[zero,shuffled] say what they are worth"
        )
    if mode == "goal" and (spec.action_dim or spec.context != "sliding" or spec.context_frames < 2 or spec.burn_in):
        raise ValueError(
            "mode=goal needs a model without actions whose context holds the goal and a frame, with context=sliding "
            f"and burn_in=0 (got {spec.action_dim} numbers of action, {spec.context_frames} context frames, "
            f"context={spec.context}, burn_in={spec.burn_in})"
        )
    return mode


def horizon_of(config: PredictConfig, spec: ModelSpec) -> int:
    """Frames to predict. Raises: ValueError if the model has no room for them."""
    most = spec.max_frames - spec.burn_in
    num_observed = spec.burn_in + (spec.context_frames if spec.context == "sliding" else 0)
    if config.horizon > most:
        raise ValueError(f"horizon must be <= {most} for this model (got {config.horizon})")
    return config.horizon or min(most, PUBLISHED_FRAMES - num_observed)


def _openings(
    source: ClipSource, config: PredictConfig, frames: int, length: int
) -> tuple[TensorDict, list[str], int, list[Path]]:
    """Clips of data sets: of `length` frames behind their context, `frames` in all; names; too short ones; files."""
    files = [file for part in source.parts for file in part.files]  # as source.episodes
    long = [place for place, (part, index) in enumerate(source.episodes) if part.data.frames[index] >= frames]
    short = len(source.episodes) - len(long)
    if not long or (short and config.start == "random"):
        raise ValueError(
            f"{short} of {len(source.episodes)} episodes have fewer than the {frames} frames of a clip; lower horizon"
            + (", or use start=first, which leaves them out" if long else "")
        )
    if config.start == "random":
        clips = source.clips(config.clips, length, stream="predict", draw=0)
        return clips, [f"random window {row}" for row in range(config.clips)], 0, files
    chosen = long
    if len(long) > config.clips:  # evenly over all data sets
        chosen = [long[place] for place in np.linspace(0, len(long) - 1, config.clips).round().astype(int)]
    clips = torch.cat([source.opening(place, 1, length) for place in chosen])
    return clips, [_name(source, place) for place in chosen], short, [files[place] for place in chosen]


def learned_from(folder: Path, files: Collection[Path], *, own: Path | None = None) -> int | None:
    """How many of `files` the model in `folder` learned from, or the weights that it began from; None: nobody can tell.

    A pre-training run learned from its data, a training run from its replay (of which the oldest episodes may be gone).

    Args:
        own: the user's folder of configurations, whose classes are trusted.
    """
    known: set[Path] = set()
    passed: set[Path] = set()
    place: Path | None = folder
    while place is not None and place not in passed:
        passed.add(place)
        if not holds_run(place):
            return None  # published weights
        try:
            plain = read_config(place, verb="pretrain", marks=("seed",))
            known |= {path.resolve() for path in _learned(place, plain, trusted=allowed_classes(plain, own))}
        except (ValueError, DamagedFile) as error:
            log.warning("which episodes the model learned from cannot be said: %s", error)
            return None
        place = Path(plain["init"]) if isinstance(plain.get("init"), str) else None
    return sum(path.resolve() in known for path in files)


def _learned(folder: Path, plain: Mapping[str, Any], *, trusted: bool) -> list[Path]:
    if "data" not in plain:
        if not (folder / "replay").is_dir():
            raise ValueError(f"{folder} has no replay any more")
        old = folders_of(plain["rehearsal"], (), EpisodeCache(0)) if plain["rehearsal"] else []
        lent = [data.folder / name for data in old for name in data.names]
        return [*lent, *(folder / "replay").glob("ep-*.npz")]
    data: DataConfig = make(plain["data"], "data", trusted=trusted)
    parts = data.drawn_from(seeds=Seeds(plain["seed"]), split="train")
    return [file for part in parts for file in part.files]


def _name(source: ClipSource, place: int) -> str:
    part, index = source.episodes[place]
    return f"{part.data.card.name}/{index}"


def _windows(path: Path, config: PredictConfig, spec: ModelSpec, length: int) -> tuple[TensorDict, list[str]]:
    """Clips of one episode, end to end."""
    if not path.is_file() or not NAME.fullmatch(path.name):
        raise ValueError(f"data={path} is neither a folder nor the file of an episode (ep-*.npz)")
    episode = read_episode(path)
    side, actions = episode.pixels.shape[2:], episode.action.shape[1]
    if side != (spec.image, spec.image) or (spec.action_dim and actions != spec.action_dim):
        raise ValueError(
            f"data={path} has frames of {side[0]}x{side[1]} and {actions} actions, the model wants "
            f"{spec.image}x{spec.image} and {spec.action_dim}; a folder of episodes would be resized"
        )
    lead = spec.context_frames if spec.context == "sliding" else 0
    first_W = np.arange(lead, len(episode) + 2 - length, length)
    if not len(first_W):
        raise ValueError(f"data={path} has {len(episode) + 1} frames, a clip needs {lead + length}; lower horizon")
    first_W = first_W[: config.clips]
    return clips_of(episode, spec, first_W, length=length), [f"{path.name}/{first}" for first in first_W]
