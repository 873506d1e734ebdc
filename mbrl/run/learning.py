"""What every process of a run does: it keeps time, and updates model and agent on its rows of each batch.

The first process does more (`mbrl.run.run.Run`): it collects, measures, evaluates, writes. The others wait meanwhile.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from agents.api import Agent, Metrics, metrics_of
from mbrl.io.checkpoint import Stateful
from mbrl.io.logger import X
from mbrl.io.tree import join, split
from mbrl.progress import told
from mbrl.replay.clips import ClipReplay, OwnRows
from mbrl.replay.episode import Episode
from mbrl.run.clock import Cadence, Clock
from mbrl.run.gate import Gate, GateConfig
from mbrl.run.progress import NOTED, TIMES
from mbrl.rundir.stop import Stop
from worldmodel.answers import wrong
from worldmodel.api import WorldModel
from worldmodel.processes import Processes
from worldmodel.training.updater import Updater

log = logging.getLogger("mbrl")

OWED = ("learn", "evaluate", "log", "save")
"""What the schedule owes in the order of the loop, behind the updates of the world model's parts."""
MANY = 50
"""Updates owed at once that take long enough to be announced: the first fits are minutes of silence otherwise."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What is owed when, in env steps (simulator steps after action repeat).

    Attributes:
        total: env steps of the run.
        prefill: env steps that the prefilling agent collects first.
        tokenizer: updates of this part of the world model.
        dynamics: the same; nothing is owed to a part that the model lacks.
        learn: updates of the agent.
        evaluate: interim evaluations.
        log: rows of metrics.csv and progress lines.
        save: checkpoints.
        gate: what the world model must show before `learn` begins; what is owed until then is caught up.
    """

    total: int
    prefill: int
    tokenizer: Cadence
    dynamics: Cadence
    learn: Cadence
    evaluate: Cadence
    log: Cadence
    save: Cadence
    gate: GateConfig

    def __post_init__(self) -> None:
        for name in ("total", "prefill"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.prefill > self.total:
            raise ValueError(f"prefill must be <= total={self.total} (got {self.prefill})")
        for name, cadence in {**self.fits, "learn": self.learn}.items():
            if cadence.ever and cadence.start < self.prefill:
                raise ValueError(
                    f"{name}.start must be >= prefill={self.prefill}: there is no replay before (got {cadence.start})"
                )

    @property
    def fits(self) -> dict[str, Cadence]:
        """The cadences of the world model's parts."""
        cadences = {name: value for name, value in vars(self).items() if isinstance(value, Cadence)}
        return {name: cadence for name, cadence in cadences.items() if name not in OWED}


@dataclass(kw_only=True)
class Learning:
    """A run without a first process's tasks, which are nothing here.

    Attributes:
        stopped: whether a stop was asked for in any process, as they last agreed.
    """

    schedule: ScheduleConfig
    clock: Clock
    model: WorldModel
    replay: ClipReplay
    updater: Updater
    agent: Agent
    gate: Gate
    stop: Stop
    processes: Processes
    stopped: bool = False
    _listing: list[list[str]] | None = None

    @property
    def drawn(self) -> ClipReplay | OwnRows:
        """The replay as this process draws from it."""
        if self.processes.world == 1:
            return self.replay
        return OwnRows(self.replay, rank=self.processes.rank, world=self.processes.world)

    def stopping(self) -> bool:
        """Whether a stop is asked for in any process; all must ask."""
        self.stopped = self.processes.any(bool(self.stop))
        return self.stopped

    def going(self) -> bool:
        """Whether the loop goes on; the processes agree."""
        return not self.stopping() and (self.clock.env_steps < self.schedule.total or self.behind())

    def behind(self) -> bool:
        """Whether anything is owed still: a run that was stopped between two updates first does the rest of them."""
        done, now = self.clock.done, self.clock.env_steps
        names = (*self.model.spec.parts, *OWED)
        return any(getattr(self.schedule, name).owed(now, done.get(name, 0)) for name in names if self._may(name))

    def _may(self, name: str) -> bool:
        """Whether what is owed of `name` may be done now: the agent learns behind the gate."""
        return name != "learn" or self.gate.open

    def owed(self, name: str) -> Iterator[int]:
        """The updates of `name` that are owed now; none once a stop is asked for, none before a closed gate."""
        if not self._may(name):
            return
        cadence: Cadence = getattr(self.schedule, name)
        count = cadence.owed(self.clock.env_steps, self.clock.done.get(name, 0))
        if count >= MANY and not self.stopped:
            log.info("env step %d: %d updates of %s come first", self.clock.env_steps, count, name)
        tell = told(f"updates of {name}")
        for place, number in enumerate(self.clock.owed(name, cadence)):
            if self.stopping():
                return
            tell(place, count)
            yield number

    def learn(self, update: int) -> Metrics:
        """One update of the agent. Raises: WrongAnswer for what is no metrics, or has a name that the run uses."""
        metrics = metrics_of(self.agent, self.drawn, update)
        for name, value in metrics.items():
            if not math.isfinite(value):  # sync, as where they are noted
                raise wrong(self.agent, "learn", "finite numbers", f"{name}={float(value)}")
            if name in X or name in TIMES or name.startswith((*NOTED, *(f"{part}/" for part in self.model.spec.parts))):
                raise wrong(self.agent, "learn", "names that the run itself does not use, as agent/loss", name)
        return metrics

    def begin(self) -> None:
        """The others take over what the first process has loaded."""
        if self.processes.world > 1:
            take_over(self.model, "model", self.processes)
            take_over(self.updater, "updater", self.processes)
            take_over(self.agent, "agent", self.processes)
            self.agree()

    def agree(self) -> None:
        """The others take over what the first process has collected: time, the gate, and finished episodes."""
        if self.processes.world == 1:
            return
        shared: dict[str, Any] = {}
        if self.processes.first:
            shared = {"clock": self.clock.state_dict(), "gate": self.gate.state_dict()}
            if self._listing != (listing := self.replay.store.listing()):
                shared["episodes"] = self._listing = listing
        shared = json.loads(self.processes.broadcast_str(json.dumps(shared)))
        if not self.processes.first:
            self.clock.load_state_dict(shared["clock"])
            self.gate.load_state_dict(shared["gate"])
            if "episodes" in shared:
                self.replay.adopt(shared["episodes"])

    def finish(self) -> None:
        """The end of the loop; the processes agree whether it is a stop."""
        self.stopping()

    # -- tasks of the first process -----------------------------------------------------------------------------------

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Books the body's time on `collect`, `measure`, `fit`, `imagine`, `learn` or `evaluate`."""
        return nullcontext()

    def note(self, metrics: Metrics) -> None:
        """Takes one update's scalars."""

    def demonstrate(self) -> None:
        """Fills replay with demonstrations."""

    def measure_random_policy(self) -> None:
        """Scores what learning has to beat."""

    def collect(self) -> list[Episode]:
        """One decision in every environment; the episodes that ended with it."""
        return []

    def measure(self, episode: Episode) -> None:
        """Measures model and agent on an episode that was held out so far."""

    def evaluate(self) -> None:
        """An interim evaluation."""

    def report(self) -> None:
        """One row of metrics.csv and the progress line."""

    def save(self, *, owed: bool = True) -> None:
        """Writes a checkpoint."""


def take_over(part: Stateful, name: str, processes: Processes) -> None:
    """Gives `part` the state that it has in the first process; all must ask."""
    tree, tensors = split(part.state_dict(), name=name)
    kinds = {key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in tensors.items()}
    tree, kinds = json.loads(processes.broadcast_str(json.dumps([tree, kinds])))
    for key, (shape, kind) in kinds.items():
        held = tensors[key].to(processes.device) if processes.first else None
        empty = torch.empty(shape, dtype=getattr(torch, kind), device=processes.device)
        tensors[key] = processes.broadcast(empty if held is None else held.contiguous())
    if not processes.first:
        part.load_state_dict(join(tree, tensors))
