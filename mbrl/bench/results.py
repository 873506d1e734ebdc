"""Results as a data base: every run below some folders, and tidy CSVs of runs that others made, as one kind of record.

Scores are averaged only where they mean the same (`Terms`); anything else is refused with the two values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mbrl.files import MOST_ROWS, DamagedFile, read_plain
from mbrl.report.record import NOT_TELLING, Record, Row, read_record
from mbrl.rundir.folder import leaves, world_model
from mbrl.rundir.result import RESULT

PHYSICS = {
    "mbrl.envs.metaworld": ("metaworld", "mujoco"),
    "mbrl.envs.dmc": ("dm-control", "mujoco"),
    "mbrl.envs.gymnasium": ("gymnasium", "mujoco"),
    "mbrl.envs.toy": (),
}
"""A world's module -> the packages whose versions change what happens in it."""
KINDS = ("random", "interim", "final")
SCORES = ("success", "reward", "success_last")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What scores must share before they may be averaged.

    Attributes:
        protocol: its name.
        protocol_sha256: of its keys and values; empty where it is known by name only.
        success_rule: `any` or `last` decision of an episode; empty in a world without success.
        obs: what the agent sees: pixels, pixels+proprio, state; oracle: it imagines in the simulator, a diagnosis.
        demos: demonstrations that were given.
        rehearsal: whether data sets lay in the replay.
        physics: versions of the packages that change what happens in the world; empty where not known.
    """

    protocol: str
    protocol_sha256: str
    success_rule: str
    obs: str
    demos: int
    rehearsal: bool
    physics: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation: the means over its episodes; None: not known. `step`: env steps, after action repeat."""

    kind: str
    step: float
    success: float | None = None
    reward: float | None = None
    success_last: float | None = None
    episodes: float | None = None
    agent_step: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run with all its evaluations.

    Attributes:
        points: the random policy's, the interim ones and the final one, as far as there are any.
        source: where it was read.
        config: its configuration, flat; empty where it is not known.
        more: what a table may tell beside: agent, weights_step, parameters, device, commit.
    """

    task: str
    method: str
    seed: int
    terms: Terms
    points: tuple[Point, ...]
    source: str
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def curve(self, score: str) -> tuple[list[float], list[float]]:
        """Env steps and scores of the agent's interim evaluations; where there are none, of the final one."""
        found = [p for p in self.points if p.kind == "interim"] or [p for p in self.points if p.kind == "final"]
        found = [point for point in found if getattr(point, score) is not None]
        return [point.step for point in found], [getattr(point, score) for point in found]

    def value(self, score: str, kind: str = "final") -> float | None:
        """A score of the last evaluation of a kind."""
        found = [getattr(point, score) for point in self.points if point.kind == kind]
        return found[-1] if found else None


MORE = ("agent", "weights_step", "parameters", "device", "commit")
COLUMNS = (
    *("step", "success", "reward", "seed", "task", "method", "kind"),
    *("success_last", "episodes", "agent_step", "wall_s"),
    *(one.name for one in fields(Terms)),
    *(*MORE, "source"),
)
"""Of a tidy CSV, one row for each evaluation. TD-MPC2's files have `step`, `seed`, and `success` or `reward`."""


def runs_in(folder: Path) -> list[Run]:
    """Every run with a result below `folder`, by path. Raises: DamagedFile naming those that cannot be read."""
    runs, damaged = read_runs(finished_in(folder))
    if damaged:
        raise DamagedFile("; ".join(damaged.values()))
    return runs


