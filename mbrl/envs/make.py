"""The only door to real environments, and how fast they are behind it."""

from __future__ import annotations

import math
import time

import torch

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.row import rows_of
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import Task
from mbrl.envs.workers import Here, Home, Workers
from worldmodel.seeds import Seeds


def make_envs(
    task: Task,
    protocol: ProtocolConfig,
    *,
    seeds: Seeds,
    stream: str,
    rows: int,
    snapshots: bool = False,
    workers: int = 0,
) -> RowsEnv:
    """`rows` environments of `task` under `protocol`, batch [rows].

    Row i's episode k begins from `seeds.integer(stream, i, k)`: give evaluation a stream of its own.

    Args:
        snapshots: real steps carry what a simulator can go on from; only a model that reads it is worth the memory.
        workers: processes in which the rows live, at most one a row; 0 or 1: in this one. The bits are the same.

    Raises: ValueError where task and protocol do not fit, NoRendering where frames cannot be drawn. (An unknown task is
    already refused by its config: UnknownTask.)
    """
    if rows < 1:
        raise ValueError(f"rows must be >= 1 (got {rows})")
    for complaint in task.complaints(protocol):
        raise ValueError(complaint)
    facts = task.facts(protocol)
    if snapshots and not facts.snapshot_dim:
        raise ValueError(f"{task.name} has no snapshots to go on from")
    workers = min(workers, rows)
    home: Home
    if workers > 1:
        home = Workers(task, protocol, rows=rows, workers=workers, snapshots=snapshots)
    else:
        home = Here(rows_of(task, protocol, numbers=range(rows), snapshots=snapshots))
    return RowsEnv(home, facts, protocol, rows=rows, task=task.name, seeds=seeds, stream=stream, snapshots=snapshots)


def frames_per_second(
    task: Task, protocol: ProtocolConfig, *, decisions: int, rows: int = 1, workers: int = 0, within_s: float = math.inf
) -> float:
    """Frames delivered per second of wall time by all rows: physics, drawing and the environment around them.

    Args:
        decisions: so many are timed; fewer, one at least, where they take longer than `within_s` seconds.
    """
    env = make_envs(task, protocol, seeds=Seeds(0), stream="speed", rows=rows, workers=workers)
    try:
        now = env.reset()
        action = torch.zeros(rows, env.env_spec.action_dim)
        _, now = env.step_and_maybe_reset(now.set("action", action))  # the first step builds caches
        begin = time.perf_counter()
        done, spent = 0, 0.0
        while done < decisions and spent < within_s:
            _, now = env.step_and_maybe_reset(now.set("action", action))
            done, spent = done + 1, time.perf_counter() - begin
        return rows * done / spent
    finally:
        env.close()
