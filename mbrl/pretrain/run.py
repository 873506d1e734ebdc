"""A pre-training run: the objects that the loop moves, and the few verbs the loop speaks. Built by assemble.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbrl.data.source import ClipSource
from mbrl.io.checkpoint import Checkpoint, Checkpoints, NotSaved, read_checkpoint
from mbrl.io.logger import Logger
from mbrl.io.video import Videos, difference, strip
from mbrl.pretrain import measure
from mbrl.pretrain.configs import ScheduleConfig
from mbrl.progress import Tell, clock_time, told
from mbrl.rundir.stop import Stop
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.processes import Processes
from worldmodel.published.store import save_model
from worldmodel.spec import Part
from worldmodel.training.updater import Updater
from worldmodel.training.whole import WholeModel

log = logging.getLogger("mbrl")

COLUMNS = ("update", "clip")
"""x columns of metrics.csv and eval.csv: updates, and clips learned from over all processes."""
MODEL = "model"
"""Folder of the weights in the published layout, beside the checkpoints."""
PATIENCE = 3
"""Checkpoints in a row that may fail (disk full) before the run gives up."""
FPS = 10.0
TOLD = (
    "tokenizer/future_l1",
    "tokenizer/future_psnr",
    "codes/future_usage",
    "dynamics/ce",
    "dynamics/ce_shuffled",
    "prediction/psnr",
    "prediction/psnr_shuffled",
    "prediction/psnr_copy",
)
"""What is printed of a measurement."""
MEASURES = {"tokenizer": measure.tokenizer, "dynamics": measure.dynamics}
PICTURES = {"tokenizer": ("reconstruction", "decoded"), "dynamics": ("openloop", "predicted")}


class Stopped(Exception):
    """A stop was asked for in the middle of a measurement."""


@dataclass(kw_only=True)
class Writer:
    """What the first process alone holds: the files of the run."""

    logger: Logger
    videos: Videos
    checkpoints: Checkpoints


@dataclass(kw_only=True)
class Pretraining:
    """Everything of one run, in every process; the first one has a `writer`.

    Attributes:
        validation: clips that are measured, by part.
        updates: made so far.
        batch: clips per update.
        began_with: what is to be said of the weights that it begins from, by line.
        done: updates at which something was last done, by name.
        sums: of what was noted since the last row: sum and count by name.
    """

    folder: Path
    schedule: ScheduleConfig
    whole: WholeModel
    updater: Updater
    validation: Mapping[Part, ClipSource]
    processes: Processes
    stop: Stop
    writer: Writer | None
    batch: int
    began_with: Sequence[str] = ()
    updates: int = 0
    saved: int = -1
    unsaved: int = 0
    done: dict[str, int] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is trained, in the order of an update."""
        return tuple(self.updater.parts)

    @property
    def learned(self) -> Learned:
        """Weights and moments, as a checkpoint holds them; all processes must ask."""
        return Learned(self.whole, self.updater)

    def going(self) -> bool:
        """Whether the loop goes on; the processes agree."""
        self.stopped = self.processes.any(bool(self.stop))
        return not self.stopped and self.updates < self.schedule.total

    def due(self, name: str) -> bool:
        """Whether it is time for `name`, and it has not been done at this update."""
        every = getattr(self.schedule, name)
        owed = every > 0 and self.updates % every == 0 and self.done.get(name) != self.updates
        if name == "save" and self.updates >= self.schedule.total:
            return False  # the end saves by itself
        if owed:
            self.done[name] = self.updates
        return owed

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Books the body's time on learning."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def note(self, metrics: Mapping[str, float]) -> None:
        """Takes one update's scalars; they reach metrics.csv as means."""
        for name, value in metrics.items():
            pair = self.sums.setdefault(name, [0.0, 0.0])
            pair[0] += value
            pair[1] += 1.0

    def count(self) -> None:
        """One update more."""
        self.updates += 1

    def x(self) -> dict[str, int]:
        """The x columns of a row."""
        return {"update": self.updates, "clip": self.updates * self.batch}

    def evaluate(self) -> None:
        """Measures the validation clips; one row of eval.csv and a film for each part.

        A stop cuts it off, in all processes; it is owed again then.
        """
        cut = False
        with self.whole.measuring() as model:
            try:
                if self.writer is not None:
                    self._measure(model, self.writer)
            except Stopped:
                cut = True
        if self.processes.any(cut):
            self.stopped = True
            self.done.pop("evaluate", None)

    def _measure(self, model: IVideoGPT, writer: Writer) -> None:
        """In the first process. Raises: Stopped where a stop is asked for before the end."""
        count = self.schedule.clips
        log.info("update %d: %d clips of validation are measured (%s)", self.updates, count, ", ".join(self.parts))
        numbers: dict[str, float] = {}
        for part in self.parts:
            tell = told(f"clips of {part} measured")

            def heard(done: int, total: int, tell: Tell = tell) -> None:
                if self.stop:
                    raise Stopped
                tell(done, total)

            clips = self.validation[part].clips(count, self.updater.parts[part].length, stream="measure", draw=0)
            found = MEASURES[part](model, clips, heard)
            numbers |= found.numbers
            kind, made = PICTURES[part]
            shown = {"truth": found.truth, made: found.made, "difference": difference(found.truth, found.made)}
            path = writer.videos.film(kind, self.updates, strip(shown), fps=FPS)
            writer.logger.video(kind, path, self.x())
        writer.logger.evaluation(numbers, self.x())
        log.info("update %d: %s", self.updates, ", ".join(f"{n} {numbers[n]:.4g}" for n in TOLD if n in numbers))

    def report(self) -> None:
        """One row of metrics.csv and the progress line."""
        row = {name: total / count for name, (total, count) in sorted(self.sums.items())}
        updates = max((count for _, count in self.sums.values()), default=0.0)
        row["perf/clips_per_s"] = updates * self.batch / self.seconds if self.seconds else 0.0
        self.sums, spent, self.seconds = {}, self.seconds, 0.0
        if self.writer is None:
            return
        self.writer.logger.log(row, self.x())
        losses = " ".join(f"{part} {row[f'{part}/loss']:.4f}" for part in self.parts if f"{part}/loss" in row)
        left = spent / max(1.0, updates) * (self.schedule.total - self.updates)
        log.info(
            "update %6d/%d | %s | %.1f clips/s | %s left",
            self.updates,
            self.schedule.total,
            losses,
            row["perf/clips_per_s"],
            clock_time(left),
        )

    # -- what lasts ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters and sums; plain JSON."""
        return {"updates": self.updates, "done": dict(self.done), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.updates, self.done = state["updates"], dict(state["done"])
        self.sums = {name: list(pair) for name, pair in state["sums"].items()}

    def save(self, *, owed: bool = True) -> None:
        """A checkpoint, then `model/`; every process takes part, the first one writes."""
        states = self.learned.state_dict()
        self.saved = self.updates
        if self.writer is not None:
            parts: dict[str, Any] = {"pretrainer": Held(states), "run": self, "logger": self.writer.logger}
            try:
                self.writer.checkpoints.save(self.updates, parts)
                self.unsaved = 0
            except NotSaved as error:
                self.unsaved += 1
                if self.unsaved >= PATIENCE or not owed:
                    raise
                log.warning("%s; training goes on", error)
        with self.whole.measuring() as model:
            if self.writer is not None:
                save_model(model, self.folder / MODEL)

    def resume(self) -> int | None:
        """Goes on from the newest checkpoint that verifies, the same in every process; None for a new run."""
        step = -1
        if self.writer is not None:
            alone = self.learned if self.processes.world == 1 else Held({})
            found = self.writer.checkpoints.load({"pretrainer": alone, "run": self, "logger": self.writer.logger})
            step = -1 if found is None else found
        step = self.processes.all_reduce_max(step)
        if step < 0:
            return None
        self.saved = step
        if self.processes.world > 1:  # a sharded state is laid out by all processes together
            held = self._checkpoint(step)
            self.learned.load_state_dict(held.states["pretrainer"])
            self.load_state_dict(held.states["run"])
        return step

    def _checkpoint(self, step: int) -> Checkpoint:
        return read_checkpoint(self.folder / "checkpoints" / f"step-{step:09d}")

    def finish(self) -> None:
        """The last measurement (unless a stop was asked for) and the last checkpoint."""
        if not self.stopped and self.schedule.evaluate and self.done.get("evaluate") != self.updates:
            self.done["evaluate"] = self.updates
            self.evaluate()
        if self.saved != self.updates:
            self.save(owed=False)


@dataclass(frozen=True)
class Learned:
    """A model and what updates it, as one part of a checkpoint."""

    whole: WholeModel
    updater: Updater

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments and counts, whole."""
        return {"model": self.whole.state_dict(), **self.updater.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.whole.load_state_dict(state["model"])
        self.updater.load_state_dict(state)


class Held:
    """A state that is at hand, as a part of a checkpoint."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        return self._state

    def load_state_dict(self, state: Any) -> None:
        """Keeps nothing: whoever needs it reads the checkpoint."""
