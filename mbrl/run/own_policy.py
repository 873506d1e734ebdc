"""Anybody's policy on the episodes, and under the rules, that an agent's final score is of.

Knows a callable from a frame (and what a robot knows of itself) to an action; nothing of learning.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from agents.api import Memory, Mode
from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import EnvDataError
from mbrl.run.evaluate import Evaluator, Score
from mbrl.rundir.build import named_packages
from worldmodel.answers import method, raised, shown
from worldmodel.seeds import Seeds


class OwnPolicy(Protocol):
    """What is scored. One that also has `reset()` is told when an episode begins."""

    def __call__(self, pixels: NDArray[np.uint8], proprio: NDArray[np.float32], /) -> Any:
        """Frame [H, W, 3] and proprioception [Q] (empty where a world has none) -> action [A] in [-1, 1].

        Choices are [A] too: the largest number is taken.
        """
        ...


@dataclass(frozen=True)
class OneForEachRow:
    """Policies that never see more than one episode at a time, as an agent (`mbrl.run.collect.Acts`)."""

    policies: tuple[OwnPolicy, ...]
    env: RowsEnv

    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """Actions f32 [E, A]. Raises: EnvDataError for what is no action of this world."""
        rows = enumerate(zip(self.policies, td.unbind(0), strict=True))
        return torch.stack([self._action(row, policy, seen) for row, (policy, seen) in rows]), None

    def _action(self, row: int, policy: OwnPolicy, seen: TensorDict) -> Tensor:
        # copies: whatever a policy does to what it is shown, the episode stays as it is
        pixels_HW3 = seen["pixels"].permute(1, 2, 0).numpy().copy()
        proprio_Q = seen["proprio"].numpy().copy() if "proprio" in seen.keys() else np.zeros(0, np.float32)  # noqa: SIM118
        width, where = self.env.env_spec.action_dim, f"in row {row}, episode {self.env.episodes[row]}"
        who = method(policy, "reset")
        try:
            if bool(seen["is_init"]) and (reset := getattr(policy, "reset", None)) is not None:
                reset()
            who = method(policy, "__call__")
            said = policy(pixels_HW3, proprio_Q)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a user's class throws
            raise EnvDataError(f"{raised(who, error)} {where}") from error
        try:
            action_A = torch.as_tensor(np.asarray(said, dtype=np.float32).copy())
        except Exception as error:
            raise EnvDataError(f"{who} must return {width} numbers (got {shown(said)}) {where}") from error
        if action_A.shape != (width,) or not bool(action_A.isfinite().all()):
            got = f"{tuple(action_A.shape)} of them" if action_A.shape != (width,) else "some that are not finite"
            raise EnvDataError(f"{who} must return {width} finite numbers (got {got}) {where}")
        return action_A


def score_policy(
    make_policy: Callable[[], OwnPolicy], task: Any, protocol: ProtocolConfig, *, seed: int, episodes: int, rows: int
) -> Score:
    """Whole episodes with the starts and goals that the final score of a run of this seed and these rows has.

    Args:
        make_policy: called once for each row, since a policy may remember its episode.
        task: a task of `configs/task`, as `mbrl train` builds it.
    Raises: ValueError where task and protocol do not go together, and for what is no policy; EnvDataError.
    """
    for complaint in task.complaints(protocol):
        raise ValueError(complaint)
    env = make_envs(task, protocol, seeds=Seeds(seed), stream="evaluate", rows=rows, snapshots=False, workers=0)
    try:
        keys = ("proprio",) if env.facts.proprio_dim else ()
        policies = tuple(make_policy() for _ in range(rows))
        if not callable(policies[0]):
            raise ValueError(f"a policy must be callable with a frame and proprioception (got {policies[0]!r:.80})")
        return Evaluator(env, obs_keys=keys).score(OneForEachRow(policies, env), episodes)
    finally:
        env.close()


def found_policy(name: str) -> Callable[[], OwnPolicy]:
    """What `package.module.Name` says: a class or a function that makes a policy, called without arguments.

    Raises: ValueError in one line.
    """
    module, _, attribute = name.rpartition(".")
    named_packages.add(module.split(".")[0])
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"policy must be package.module.Name, something that Python finds (got {name}: {error}); "
            "--config-dir DIR lets it look in DIR and beside it"
        ) from error
    if not callable(found):
        raise ValueError(f"policy must name a class or function that makes a policy (got {name}, {found!r})")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ValueError(
            f"policy must name what makes a policy when it is called without arguments (got {name}: {error}); "
            "a function that is the policy itself needs one that returns it"
        ) from error
    return found
