"""Rehearsal: data sets whose episodes lie in a run's replay from its beginning to its end, beside its own.

They stay where they are and are only read. They are no env steps, no demonstrations and no training episodes: what a
run measures of its own experience leaves them out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mbrl.data.dataset import DataSet, EpisodeCache
from mbrl.data.mixture import folders_of
from mbrl.data.reach import MEND, Reach
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv
from mbrl.files import sha256
from mbrl.progress import told
from mbrl.replay.episode import Episode
from mbrl.replay.store import Stored

log = logging.getLogger("mbrl")

SEEN = ("image", "camera", "flip", "quality", "action_repeat", "success_bonus", "zero_action_first")
"""Of a protocol, what decides how frames look and what actions and rewards mean; another length is another start."""


def check_rehearsal(folders: Any) -> tuple[str, ...]:
    """The folders of the data sets. Raises: ValueError for anything but a list of them."""
    if not isinstance(folders, list | tuple) or not all(isinstance(folder, str) and folder for folder in folders):
        raise ValueError(f"rehearsal must be a list of data sets like [a,b] (got {folders!r})")
    return tuple(folders)


def rehearsed(folders: Sequence[str], protocol: ProtocolConfig, *, key: str = "rehearsal") -> list[DataSet]:
    """The data sets of these folders, seen as `protocol` says; no episode is read, no world is made.

    Args:
        key: what named them, for messages.
    Raises: ValueError in one line where one does not fit, or is none; DamagedSet.
    """
    try:
        sets = folders_of(folders, (), EpisodeCache(0)) if folders else []
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    for data in sets:
        if wrong := _strange(data, protocol):
            raise ValueError(f"{key}={data.folder} does not fit this run: {wrong}; choose another data set")
    return sets


def _strange(data: DataSet, protocol: ProtocolConfig) -> str:
    """In which way a data set is not of this protocol's experience; empty if it is."""
    card = data.card
    if not len(data):
        return "it holds no episode"
    if card.image != (protocol.image, protocol.image):
        size = "of several sizes" if card.image is None else f"{card.image[0]}x{card.image[1]}"
        return f"its frames are {size}, protocol.image={protocol.image}"
    if not card.rewards:
        return "its rewards are unknown"
    if card.protocol is None:
        return ""
    ours: Mapping[str, Any] = json.loads(json.dumps(dataclasses.asdict(protocol)))
    theirs: Mapping[str, Any] = json.loads(json.dumps(dict(card.protocol)))
    other = [key for key in SEEN if ours[key] != theirs.get(key)]
    return ", ".join(f"it was recorded with protocol.{key}={theirs.get(key)}, not {ours[key]}" for key in other)


def lent(sets: Sequence[DataSet], env: RowsEnv, obs_keys: Sequence[str]) -> list[Stored]:
    """Every episode of these data sets, read and compared with the worlds of the run and what its model reads.

    Raises: ValueError in one line where one does not fit; DamagedEpisode, DamagedSet.
    """
    stored: list[Stored] = []
    tell, total = told("episodes of rehearsal read"), sum(len(data.names) for data in sets)
    for data in sets:
        for index, name in enumerate(data.names):
            tell(len(stored), total)
            path, episode = data.folder / name, fitting(data, index, env, obs_keys, key="rehearsal")
            stored.append(Stored(name=str(path), digest=sha256(path.read_bytes()), episode=episode))
        if data.card.protocol is None:
            log.warning("WARNING: how %s was recorded is not known; it must look and pay like this run", data.folder)
    if sets:
        decisions = sum(len(one.episode) for one in stored)
        log.info("rehearsal: %d episodes (%d decisions) of %d data sets", len(stored), decisions, len(sets))
    return stored


def require_reach(data: DataSet, episodes: int, *, key: str) -> None:
    """Reads the first episodes of a data set. Raises: ValueError if a world could not execute their actions."""
    reach, tell = Reach(), told("demonstrations looked through")
    for index in range(episodes):
        tell(index, episodes)
        reach.add(data.episode(index).action)
    if reach.beyond:
        raise ValueError(f"{key}={data.folder} does not fit this run: {reach}; {MEND}")


def fitting(data: DataSet, index: int, env: RowsEnv, obs_keys: Sequence[str], *, key: str) -> Episode:
    """Episode `index` of a data set, for a run in `env`. Raises: ValueError where it does not fit; DamagedEpisode."""
    episode = data.episode(index)
    if wrong := _unfit(episode, env, obs_keys):
        path = data.folder / data.names[index]
        raise ValueError(f"{key}={path} does not fit this run: {wrong}; choose another data set")
    return episode


def _unfit(episode: Episode, env: RowsEnv, obs_keys: Sequence[str]) -> str:
    actions = episode.action.shape[1]
    if actions != env.env_spec.action_dim:
        return f"it has {actions} actions, the task {env.env_spec.action_dim}"
    if np.abs(episode.action).max() > 1:
        return f"its actions go from {episode.action.min():.8g} to {episode.action.max():.8g}; {MEND}"
    for key in obs_keys:
        width = getattr(episode, key).shape[1]
        if key != "pixels" and width != env.widths.get(key, 0):
            return f"it holds {width} numbers of {key}, the task tells {env.widths.get(key, 0)}"
    return ""
