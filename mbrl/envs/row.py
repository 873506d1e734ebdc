"""One world with its protocol and its guards: action repeat, time limit, exact replay, and a check of all it gives.

A row answers one message per decision, so it may as well live in another process (`mbrl.envs.workers`). Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import (
    EnvDataError,
    Expert,
    Simulator,
    Snapshots,
    Stateful,
    Task,
    WorldFacts,
    ask,
    decide,
    taken,
)
from worldmodel.answers import method, shown


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a row shows after a reset, or after a decision.

    Attributes:
        frame: `pixels` u8 [3, H, W], `proprio` f32 [Q], `state` f32 [S], perhaps `snapshot` f64 [P].
        episode: its number.
        decision: how many there were in this episode.
        reward: of the newest decision; 0 after a reset.
        terminated, truncated: at most one of them, and only after the last decision.
        success: False where the world knows none.
        unstable: the physics broke down: the frame is that of before.
    """

    frame: dict[str, NDArray[Any]]
    episode: int
    decision: int = 0
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    unstable: bool = False

    @property
    def ended(self) -> bool:
        """Whether only a reset may follow."""
        return self.terminated or self.truncated


class Row:
    """A simulator under a protocol. Whatever goes wrong in it is an EnvDataError that names the place."""

    def __init__(
        self,
        simulator: Simulator,
        facts: WorldFacts,
        protocol: ProtocolConfig,
        *,
        task: str,
        number: int,
        snapshots: bool = False,
    ) -> None:
        """`snapshots`: every frame comes with a snapshot.

        Raises: EnvDataError where `facts` promise what the simulator has not.
        """
        self.simulator, self.facts, self.protocol = simulator, facts, protocol
        self._task, self._number, self._snapshots = task, number, snapshots
        self._episode = self._decision = 0
        self._frame: dict[str, NDArray[Any]] = {}
        promised = {
            Stateful: facts.state_dim or facts.proprio_dim,
            Snapshots: facts.snapshot_dim,
            Expert: facts.expert,
        }
        for kind, promise in promised.items():
            if promise and not isinstance(simulator, kind):
                raise EnvDataError(
                    f"the facts of {task} promise what {kind.__name__} has, and {type(simulator).__name__} has not"
                )

    @property
    def place(self) -> str:
        """For messages."""
        return f"in row {self._number} of {self._task}, episode {self._episode}, decision {self._decision}"

    @contextmanager
    def _placed(self) -> Iterator[None]:
        try:
            yield
        except EnvDataError as error:
            raise EnvDataError(f"{error} {self.place}") from error

    def begin(self, episode: int, seed: int) -> Seen:
        """Begins the episode of this number from this seed."""
        self._episode, self._decision = episode, 0
        with self._placed():
            ask(self.simulator, "reset", seed)
            self._frame = self._look()
        return Seen(frame=self._frame, episode=episode)

    def decide(self, action_A: NDArray[np.float32]) -> Seen:
        """One decision with an admissible action."""
        who = method(self.simulator, "step")
        with self._placed():
            made = decide(self.simulator, action_A, self.protocol)
            if not made.unstable:
                if (made.success is not None) is not self.facts.success:
                    right = "True or False" if self.facts.success else "None, which the facts of this world promise"
                    raise EnvDataError(f"{who}: success must be {right} (got {made.success})")
                if made.terminated and not self.facts.terminates:
                    promised = "terminated must be False, which the facts of this world promise"
                    raise EnvDataError(f"{who}: {promised} (got True)")
                self._frame = self._look()
        self._decision += 1
        limit = made.truncated or made.unstable or self._decision >= self.protocol.decisions
        return Seen(
            frame=self._frame,
            episode=self._episode,
            decision=self._decision,
            reward=made.reward,
            terminated=made.terminated,
            truncated=limit and not made.terminated,
            success=bool(made.success),
            unstable=made.unstable,
        )

    def _look(self) -> dict[str, NDArray[Any]]:
        """Frame and knowledge of this moment, each copied and checked."""
        facts, side, world = self.facts, self.protocol.image, self.simulator
        wanted: dict[str, tuple[str, tuple[int, ...], type[np.generic]]] = {
            "pixels": ("draw", (3, side, side), np.uint8),
            "proprio": ("proprio", (facts.proprio_dim,), np.float32),
            "state": ("state", (facts.state_dim,), np.float32),
        }
        if self._snapshots:
            wanted["snapshot"] = ("snapshot", (facts.snapshot_dim,), np.float64)
        frame = {}
        for key, (name, shape, dtype) in wanted.items():
            given = ask(world, name) if shape != (0,) else np.zeros(0)
            what = f"{method(world, name)}: {'frame' if key == 'pixels' else key}"
            frame[key] = taken(what, given, shape, dtype)
        return frame

    def replay(self, episode: int, seed: int, actions: Sequence[NDArray[np.float32]]) -> list[Seen]:
        """Re-creates an open episode exactly: what was seen after the reset and after each action.

        Raises: EnvDataError if it ends before its actions do (another task, protocol, seed or simulator).
        """
        seen = [self.begin(episode, seed)]
        for action_A in actions:
            if seen[-1].ended:
                raise EnvDataError(f"the episode ended before its {len(actions)} logged actions did {self.place}")
            seen.append(self.decide(action_A))
        return seen

    def expert(self) -> NDArray[np.float32]:
        """What the scripted expert would do now, f32 [A]. Moves nothing."""
        with self._placed():
            what = f"{method(self.simulator, 'expert')}: expert action"
            return taken(what, ask(self.simulator, "expert"), (self.facts.action_dim,), np.float32)

    def close(self) -> None:
        """Frees the simulator; may be called twice."""
        self.simulator.close()


def rows_of(task: Task, protocol: ProtocolConfig, *, numbers: Sequence[int], snapshots: bool = False) -> dict[int, Row]:
    """The rows of these numbers, whose simulators share what simulators of one process can.

    Raises: ValueError where task and protocol do not fit, NoRendering where frames cannot be drawn.
    """
    facts, made = task.facts(protocol), task.build(protocol=protocol, rows=len(numbers))
    if not isinstance(made, Sequence) or len(made) != len(numbers):
        got = f"{len(made)} of them" if isinstance(made, Sequence) else shown(made)
        raise ValueError(f"{method(task, 'build')} must return a list of rows={len(numbers)} worlds (got {got})")
    return {
        number: Row(simulator, facts, protocol, task=task.name, number=number, snapshots=snapshots)
        for number, simulator in zip(numbers, made, strict=True)
    }
