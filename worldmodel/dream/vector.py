"""A dream as Gymnasium knows it: a vector environment of frames, for any library that trains in one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from worldmodel.dream.imagine import Dream
from worldmodel.dream.session import DreamSession, Starts
from worldmodel.spec import EnvSpec

Frames = NDArray[np.uint8]


class DreamVectorEnv(VectorEnv[Frames, NDArray[Any], NDArray[Any]]):
    """`num_envs` dreams side by side.

    * Observations are imagined frames, uint8 [num_envs, H, W, 3], as Gymnasium's image wrappers want them. Actions are
      a Box in [-1, 1], or choices where the world has them.
    * All dreams begin and end together: `truncations` after `horizon` steps, with the last frame as observation. The
      step that follows, whatever its actions, begins the next dreams and pays nothing (`AutoresetMode.NEXT_STEP`, which
      Gymnasium's own wrappers want); a loop of one's own calls `reset` instead and loses no step.
    * `terminations` are never set. An end is soft in a dream, `infos["continue"]` in [0, 1], the model's probability
      that the episode goes on after this frame; who values what follows multiplies its discount by it.
    * Frames are sampled with numbers named by (stream, draw, frame), and each reset takes the next draw; `reset(seed=)`
      counts on from the first draw of the seed. After `draw = k` everything is again as it was from draw k on.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        dream: Dream,
        env_spec: EnvSpec,
        starts: Starts,
        *,
        num_envs: int,
        horizon: int,
        stream: str = "dream/vector",
        device: torch.device | str = "cpu",
    ) -> None:
        """See `DreamSession`. Raises: ValueError in one line."""
        self.session = DreamSession(
            dream, env_spec, horizon=horizon, starts=starts, rows=num_envs, stream=stream, device=device
        )
        self.num_envs, side, width = num_envs, dream.spec.image, env_spec.action_dim
        self.single_observation_space = Box(0, 255, (side, side, 3), np.uint8)
        self.single_action_space = Discrete(width) if env_spec.discrete else Box(-1.0, 1.0, (width,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: TensorDict | None = None
        self._ended = False

    @property
    def draw(self) -> int:
        """Number of the dreams that go on now; assigning it says which the next reset begins."""
        return self.session.draw

    @draw.setter
    def draw(self, number: int) -> None:
        self.session.draw = number

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        """Begins all dreams anew. Raises: ValueError for options: a part of them cannot begin."""
        if options:
            raise ValueError(f"dreams begin and end together, and take no options (got {', '.join(options)})")
        super().reset(seed=seed)
        if seed is not None:
            self.session.seed(seed)
        self._state, self._ended = self.session.begin(), False
        return self._frames(self._state), self._infos(self._state)

    def step(self, actions: NDArray[Any]) -> tuple[Frames, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One imagined step of every dream, or the beginning of the next ones where these have ended.

        Raises: ValueError before `reset`, and for actions of another shape or kind, or that are not finite.
        """
        if self._state is None:
            raise ValueError("reset comes before the first step")
        action_BA, nothing = self._actions(actions), np.zeros(self.num_envs, np.bool_)
        if self._ended:
            frames, infos = self.reset()
            return frames, nothing.astype(np.float32), nothing, nothing.copy(), infos
        self._state = self.session.step(self._state, action_BA)
        rewards, truncations = _by_row(self._state["reward"]), _by_row(self.session.over(self._state))
        self._ended = bool(truncations.all())
        return self._frames(self._state), rewards, nothing, truncations, self._infos(self._state)

    def _actions(self, actions: NDArray[Any]) -> Tensor:
        """What the agent says -> what is done, f32 [num_envs, A]."""
        space, given = self.single_action_space, np.asarray(actions)
        if given.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape} (got {given.shape})")
        if isinstance(space, Discrete):
            if given.dtype.kind not in "iu" or not ((given >= 0) & (given < space.n)).all():
                raise ValueError(f"actions must be whole numbers in [0, {space.n}) (got {given.tolist()})")
            given = np.eye(int(space.n))[given]
        if not np.isfinite(given).all():
            raise ValueError(f"actions must be finite (got {given.tolist()})")
        return self.session.executed(torch.from_numpy(given))

    def _frames(self, state: TensorDict) -> Frames:
        return self.session.dream.decode(state).permute(0, 2, 3, 1).cpu().numpy().copy()

    def _infos(self, state: TensorDict) -> dict[str, Any]:
        return {"continue": _by_row(state["continue"]), "_continue": np.ones(self.num_envs, np.bool_)}


def _by_row(value_B1: Tensor) -> NDArray[Any]:
    """[B, 1] -> [B], in memory of its own."""
    return value_B1[:, 0].cpu().numpy().copy()
