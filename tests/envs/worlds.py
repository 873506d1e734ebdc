"""Worlds for the tests: a scripted one that records what reaches it, and the protocols from the YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.row import Row
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import SimStep, WorldFacts
from mbrl.envs.workers import Here
from mbrl.rundir.build import make
from worldmodel.seeds import Seeds

CONFIGS = Path(__file__).parents[2] / "configs"


def config(group: str, variant: str, /, **changes: Any) -> Any:
    """The dataclass that configs/<group>/<variant>.yaml describes."""
    plain = yaml.safe_load((CONFIGS / group / f"{variant}.yaml").read_text())
    return make(plain | changes, group, trusted=True)


COUNTING = WorldFacts(
    action_dim=3,
    terminates=True,
    proprio_dim=1,
    state_dim=2,
    snapshot_dim=3,
    expert=True,
    parts={"count": slice(0, 1)},
)


@dataclass
class Recorder:
    """A world of one counter: each step gives what `script` says for its number, and records the action."""

    script: dict[int, SimStep] = field(default_factory=dict)
    image: int = 16
    facts: WorldFacts = COUNTING
    seeds: list[int] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    count: int = 0
    frame: NDArray[Any] | None = None

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)
        self.count = 0

    def step(self, action: NDArray[np.float32]) -> SimStep:
        self.actions.append(action.copy())
        self.count += 1
        return self.script.get(self.count, SimStep(1.0, terminated=False, success=False))

    def draw(self) -> NDArray[Any]:
        if self.frame is not None:
            return self.frame
        return np.full((3, self.image, self.image), self.count, np.uint8)

    def state(self) -> NDArray[np.float32]:
        return np.array([self.count, 10 * self.count], np.float32)

    def proprio(self) -> NDArray[np.float32]:
        return np.array([self.count], np.float32)

    def snapshot(self) -> NDArray[np.float64]:
        return np.array([self.count, 0.5, -1.0])

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        self.count = int(snapshot_P[0])

    def expert(self) -> NDArray[np.float32]:
        return np.full(3, 0.5, np.float32)

    def close(self) -> None:
        pass


def simulator_of(env: RowsEnv, row: int = 0) -> Any:
    """The simulator of a row that lives in this process."""
    return env._home.rows[row].simulator  # type: ignore[attr-defined]


def recorded(worlds: list[Recorder], *, snapshots: bool = False, **changes: Any) -> RowsEnv:
    """Rows over recorders under the toy protocol."""
    protocol: ProtocolConfig = config("protocol", "toy", image=16, **changes)
    facts, count = worlds[0].facts, len(worlds)
    rows = {
        number: Row(world, facts, protocol, task="recorder", number=number, snapshots=snapshots)
        for number, world in enumerate(worlds)
    }
    names: dict[str, Any] = {"task": "recorder", "seeds": Seeds(7), "stream": "env"}
    return RowsEnv(Here(rows), facts, protocol, rows=count, snapshots=snapshots, **names)


def toy(name: str = "reach", *, rows: int = 3, **more: Any) -> RowsEnv:
    """Rows of the toy world; `more`: as for `made`."""
    return made("toy", name, "toy", rows=rows, **more)


def metaworld(name: str, *, rows: int = 1, protocol: str = "default", **more: Any) -> RowsEnv:
    """Rows of a Meta-World task; `more`: as for `made`."""
    return made("metaworld", name, protocol, rows=rows, **more)


def made(
    world: str,
    name: str,
    protocol: str,
    *,
    rows: int,
    run: int = 0,
    stream: str = "env",
    snapshots: bool = False,
    workers: int = 0,
    **changes: Any,
) -> RowsEnv:
    """Rows of configs/task/<world>.yaml under a protocol with some changes."""
    task, rules = config("task", world, name=name), config("protocol", protocol, **changes)
    return make_envs(task, rules, seeds=Seeds(run), stream=stream, rows=rows, snapshots=snapshots, workers=workers)
