"""What a run has written about itself, read as data: config.yaml, run.json, metrics.csv, eval.csv, result.json.

For a run that goes on as well as for a finished one; older runs may lack columns. Builds nothing of the run.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.files import MOST_ROWS, DamagedFile, read_plain
from mbrl.io.checkpoint import newest_json
from mbrl.io.logger import check_rows
from mbrl.rundir.folder import leaves, read_config, read_info, world_model
from mbrl.rundir.result import Episodes, read_result

Row = dict[str, float]
"""The filled cells of one row, by column."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run.

    Attributes:
        folder: where it lies.
        config: config.yaml.
        info: run.json; empty where there is none.
        training: rows of metrics.csv.
        scores: rows of eval.csv; the first is the random policy's.
        result: result.json; empty where the run is not at its end.
        unsaved: how many last rows of a file, by its name, no checkpoint knows (only those that have some).
    """

    folder: Path
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    training: Sequence[Row]
    scores: Sequence[Row]
    result: Mapping[str, Any]
    unsaved: Mapping[str, int]

    def points(self, column: str) -> tuple[list[float], list[float]]:
        """Env steps and values of every row in which `column` is filled, whichever file it is in."""
        rows = [row for table in (self.training, self.scores) for row in table if column in row]
        rows.sort(key=lambda row: row["env_step"])
        return [row["env_step"] for row in rows], [row[column] for row in rows]

    def columns(self, pattern: str) -> list[str]:
        """The filled columns that `pattern` means, sorted; a `*` in it stands for anything."""
        head, star, tail = pattern.partition("*")
        found = sorted({name for table in (self.training, self.scores) for row in table for name in row})
        if not star:
            return [name for name in found if name == pattern]
        return [name for name in found if name.startswith(head) and name.endswith(tail)]

    @property
    def random(self) -> Row | None:
        """The random policy's evaluation."""
        return self.scores[0] if self.scores else None

    @property
    def greedy(self) -> Sequence[Row]:
        """The agent's interim evaluations, on starts and goals of their own."""
        return [row for row in self.scores[1:] if "weights_step" not in row]

    @property
    def final(self) -> Row | None:
        """The score that counts: that of the weights of `weights_step`, on the random policy's starts and goals."""
        if not self.result:
            return None
        places = {"env_step": float(self.result["env_steps"]), "weights_step": float(self.result["weights_step"])}
        return {**places, "wall_s": self.result["wall_s"], **Episodes.of(self.result["final"]).metrics()}

    @property
    def prefill(self) -> float | None:
        """The env step at which the prefill ends."""
        return self.config.get("schedule", {}).get("prefill")

    @property
    def actor_start(self) -> float | None:
        """The env step of the first row in which the actor has learned."""
        steps, _ = self.points("agent/return_mean")
        return steps[0] if steps else None

    @property
    def wall_s(self) -> float:
        """Seconds worked so far."""
        return max(row.get("wall_s", 0.0) for row in (*self.training, *self.scores))

    @property
    def finished(self) -> bool:
        """Whether there is a final score of the end of the schedule."""
        total = self.config.get("schedule", {}).get("total", math.inf)
        return self.final is not None and self.final["env_step"] >= total

    @property
    def oracle(self) -> bool:
        """Whether the agent imagined in the simulator itself: a diagnosis, never a result."""
        return world_model(self.config) == "oracle"

    @property
    def gate(self) -> dict[str, float]:
        """What the world model must show before the actor learns, by name; empty where there is no gate."""
        gate = self.config.get("schedule", {}).get("gate") or {}
        demands = {name: value for name, value in gate.items() if name not in ("_target_", "episodes")}
        return demands if gate.get("episodes") else {}


