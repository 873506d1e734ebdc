"""The only door to real environments, and how fast they are behind it."""

from __future__ import annotations

import time

import torch

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import Task
from worldmodel.seeds import Seeds


def make_envs(
    task: Task, protocol: ProtocolConfig, *, seeds: Seeds, stream: str, rows: int, snapshots: bool = False
) -> RowsEnv:
    """`rows` environments of `task` under `protocol`, batch [rows].

    Row i's episode k begins from `seeds.integer(stream, i, k)`: give evaluation a stream of its own.

    Args:
        snapshots: real steps carry what a simulator can go on from; only a model that reads it is worth the memory.

    Raises: ValueError where task and protocol do not fit, NoRendering where frames cannot be drawn. (An unknown task is
    already refused by its config: UnknownTask.)
    """
    if rows < 1:
        raise ValueError(f"rows must be >= 1 (got {rows})")
    simulators = task.build(protocol=protocol, rows=rows)
    return RowsEnv(simulators, protocol, task=task.name, seeds=seeds, stream=stream, snapshots=snapshots)


def frames_per_second(task: Task, protocol: ProtocolConfig, *, decisions: int) -> float:
    """Frames delivered per second of wall time by one row: physics, drawing and the environment around them."""
    env = make_envs(task, protocol, seeds=Seeds(0), stream="speed", rows=1)
    try:
        now = env.reset()
        action = torch.zeros(1, env.env_spec.action_dim)
        _, now = env.step_and_maybe_reset(now.set("action", action))  # the first step builds caches
        begin = time.perf_counter()
        for _ in range(decisions):
            _, now = env.step_and_maybe_reset(now.set("action", action))
        return decisions / (time.perf_counter() - begin)
    finally:
        env.close()
