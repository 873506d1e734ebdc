"""Any registered Gymnasium environment that draws itself: frames in a square, actions in [-1, 1] or one-hot.

What an environment is like only it can say: a task makes one, and draws it once, before anything else is built.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray
from PIL import Image

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask, WorldFacts, symlog
from worldmodel.answers import shown, wrong

SDL = {  # draws the classic environments; without these it greets, looks for a window and sound, and takes the signals
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
    "SDL_NO_SIGNAL_HANDLERS": "1",
}


@dataclass(frozen=True, kw_only=True)
class GymnasiumTask:
    """An environment by the id that it is registered under. Raises: UnknownTask."""

    tasks: ClassVar[Sequence[str]] = tuple(gymnasium.registry)
    name: str

    def __post_init__(self) -> None:
        if self.name not in self.tasks:
            raise UnknownTask("Gymnasium", self.name, self.tasks)

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        """What one environment shows. Raises: ValueError where there can be none: see `complaints`."""
        return facts_of(self.name)

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        """About the environment, its actions and pictures, and about a camera."""
        try:
            facts_of(self.name)
        except ValueError as error:
            yield str(error)
        if protocol.camera is not None or protocol.flip != "none":
            yield (
                "protocol.camera must be null and protocol.flip none in Gymnasium, whose environments have one view "
                f"(got protocol {protocol.name}); use protocol=gymnasium"
            )
        if protocol.zero_action_first:
            yield "protocol.zero_action_first must be false in Gymnasium, whose environments begin at their reset"

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[GymnasiumWorld]:
        """`rows` environments."""
        return [GymnasiumWorld(made(self.name), protocol.image) for _ in range(rows)]


@functools.cache
def facts_of(name: str) -> WorldFacts:
    """What an environment of this id is like. Raises: ValueError, one line, where nobody could act in it or see it."""
    env = made(name)
    try:
        space, observation = env.action_space, env.observation_space
        env.reset(seed=0)
        letterboxed(env.render(), 8)
    except Exception as error:  # whatever a driver or a foreign package throws
        raise ValueError(f"task.name={name} cannot be drawn: {one_line(error)}") from error
    finally:
        env.close()
    action_dim, discrete = actions(name, space)
    vector = isinstance(observation, Box) and len(observation.shape) == 1
    observed = int(observation.shape[0]) if vector else 0
    return WorldFacts(
        action_dim=action_dim,
        discrete=discrete,
        terminates=True,  # no registry says whether it ever does
        success=False,
        proprio_dim=observed,
        state_dim=observed,
    )


def made(name: str) -> Any:
    """An environment that can be drawn. Raises: ValueError, one line, with Gymnasium's own word on what is missing."""
    os.environ.update({key: value for key, value in SDL.items() if key not in os.environ})
    if "mujoco" in str(gymnasium.spec(name).entry_point) and "MUJOCO_GL" not in os.environ:
        from mbrl.envs.back_end import back_end

        if (chosen := back_end()) != "native":  # left alone, Gymnasium tries windows first, and cannot go on
            os.environ["MUJOCO_GL"] = chosen
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions out of date
            env = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True)
    except Exception as error:
        raise ValueError(f"task.name={name} cannot be made: {one_line(error)}") from error
    modes = env.metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        env.close()
        raise ValueError(f"task.name={name} cannot be drawn: its render_modes have no rgb_array (got {modes})")
    return env


def one_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def actions(name: str, space: Space[Any]) -> tuple[int, bool]:
    """How many choices, or numbers, an action has, and whether it is a choice.

    Raises: ValueError for all but Discrete, and Box of bounded floats.
    """
    if isinstance(space, Discrete):
        return int(space.n), True
    if not isinstance(space, Box):
        kind = type(space).__name__
        raise ValueError(f"task.name={name} has {kind} actions; only Box and Discrete ones can be taken")
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"task.name={name} has a Box of {space.dtype} for actions; only floats can be scaled")
    if not space.is_bounded():
        raise ValueError(f"task.name={name} has actions without bounds, which cannot be scaled from [-1, 1]")
    return int(np.prod(space.shape)), False


class GymnasiumWorld:
    """One environment. Terminated and truncated stay what they are there; its own time limit truncates too."""

    def __init__(self, env: Any, image: int) -> None:
        self._env, self._image, self._space = env, image, env.action_space
        self._observation: Any = None

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        self._observation, _ = self._env.reset(seed=seed)

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """One step; [-1, 1] are the bounds of its Box, a one-hot place is one of its choices."""
        space = self._space
        if isinstance(space, Discrete):
            given: Any = space.start + action.argmax()
        else:
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            given = ((low + high) / 2 + (high - low) / 2 * action.reshape(space.shape)).astype(space.dtype)
        answer = self._env.step(given)
        if not isinstance(answer, tuple) or len(answer) != 5:
            right = "(observation, reward, terminated, truncated, info)"
            raise wrong(self._env.unwrapped, "step", right, shown(answer))
        self._observation, reward, *ends, _ = answer
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()
        if not isinstance(reward, Real):
            raise wrong(self._env.unwrapped, "step", "a number as reward", shown(reward))
        for name, end in zip(("terminated", "truncated"), ends, strict=True):
            if not isinstance(end, bool | np.bool_ | int | np.integer):
                raise wrong(self._env.unwrapped, "step", f"True or False as {name}", shown(end))
        terminated, truncated = map(bool, ends)
        return SimStep(float(reward), terminated=terminated, truncated=truncated)

    def draw(self) -> NDArray[np.uint8]:
        """u8 [3, H, W]."""
        return letterboxed(self._env.render(), self._image)

    def state(self) -> NDArray[np.float32]:
        """Its observation, where that is a vector, f32 [S]."""
        return np.asarray(self._observation, np.float32)

    def proprio(self) -> NDArray[np.float32]:
        """The same on a symlog scale, since its numbers may be of any size, f32 [Q]."""
        return symlog(np.asarray(self._observation, np.float64))

    def close(self) -> None:
        """Closes it."""
        self._env.close()


def letterboxed(frame: Any, side: int) -> NDArray[np.uint8]:
    """u8 [H, W, 3] -> u8 [3, side, side]: the longer side fills it, black bars fill the rest, pixels are averaged.

    Raises: ValueError for anything else.
    """
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else shown(frame)
        raise ValueError(f"a frame must be uint8 [height, width, 3] (got {got})")
    height, width = (max(1, round(side * length / max(frame.shape[:2]))) for length in frame.shape[:2])
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
    square_HWC = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square_HWC[top : top + height, left : left + width] = np.asarray(small)
    return np.ascontiguousarray(square_HWC.transpose(2, 0, 1))
