"""Where the time goes and how far the run is: sums between two rows of metrics.csv, and the line for a person."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agents.api import DreamMetrics
from mbrl.progress import clock_time

PHASES = ("collect", "measure", "fit", "imagine", "learn", "evaluate")
TIMES = tuple(f"time/{phase}_s" for phase in PHASES)
NOTED = ("train/", "perf/", "heldout/", "probe/", "replay/")
"""How the run's own columns begin, beside those of the fits."""
RECENT = 10  # episodes in the running means


class Progress:
    """Accumulates metrics and phase times; deterministic except for what is called `time/` or `perf/`."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}  # name -> [sum, count] since the last row
        self.seconds = dict.fromkeys(PHASES, 0.0)  # since the last row
        self.total_seconds = dict.fromkeys(PHASES, 0.0)
        self.recent: deque[tuple[float, float | None]] = deque(maxlen=RECENT)  # return, success
        self.imagined_frames = 0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the body's wall time to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spend(phase, time.perf_counter() - start)

    def _spend(self, phase: str, seconds: float) -> None:
        self.seconds[phase] += seconds
        self.total_seconds[phase] += seconds

    def note(self, values: Mapping[str, Any]) -> None:
        """Adds one update's scalars; the time of dreams inside learning is moved from `learn` to `imagine`."""
        for name, value in values.items():
            pair = self.sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(value)
            pair[1] += 1.0
        if isinstance(values, DreamMetrics):
            self._spend("imagine", values.imagine_s)
            self._spend("learn", -values.imagine_s)
            self.imagined_frames += values.imagined_frames

    def episode(self, total_reward: float, success: bool | None) -> None:
        """Adds one finished training episode; `success` None: the world knows none."""
        self.recent.append((total_reward, None if success is None else float(success)))
        self.note({"train/episode/return": total_reward})
        if success is not None:
            self.note({"train/episode/success": float(success)})

    def row(self) -> dict[str, float]:
        """Means since the last row, times included; starts the next."""
        values = {name: total / count for name, (total, count) in sorted(self.sums.items())}
        values |= {f"time/{phase}_s": self.seconds[phase] for phase in PHASES}
        imagine = self.seconds["imagine"]
        values["perf/imagined_frames_per_s"] = self.imagined_frames / imagine if imagine > 0 else 0.0
        self.sums, self.imagined_frames = {}, 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return values

    def line(self, row: Mapping[str, float], *, env_steps: int, total: int, episodes: int, left_s: float | None) -> str:
        """The progress line; without a time left where nobody knows it yet."""
        newest = "none has ended yet"
        if self.recent:
            mean_return = sum(r for r, _ in self.recent) / len(self.recent)
            newest = f"last {len(self.recent)}: return {mean_return:8.1f}"
        if success := [s for _, s in self.recent if s is not None]:
            newest += f" success {sum(success) / len(success):.2f}"
        spent = sum(self.total_seconds.values()) or 1.0
        split = " ".join(f"{phase} {100 * self.total_seconds[phase] / spent:.0f}%" for phase in PHASES)
        frames = row["perf/imagined_frames_per_s"]
        pace = f"imagined {frames:6.0f} frames/s | " if frames else ""  # nothing is imagined yet, or ever
        left = "time left unknown before the agent learns" if left_s is None else f"{clock_time(left_s)} left"
        return f"env steps {env_steps:>6}/{total} | episode {episodes:>4} | {newest} | {pace}{split} | {left}"

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "sums": self.sums,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
            "recent": [list(pair) for pair in self.recent],
            "imagined_frames": self.imagined_frames,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.sums = {name: list(pair) for name, pair in state["sums"].items()}
        self.seconds, self.total_seconds = dict(state["seconds"]), dict(state["total_seconds"])
        self.recent = deque(((r, s) for r, s in state["recent"]), maxlen=RECENT)
        self.imagined_frames = state["imagined_frames"]