def finished_in(folder: Path) -> list[Path]:
    """The run folders with a result below `folder`, readable or not."""
    return [path.parent for path in sorted(folder.rglob(RESULT))]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The runs in finished run folders; and of each folder that cannot be read the reason, which names the file."""
    runs, damaged = [], {}
    for folder in folders:
        try:
            runs.append(run_of(read_record(folder, trained=False)))
        except (DamagedFile, ValueError, OSError) as error:
            damaged[folder] = " ".join(str(error).split())
    return runs, damaged


def run_of(record: Record) -> Run:
    """A finished run folder as a run. Raises: DamagedFile."""
    result, config = record.result, record.config
    if (final := record.final) is None:
        raise DamagedFile(f"{record.folder / RESULT} holds no result")
    step = {"step": float(result["env_steps"])}
    points = [point_of("random", row) for row in record.scores[:1]]
    points += [point_of("interim", row) for row in record.greedy]
    try:
        terms = terms_of(result, config)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{record.folder / 'config.yaml'} is not the configuration of a run: {error!r}") from error
    points.append(replace(point_of("final", {**final, "env_step": step["step"]}), wall_s=result["wall_s"]))
    return Run(
        task=result["task"],
        method=method_of(record.folder, result),
        seed=result["seed"],
        terms=terms,
        points=tuple(points),
        source=str(record.folder),
        config=dict(leaves(config)),
        more={
            "agent": result["agent"],
            "weights_step": result["weights_step"],
            "parameters": sum(result["model"]["parameters"].values()),
            "device": result["device"],
            "commit": result["commit"],
        },
    )


def point_of(kind: str, row: Row) -> Point:
    """A row of eval.csv."""
    names = {"reward": "return", "agent_step": "decision"}
    given = {name: row.get(names.get(name, name)) for name in ("episodes", "wall_s", "agent_step", *SCORES)}
    return Point(kind=kind, step=row["env_step"], **given)


def method_of(folder: Path, result: Mapping[str, Any]) -> str:
    """The method by the place of the run, .../<method>/seed-<n>[/<run>], else the agent's module."""
    for place in (folder, folder.parent):
        if place.name == f"seed-{result['seed']}":
            return place.parent.name
    return str(result["agent"]).split(".")[-2]


def terms_of(result: Mapping[str, Any], config: Mapping[str, Any]) -> Terms:
    """The terms of a finished run."""
    world = str(config["task"]["_target_"]).rpartition(".")[0]
    versions = result["versions"]
    packages = PHYSICS.get(world, tuple(sorted({name for names in PHYSICS.values() for name in names})))
    known = result["final"]["success"] is not None
    return Terms(
        protocol=result["protocol"]["name"],
        protocol_sha256=result["protocol"]["sha256"],
        success_rule=str(config["protocol"]["success"]) if known else "",
        obs=obs_of(config),
        demos=result["demos"],
        rehearsal=bool(result["rehearsal"]),
        physics=" ".join(f"{name}={versions.get(name, 'unknown')}" for name in packages),
    )


def obs_of(config: Mapping[str, Any]) -> str:
    """What the agent sees (`Terms.obs`)."""
    if world_model(config) == "oracle":
        return "oracle"
    model = config.get("worldmodel", {})
    default = ("pixels", "proprio") if model.get("proprio") else ("pixels",)
    return "+".join(sorted(model.get("obs_keys", default)))


def check_terms(runs: Sequence[Run], *, but: Sequence[str] = ()) -> None:
    """Raises: ValueError where two runs differ in their terms, with the two values; `but`: terms that may differ."""
    for other in runs[1:]:
        first = runs[0]
        for name, old in asdict(first.terms).items():
            new = getattr(other.terms, name)
            if old == new or name in but:
                continue
            key, one, two = name, old, new
            if name == "protocol_sha256":  # the names are the same: which key is not?
                keys = sorted(key for key in first.config.keys() | other.config.keys() if key.startswith("protocol."))
                different = [key for key in keys if first.config.get(key) != other.config.get(key)]
                if different and first.config and other.config:
                    key = different[0]
                    one, two = first.config.get(key), other.config.get(key)
            raise ValueError(
                f"{first.source} has {key}={one if one != '' else 'unknown'} and {other.source} has "
                f"{key}={two if two != '' else 'unknown'}: their scores are not averaged or compared; choose with "
                "protocol=, method= or task="
            )