def read_record(folder: Path, *, trained: bool = True) -> Record:
    """Reads a run folder.

    Args:
        trained: there must be rows of metrics.csv, as there are none of a policy that was only scored.
    Raises: ValueError where it is none or has no rows yet; DamagedFile for a file that is not what a run writes, and
    for rows that are missing or not those that the newest checkpoint was saved with.
    """
    config = read_config(folder)
    checkpoint = newest_json(folder / "checkpoints", "logger")
    saved = checkpoint[1]["tables"] if checkpoint else {}
    for name, table in sorted(saved.items()):
        if table["rows"] and not (folder / f"{name}.csv").is_file():
            raise DamagedFile(
                f"{folder / name}.csv is missing: the newest checkpoint was saved with {table['rows']} rows"
            )
    metrics = folder / "metrics.csv"
    training = read_table(metrics, saved.get("metrics")) if metrics.is_file() else []
    if trained and not training:
        what = "holds no row" if metrics.is_file() else "is missing"
        raise ValueError(f"{metrics} {what}: the run has not come as far as its first row (schedule.log says when)")
    evaluations = folder / "eval.csv"
    scores = read_table(evaluations, saved.get("eval")) if evaluations.is_file() else []
    newer = {
        path.name: len(rows) - saved.get(path.stem, {"rows": 0})["rows"]
        for path, rows in ((metrics, training), (evaluations, scores))
    }
    return Record(
        folder=folder,
        config=config,
        info=read_info(folder),
        training=training,
        scores=scores,
        result=read_result(folder),
        unsaved={name: count for name, count in newer.items() if count > 0},
    )


def read_table(path: Path, saved: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of a CSV of numbers; empty cells, and a last line that is still being written, are left out.

    Args:
        saved: what a checkpoint knows of the table.
    Raises: DamagedFile for a cell that is no number, without the column env_step, and for other rows than were saved.
    """
    try:
        text = read_plain(path, most=MOST_ROWS).decode()
        header, *lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))) or [[]]
    except (ValueError, csv.Error) as error:
        raise DamagedFile(f"{path} is no table: {error}") from error
    rows = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DamagedFile(f"{path}, line {number} has {len(cells)} cells; the header names {len(header)} columns")
        row = dict(numbers(zip(header, cells, strict=True), f"{path}, line {number}"))
        if "env_step" not in row:
            raise DamagedFile(f"{path}, line {number} has no env_step: a run did not write this file")
        rows.append(row)
    if saved:
        check_rows(path, header, lines, saved)
    return rows


def numbers(cells: Iterator[tuple[str, str]], where: str) -> Iterator[tuple[str, float]]:
    """The filled cells as numbers (nan and inf are some). Raises: DamagedFile."""
    for name, cell in cells:
        if cell:
            try:
                yield name, float(cell)
            except ValueError as error:
                raise DamagedFile(f"{where}: {name} is no number (got {cell})") from error


def target_name(node: Mapping[str, Any]) -> str:
    """A configured object's short name: `agents.dreamer.DreamerConfig` -> `dreamer`.

    >>> target_name({"_target_": "mbrl.oracle.OracleModelConfig"})
    'oracle'
    >>> target_name({"_target_": "worldmodel.ivideogpt.ModelConfig"})
    'ivideogpt'
    """
    module, _, name = str(node.get("_target_", "unknown")).rpartition(".")
    short = name.removesuffix("Config").removesuffix("Model")
    return (short or module.rpartition(".")[2]).lower()


def check_comparable(records: Sequence[Record]) -> None:
    """Raises: ValueError where two runs differ in their protocol: nothing is compared across protocols."""
    first = records[0]
    for other in records[1:]:
        old, new = (dict(leaves(record.config.get("protocol", {}), "protocol")) for record in (first, other))
        for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "protocol.name", key)):
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"{first.folder} and {other.folder} differ in their protocol ({key}={old.get(key, 'absent')} "
                    f"against {new.get(key, 'absent')}): scores are not comparable; report them one by one"
                )


NOT_TELLING = ("run_dir", "keep", "seed", "logger.", "task.", "schedule.log.", "schedule.save.")
"""Keys (or beginnings) that are told elsewhere on the page or change nothing that was learned."""


def differences(records: Sequence[Record]) -> dict[str, list[str]]:
    """Dotted keys whose values are not the same in all runs, each with its values in the order of the runs.

    A group that is another class (`_target_`) is told by that class's short name, and its other keys are not listed.
    """
    flat = [dict(leaves(record.config)) for record in records]
    found = {}
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [str(one.get(key, "absent")) for one in flat]
        if len(set(values)) > 1 and not any(key.startswith(name) for name in NOT_TELLING):
            found[key] = values
    swapped = [key.removesuffix("._target_") for key in found if key.endswith("._target_")]
    by_group = {}
    for key, values in found.items():
        group = key.removesuffix("._target_")
        if not any(group.startswith(f"{other}.") for other in swapped):
            by_group[group] = values if group == key else [target_name({"_target_": value}) for value in values]
    return by_group
