"""A run: the objects that the loop moves, and the few verbs the loop speaks. Built by assemble.py."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agents.api import Agent, Metrics
from mbrl.io.checkpoint import Checkpoints, NotSaved
from mbrl.io.logger import Logger
from mbrl.io.video import Videos
from mbrl.measure.instruments import Instruments, gated
from mbrl.measure.open_loop import open_loop
from mbrl.memory import asking
from mbrl.replay.cut import longest_horizon
from mbrl.replay.episode import Episode
from mbrl.run.best import Best
from mbrl.run.collect import Collector
from mbrl.run.demos import DONE, Demos
from mbrl.run.evaluate import EvaluationConfig, Evaluator, Score
from mbrl.run.learning import Learning
from mbrl.run.pictures import draw_episode, draw_open_loop
from mbrl.run.progress import Progress
from mbrl.rundir.result import RESULT, Episodes, result_of
from mbrl.rundir.schema import write_json
from worldmodel.api import WorldModel

log = logging.getLogger("mbrl")

PATIENCE = 3
"""Checkpoints in a row that may fail (disk full) before the run gives up."""
PACE_ROWS = 6


@dataclass(kw_only=True)
class Run(Learning):
    """Everything of one run, in its first process; `parts` is what a checkpoint holds."""

    folder: Path
    evaluation: EvaluationConfig
    collector: Collector
    demos: Demos | None
    prefiller: Agent
    evaluator: Evaluator
    best: Best
    instruments: Instruments
    progress: Progress
    logger: Logger
    videos: Videos
    checkpoints: Checkpoints
    sizes: Mapping[str, Sequence[str]]
    """By phase, the `key=value` that decide how much memory it takes."""
    info: Mapping[str, Any]
    """What run.json says of this run and machine."""
    unsaved: int = 0
    """Checkpoints in a row that the disk refused."""
    paces: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=PACE_ROWS))
    """Env steps and seconds worked at the last rows of this process; time left is told by them."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Episodes of the evaluations that count: of the `random` policy, and the `final` one with what it is `of`."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Books the body's time on it; an error that memory ran out in it names the keys that asked for it."""
        with self.progress.timed(phase), asking(*self.sizes.get(phase, ())):
            yield

    def note(self, metrics: Metrics) -> None:
        """Takes one update's scalars; they reach metrics.csv as means."""
        self.progress.note(metrics)

    def x(self) -> dict[str, int]:
        """The x columns of every row."""
        return {
            "env_step": self.clock.env_steps,
            "decision": self.clock.decisions,
            "update": self.clock.done.get("learn", 0),
        }

    def demonstrate(self) -> None:
        """Fills replay with the demonstrations that are asked for and not yet there."""
        if self.demos is not None:
            with self.timed("collect"):
                self.demos.collect(self.stop)

    def measure_random_policy(self) -> None:
        """Scores the prefilling (random) policy on the evaluation episodes: what learning has to beat."""
        if "random" not in self.scores and not self.stop:
            with self.timed("evaluate"):
                score = self.evaluator.score(self.prefiller, self.evaluation.episodes)
            self._tell("random", score)

    def collect(self) -> list[Episode]:
        """One decision in every environment; the episodes that ended with it."""
        self.collector.step(self.agent)
        return self.collector.finished

    def measure(self, episode: Episode) -> None:
        """Measures model and agent on an episode that was held out so far; may open the gate.

        Nothing is measured before the model's first fit.
        """
        if not self._fitted():
            return
        found = self.instruments.heldout(episode, own=not self.collector.prefilling)
        self.note(found)
        if self.gate.judge(found.get(gated(self.model.spec)), lambda: self.instruments.codes_alive(episode.number)):
            log.info("env step %d: %s", self.clock.env_steps, str(self.gate))

    def _fitted(self) -> bool:
        """Whether the model is more than its first weights (one without weights always is)."""
        parts = self.model.spec.parts
        return not parts or self.clock.done.get(parts[-1], 0) > 0

    def evaluate(self) -> None:
        """An interim evaluation, on starts and goals of its own; its weights may turn out to be the best so far."""
        score = self.evaluator.score(self.agent, self.evaluation.interim, stream="select")
        self.best.offer(score, env_step=self.clock.env_steps)
        self._show("latest", score)
        if self._fitted():
            self.note(self.instruments.probed())

    def _evaluate_finally(self) -> None:
        """The score that counts, on the random policy's starts and goals."""
        if self.evaluation.weights == "best" and self.best.offered != self.clock.env_steps:
            self.evaluate()  # the last weights are candidates too
        chosen = self.evaluation.weights == "best"
        step = self.best.env_step if chosen else self.clock.env_steps
        log.info("final evaluation of the weights of env step %d", step)
        with self.best.in_place() if chosen else nullcontext():
            self._show("final", self.evaluator.score(self.agent, self.evaluation.episodes), {"weights_step": step})
        self.scores["final"] |= {"of": self._of(), "weights_step": step, "wall_s": self.logger.wall_s}

    def _of(self) -> dict[str, Any]:
        """What a final score is of; a finished run that is asked for another one is scored again."""
        return {"env_steps": self.clock.env_steps, "evaluation": asdict(self.evaluation)}

    def _scored(self) -> bool:
        """Whether there is the final score that is asked for."""
        return bool(self.scores.get("final", {}).get("of") == self._of())

    def result(self) -> dict[str, Any]:
        """The run's result (mbrl/rundir/result.py), once it is scored."""
        final = self.scores["final"]
        return result_of(
            self.info,
            parameters=parameter_counts(self.model),
            env_steps=final["of"]["env_steps"],
            weights=final["of"]["evaluation"]["weights"],
            weights_step=final["weights_step"],
            final=Episodes.of(final),
            random=Episodes.of(self.scores["random"]),
            wall_s=final["wall_s"],
        )

    def _show(self, name: str, score: Score, more: dict[str, float] | None = None) -> None:
        """Writes eval.csv, an episode's video and an open-loop clip of the model."""
        videos = [draw_episode(self.videos, self.clock.env_steps, score)]
        imagines = "pixels" in self.model.spec.obs_keys
        horizon = longest_horizon(self.model.spec, score.first) if imagines else 0
        if horizon:
            clip = open_loop(self.model, score.first, horizon=horizon)
            videos.append(draw_open_loop(self.videos, self.clock.env_steps, clip))
        self._tell(name, score, {**(clip.metrics() if horizon else {}), **(more or {})})
        for path in videos:
            self.logger.video(path.stem.split("-")[0], path, self.x())

    def _tell(self, name: str, score: Score, more: dict[str, float] | None = None) -> None:
        self.scores[name] = score.plain()
        self.logger.evaluation({**score.metrics(), **(more or {})}, self.x())
        log.info(
            "%s policy at env step %d: %s", "random" if name == "random" else "greedy", self.clock.env_steps, score
        )

    def report(self) -> None:
        """One row of metrics.csv and the progress line; while the gate is closed also what it waits for."""
        if self._fitted() and (alive := self.instruments.codes_alive(self.clock.episodes)) is not None:
            self.note({"replay/codes_alive": float(alive)})
        row = self.progress.row()
        self.logger.log(row, self.x())
        log.info(
            self.progress.line(
                row,
                env_steps=self.clock.env_steps,
                total=self.schedule.total,
                episodes=self.clock.episodes - self.clock.done.get(DONE, 0),
                left_s=self._left_s(),
            )
        )

        if not self.gate.open and self.clock.env_steps >= self.schedule.learn.start:
            log.info("env step %d: %s", self.clock.env_steps, str(self.gate))

    def _left_s(self) -> float | None:
        """Seconds left at the pace of the last rows; None before the agent learns, where most of the work is to come.

        The rows of the first fits are dear, so it begins too high.
        """
        here = self.clock.env_steps, sum(self.progress.total_seconds.values())
        self.paces.append(here)
        (steps, spent), (now, whole) = self.paces[0], here
        if self.schedule.learn.ever and not self.clock.done.get("learn") and now < self.schedule.total:
            return None
        pace = (whole - spent) / (now - steps) if now > steps else whole / max(1, now)
        return pace * (self.schedule.total - now)

    def parts(self, *, counting_save: int = 0) -> dict[str, Any]:
        """What a checkpoint holds; `counting_save=1` where the save itself is one that the schedule owed."""
        return {
            "model": self.model,
            "updater": self.updater,
            "agent": self.agent,
            "collector": self.collector,
            "replay": self.replay,
            "best": self.best,
            "logger": self.logger,
            "progress": self.progress,
            "run": RunState(self, counting_save),
        }

    def save(self, *, owed: bool = True) -> None:
        """Writes a checkpoint; nothing in it can be lost from then on.

        `owed`: the schedule asked for it, so it counts there; a stop, the end and a continued run save unasked.
        """
        try:
            self.checkpoints.save(self.clock.env_steps, self.parts(counting_save=int(owed)))
        except NotSaved as error:
            self.unsaved += 1
            if self.unsaved >= PATIENCE or not owed:
                raise
            log.warning("%s; training goes on", error)
            return
        self.unsaved = 0
        self.replay.prune(self.checkpoints.kept("replay"))

    def finish(self) -> None:
        """The last evaluation (unless a stop was asked for), the last checkpoint, and behind it result.json."""
        super().finish()
        if not self.stopped and not self._scored():
            with self.timed("evaluate"):
                self._evaluate_finally()
            self.report()
        if not self.stopped and not self.gate.open:
            short = "; ".join(self.gate.lacking())
            log.warning(
                "WARNING: the actor never started learning: the world model fell short of schedule.gate: %s", short
            )
        self.save(owed=False)
        if self._scored():
            write_json(self.folder / RESULT, self.result())


def parameter_counts(model: WorldModel) -> dict[str, int]:
    """How many numbers each part of a world model learns."""
    return {part: sum(p.numel() for p in model.parameters_of(part).values()) for part in model.spec.parts}


class RunState:
    """The clock, the gate and the told scores as one checkpoint part."""

    def __init__(self, run: Run, counting_save: int) -> None:
        self.run, self.counting_save = run, counting_save

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        clock = self.run.clock.state_dict()
        clock["done"]["save"] = clock["done"].get("save", 0) + self.counting_save
        return {"clock": clock, "scores": self.run.scores, "gate": self.run.gate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.run.clock.load_state_dict(state["clock"])
        self.run.gate.load_state_dict(state["gate"])
        self.run.scores = {name: dict(values) for name, values in state["scores"].items()}
