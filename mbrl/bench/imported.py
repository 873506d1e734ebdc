"""Curves that other programs wrote, as runs under a protocol that the reader names: TD-MPC2, DreamerV3, plain CSVs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbrl.bench.results import SCORES, Point, Run, Terms, table
from mbrl.files import MOST_ROWS, DamagedFile, read_plain

DREAMER = {
    "episode/score": "reward",
    "episode/eval_score": "reward",
    "episode/eval_success": "success",
    "eval_episode/score": "reward",
    "eval/episode_reward": "reward",
    "eval/episode_success": "success",
}
"""Names in the lines of DreamerV3's metrics.jsonl and of programs like it -> the score they mean."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a foreign file does not say itself.

    Attributes:
        task: None: the file says it, or its name is the task's (as TD-MPC2's `mw-hammer.csv`).
        method: None: the file says it, or its folder's name is the method's.
        seed: of a file that holds one run.
    """

    terms: Terms
    task: str | None
    method: str | None
    seed: int


def read_foreign(path: Path, told: Told) -> list[Run]:
    """The runs in a file; of each the last evaluation counts as its final score.

    A CSV has the columns `step`, `seed` and `success` or `reward` (TD-MPC2's results; `task` and `method` if it holds
    several). A JSON file is a list of `{task, method, seed, xs, ys}` (DreamerV3's scores), a file of JSON lines either
    that or one evaluation a line (DreamerV3's metrics.jsonl). Steps must be env steps, after action repeat.
    Raises: DamagedFile naming what is wrong.
    """
    reader = read_rows if path.suffix == ".csv" else read_json
    found: dict[tuple[str, str, int], list[Point]] = {}
    try:
        for whose, point in reader(path, told):
            found.setdefault(whose, []).append(point)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedFile(f"{path} is no table of curves: {error!s:.200}") from error
    if not found:
        raise DamagedFile(f"{path} holds no evaluation")
    return list(finished(found, told.terms, str(path)))


def finished(found: Mapping[tuple[str, str, int], list[Point]], terms: Terms, source: str) -> Iterator[Run]:
    """Runs in the order of their steps, with a final score."""
    for (task, method, seed), points in found.items():
        points = sorted(points, key=lambda point: point.step)
        last = replace(points[-1], kind="final")
        yield Run(task=task, method=method, seed=seed, terms=terms, points=(*points, last), source=source)


def read_rows(path: Path, told: Told) -> Iterator[tuple[tuple[str, str, int], Point]]:
    """A CSV of curves."""
    for number, cells in table(path):
        scores = {name: float(cells[name]) for name in SCORES if cells.get(name)}
        if not scores or not cells.get("step"):
            raise ValueError(f"line {number} needs step and one of {', '.join(SCORES)}")
        seed = int(cells["seed"]) if cells.get("seed") else told.seed
        yield (*named(path, cells, told), seed), Point(kind="interim", step=float(cells["step"]), **scores)


def read_json(path: Path, told: Told) -> Iterator[tuple[tuple[str, str, int], Point]]:
    """A JSON list or JSON lines."""
    for one in parsed(read_plain(path, most=MOST_ROWS).decode()):
        whose = (*named(path, one, told), int(one.get("seed", told.seed)))
        if "xs" in one:
            for step, value in zip(one["xs"], one["ys"], strict=True):
                yield whose, Point(kind="interim", step=float(step), **{told_score(told): float(value)})
        elif scores := {DREAMER[name]: float(value) for name, value in one.items() if name in DREAMER}:
            yield whose, Point(kind="interim", step=float(one["step"]), **scores)


def parsed(text: str) -> Iterable[dict[str, Any]]:
    """The objects in a JSON list, or one a line."""
    whole = text.lstrip().startswith("[")
    found = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    if wrong := [one for one in found if not isinstance(one, dict)]:
        raise ValueError(f"it must hold objects (got {wrong[0]!r:.40})")
    return found


def named(path: Path, one: Mapping[str, Any], told: Told) -> tuple[str, str]:
    """Task and method: as told, as the file says, or by its place."""
    task = told.task or one.get("task") or path.stem
    return str(task), str(told.method or one.get("method") or path.absolute().parent.name)


def told_score(told: Told) -> str:
    """What the `ys` of a curve are: success under a success rule, else rewards."""
    return "success" if told.terms.success_rule else "reward"
