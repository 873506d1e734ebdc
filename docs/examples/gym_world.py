"""Any Gymnasium environment that draws itself, as a world; and a pendulum that does so without further packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask, WorldFacts


class DrawnPendulum(PendulumEnv):
    """Gymnasium's pendulum; its own picture needs pygame."""

    def render(self):
        x, y = np.meshgrid(np.linspace(-1.2, 1.2, 64), np.linspace(1.2, -1.2, 64))
        angle = self.state[0]  # 0: upright
        along, across = y * np.cos(angle) - x * np.sin(angle), x * np.cos(angle) + y * np.sin(angle)
        rod = (np.abs(across) < 0.12) & (along > 0) & (along < 1)
        return np.where(rod[..., None], (250, 60, 50), (24, 24, 48)).astype(np.uint8)


gymnasium.register("DrawnPendulum-v0", entry_point=DrawnPendulum, max_episode_steps=200)


@dataclass(frozen=True, kw_only=True)
class GymTask:
    tasks: ClassVar = tuple(gymnasium.registry)
    name: str
    action_dim: int  # what it is like must be known before it is built
    discrete: bool
    terminates: bool

    def __post_init__(self) -> None:
        if self.name not in self.tasks:
            raise UnknownTask("Gymnasium", self.name, self.tasks)

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        how = {"discrete": self.discrete, "terminates": self.terminates}
        return WorldFacts(action_dim=self.action_dim, success=False, **how)

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        if protocol.camera is not None:
            yield f"protocol.camera must be null in Gymnasium (got protocol {protocol.name}); use protocol=gym"

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[GymWorld]:
        return [GymWorld(self, protocol.image) for _ in range(rows)]


class GymWorld:
    def __init__(self, task: GymTask, image: int) -> None:
        self.env, self.image = gymnasium.make(task.name, render_mode="rgb_array"), image
        self.space = self.env.action_space
        size = self.space.n if task.discrete else self.space.shape[0]
        if size != task.action_dim:
            raise ValueError(f"task.action_dim must be {size} for {task.name} (got {task.action_dim})")

    def reset(self, seed: int) -> None:
        self.env.reset(seed=seed)

    def step(self, action: np.ndarray) -> SimStep:
        if isinstance(self.space, gymnasium.spaces.Discrete):
            given = self.space.start + int(action.argmax())
        else:  # from [-1, 1] to its bounds
            given = self.space.low + (action + 1) / 2 * (self.space.high - self.space.low)
        _, reward, terminated, truncated, _ = self.env.step(given)
        return SimStep(float(reward), bool(terminated), bool(truncated))

    def draw(self) -> np.ndarray:
        frame = Image.fromarray(self.env.render()).resize((self.image, self.image), Image.Resampling.BOX)
        return np.asarray(frame).transpose(2, 0, 1)

    def close(self) -> None:
        self.env.close()
