"""A small pixel world that runs anywhere: a red dot is moved to a green goal. Home of the tests and of first runs.

Knows numpy only. Three variants by name: `reach`, `reach-discrete`, `reach-terminal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask, WorldFacts

TASKS = ("reach", "reach-discrete", "reach-terminal")

_STRIDE = 0.12  # of the field's side, per simulator step at full action
_NEAR = 0.12  # a dot this close to the goal's centre has reached it
_APART = 0.45  # dot and goal begin at least this far from each other
_MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # x to the right, y down

_FIELD = np.array([24, 24, 48], np.float32)
_GOAL = np.array([40, 220, 60], np.float32)
_DOT = np.array([250, 60, 50], np.float32)


@dataclass(frozen=True, kw_only=True)
class ToyTask:
    """A variant of the toy world, by name. Raises: UnknownTask."""

    tasks: ClassVar[Sequence[str]] = TASKS
    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UnknownTask("the toy world", self.name, TASKS)

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        """What differs between the variants is how to act, and whether success ends an episode."""
        discrete = self.name == "reach-discrete"
        return WorldFacts(
            action_dim=len(_MOVES) if discrete else 2,
            discrete=discrete,
            terminates=self.name == "reach-terminal",
            proprio_dim=2,
            state_dim=4,
            snapshot_dim=4,
            expert=True,
            parts={"dot": slice(0, 2), "goal": slice(2, 4)},
        )

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        """About a camera: the toy world has one view of its own."""
        if protocol.camera is not None or protocol.flip != "none":
            yield (
                f"protocol.camera must be null and protocol.flip none in the toy world, which has one upright view "
                f"(got protocol {protocol.name}); use protocol=toy"
            )

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[Toy]:
        """`rows` worlds."""
        facts = self.facts(protocol)
        return [Toy(facts, image=protocol.image) for _ in range(rows)]


class Toy:
    """A dot in the unit square. An episode draws a start and a goal.

    Reward: closeness `1 - tanh(2 d)` in (0, 1], d the distance to the goal after the step; in `reach-terminal`
    closeness - 1, so that ending early, which success does there, is worth it. Success: d < 0.12.
    """

    def __init__(self, facts: WorldFacts, *, image: int) -> None:
        self._discrete, self._ends = facts.discrete, facts.terminates
        self._side = np.arange(image, dtype=np.float32) + 0.5
        self._image = image
        self._dot = self._goal = np.zeros(2)

    def reset(self, seed: int) -> None:
        """Draws the start and the goal."""
        random = np.random.default_rng(seed)
        while True:
            self._dot, self._goal = random.random(2), random.random(2)
            if self._distance() >= _APART:
                return

    def _distance(self) -> float:
        return float(np.linalg.norm(self._goal - self._dot))

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """Moves the dot by at most 0.12 per axis."""
        move = _MOVES[int(action.argmax())] if self._discrete else action
        self._dot = np.clip(self._dot + _STRIDE * move.astype(np.float64), 0, 1)
        distance = self._distance()
        success = distance < _NEAR
        reward = 1 - np.tanh(2 * distance) - self._ends
        return SimStep(reward=float(reward), terminated=success and self._ends, success=success)

    def draw(self) -> NDArray[np.uint8]:
        """u8 [3, H, W]: the goal is a square, the dot a disc over it; edges are smooth, so small moves can be seen."""
        unit = self._image / 8  # an eighth of the side: both are a quarter of the picture wide, never cut off
        goal_x, goal_y = unit + self._goal * (self._image - 2 * unit)
        dot_x, dot_y = unit + self._dot * (self._image - 2 * unit)
        across = np.clip(unit + 0.5 - np.abs(self._side - goal_x), 0, 1)
        down = np.clip(unit + 0.5 - np.abs(self._side - goal_y), 0, 1)
        square_HW1 = (down[:, None] * across[None, :])[..., None]
        radius_HW = np.hypot((self._side - dot_y)[:, None], (self._side - dot_x)[None, :])
        disc_HW1 = np.clip(unit + 0.5 - radius_HW, 0, 1)[..., None]
        frame_HWC = _FIELD + square_HW1 * (_GOAL - _FIELD)
        frame_HWC = frame_HWC + disc_HW1 * (_DOT - frame_HWC)
        return np.ascontiguousarray(frame_HWC.round().astype(np.uint8).transpose(2, 0, 1))

    def state(self) -> NDArray[np.float32]:
        """Places of dot and goal, f32 [4]."""
        return np.concatenate([self._dot, self._goal]).astype(np.float32)

    def proprio(self) -> NDArray[np.float32]:
        """Where the dot is, from the field's middle, f32 [2]."""
        return (self.state()[:2] - np.float32(0.5)) * np.float32(2.0)

    def snapshot(self) -> NDArray[np.float64]:
        """Places of dot and goal, f64 [4]."""
        return np.concatenate([self._dot, self._goal])

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Inverse of `snapshot`."""
        self._dot, self._goal = snapshot_P[:2].copy(), snapshot_P[2:].copy()

    def expert(self) -> NDArray[np.float32]:
        """Straight to the goal, then stay."""
        wanted = (self._goal - self._dot) / _STRIDE
        if not self._discrete:
            return np.clip(wanted, -1, 1).astype(np.float32)
        after = np.clip(self._dot + _STRIDE * _MOVES, 0, 1)
        best = np.linalg.norm(after - self._goal, axis=1).argmin()
        return np.eye(len(_MOVES), dtype=np.float32)[best]

    def close(self) -> None:
        """Holds nothing."""
