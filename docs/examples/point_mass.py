"""A point mass that is pushed to the middle of a box and draws itself: a world of one's own in one file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mbrl.envs.simulator import SimStep, WorldFacts


@dataclass(frozen=True, kw_only=True)
class PointMassTask:
    tasks: ClassVar = ("light", "heavy")
    name: str
    friction: float

    def __post_init__(self):
        if self.name not in self.tasks:
            raise ValueError(f"name must be one of {', '.join(self.tasks)} (got {self.name})")

    def facts(self, protocol) -> WorldFacts:  # what is known before anything is built; it knows no success
        return WorldFacts(action_dim=2, success=False)

    def complaints(self, protocol) -> Iterator[str]:
        if protocol.camera is not None:
            yield f"protocol.camera must be null for a point mass (got protocol {protocol.name}); use protocol=toy"

    def build(self, *, protocol, rows):
        mass = 1.0 if self.name == "light" else 3.0
        return [PointMass(mass, self.friction, protocol.image) for _ in range(rows)]


class PointMass:
    def __init__(self, mass, friction, image):
        self.mass, self.friction = mass, friction
        self.place = self.speed = np.zeros(2)
        self.frame = np.zeros((3, image, image), np.uint8)

    def reset(self, seed):
        self.place, self.speed = np.random.default_rng(seed).uniform(-1, 1, 2), np.zeros(2)

    def step(self, action):
        self.speed = (1 - self.friction) * self.speed + 0.1 * action / self.mass
        self.place = np.clip(self.place + self.speed, -1, 1)
        return SimStep(reward=-float(np.hypot(*self.place)))

    def draw(self):
        side = self.frame.shape[1]
        x, y = ((self.place + 1) / 2 * (side - 5)).astype(int)
        self.frame[:] = 40
        self.frame[1, side // 2 - 2 : side // 2 + 3, side // 2 - 2 : side // 2 + 3] = 200
        self.frame[0, y : y + 5, x : x + 5] = 250
        return self.frame

    def close(self):
        pass