def check_same_method(runs: Sequence[Run], *, over_tasks: bool = False) -> None:
    """Raises: ValueError where runs of one task and method are not repetitions: configurations or seeds say so.

    Args:
        over_tasks: the runs of a method on different tasks must have one configuration too.
    """
    seeds: dict[tuple[str, str, int], Run] = {}
    firsts: dict[tuple[str, ...], Run] = {}
    for run in runs:
        kind = (run.task, run.method)
        if (twin := seeds.setdefault((*kind, run.seed), run)) is not run:
            raise ValueError(
                f"{twin.source} and {run.source} are both seed {run.seed} of {run.method} on {run.task}; leave one out"
            )
        first = firsts.setdefault((run.method,) if over_tasks else kind, run)
        if first.config and run.config:
            old, new = telling(first.config), telling(run.config)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise ValueError(
                        f"{first.source} has {key}={old.get(key, 'absent')} and {run.source} has "
                        f"{key}={new.get(key, 'absent')}: they are not runs of one method"
                    )


def telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a flat configuration that make a method what it is."""
    return {key: value for key, value in config.items() if not key.startswith((*NOT_TELLING, "compute."))}


def write_csv(runs: Iterable[Run]) -> bytes:
    """A tidy CSV of every evaluation of these runs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        whose = {name: getattr(run, name) for name in ("task", "method", "seed", "source")}
        for point in run.points:
            row = {**asdict(point), **whose, **asdict(run.terms), **run.more}
            writer.writerow({name: "" if row.get(name) is None else row[name] for name in COLUMNS})
    return text.getvalue().encode()


def read_csv(path: Path) -> list[Run]:
    """Inverse of `write_csv`. Raises: DamagedFile naming the line."""
    rows = list(table(path))
    if missing := sorted(set(COLUMNS) - rows[0][1].keys()) if rows else []:
        raise DamagedFile(f"{path} is no table of results: it has no column {missing[0]}; import= reads other files")
    found: dict[tuple[Any, ...], Run] = {}
    for number, cells in rows:
        try:
            run, point = run_in(cells), point_in(cells)
        except ValueError as error:
            raise DamagedFile(f"{path}, line {number}: {error}") from error
        old = found.setdefault((run.source, run.task, run.method, run.seed, run.terms), run)
        found[run.source, run.task, run.method, run.seed, run.terms] = replace(old, points=(*old.points, point))
    return list(found.values())


def table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells, by column, of every row of a CSV. Raises: DamagedFile."""
    try:
        lines = csv.reader(io.StringIO(read_plain(path, most=MOST_ROWS).decode()), strict=True)
        header = next(lines, [])
        for cells in lines:
            if len(cells) != len(header):
                raise DamagedFile(
                    f"{path}, line {lines.line_num} has {len(cells)} cells; the header names {len(header)} columns"
                )
            yield lines.line_num, dict(zip(header, cells, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedFile(f"{path} is no CSV: {error}") from error


def run_in(cells: Mapping[str, str]) -> Run:
    """The run that a row is of, without points. Raises: ValueError."""
    terms = {one.name: cells[one.name] for one in fields(Terms)}
    if cells["rehearsal"] not in ("True", "False"):
        raise ValueError(f"rehearsal must be True or False (got {cells['rehearsal']})")
    return Run(
        task=cells["task"],
        method=cells["method"],
        seed=int(cells["seed"]),
        terms=Terms(**{**terms, "demos": int(cells["demos"]), "rehearsal": cells["rehearsal"] == "True"}),  # type: ignore[arg-type]
        points=(),
        source=cells["source"],
        more={name: cells[name] for name in MORE},
    )


def point_in(cells: Mapping[str, str]) -> Point:
    """The evaluation in a row. Raises: ValueError."""
    if cells["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} (got {cells['kind']})")
    names = [one.name for one in fields(Point) if one.name not in ("kind", "step")]
    given = {name: float(cells[name]) if cells[name] else None for name in names}
    return Point(kind=cells["kind"], step=float(cells["step"]), **given)
