"""Scores that papers report, to be shown beside our own as what they are: of other protocols, never averaged."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mbrl.rundir.build import make


@dataclass(frozen=True, kw_only=True)
class Score:
    """One published number."""

    task: str
    method: str
    env_steps: int
    success: float


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of configs/published.

    Attributes:
        source: whose numbers these are, and how they were read.
        protocol, success_rule, obs, demos, seeds: what one must know before comparing.
        rows: `task`, `steps` (env steps) and, for every method, its success at these, or at the first few of them.
    """

    source: str
    protocol: str
    success_rule: str
    obs: str
    demos: str
    seeds: int | str
    rows: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            for method, values in methods_of(row):
                if not 0 < len(values) <= len(row["steps"]) or not all(0 <= value <= 1 for value in values):
                    raise ValueError(f"rows: {method} on {row['task']} must have a success in [0, 1] for its steps")

    def scores(self) -> Iterator[Score]:
        """Every number."""
        for row in self.rows:
            for method, values in methods_of(row):
                for env_steps, value in zip(row["steps"], values, strict=False):
                    yield Score(task=row["task"], method=method, env_steps=env_steps, success=float(value))

    def terms(self) -> str:
        """What one must know before comparing, in words."""
        rule = f"success at {self.success_rule} decision"
        return f"{self.protocol}; {self.obs}; {rule}; demonstrations: {self.demos}; seeds: {self.seeds}"

    def table(self, tasks: Container[str] | None = None, methods: Container[str] | None = None) -> list[dict[str, str]]:
        """The numbers on these tasks (named without version) by these methods, for a reader; None: all."""
        return [
            {"task": s.task, "method": s.method, "env steps": str(s.env_steps), "success": f"{s.success:.2f}"}
            for s in self.scores()
            if (tasks is None or s.task in tasks) and (methods is None or s.method in methods)
        ]


def methods_of(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The methods of a row with their values."""
    yield from ((name, values) for name, values in row.items() if name not in ("task", "steps"))


def read_published(folder: Path) -> dict[str, Published]:
    """Every file of a folder, by name. Raises: ValueError for one that is none."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        found[path.stem] = make(
            yaml.safe_load(path.read_text(encoding="utf-8")), f"published.{path.stem}", trusted=False
        )
    return found
