"""The tables of README.md and docs/*.md that hold results: `python -m benchmarks.tables` writes them anew.

Their numbers are those of the files below docs/results. A table stands between `<!-- table: NAME -->` and
`<!-- end -->`, is declared in `benchmarks/published.py`, and `tests/bench/test_tables.py` says when it differs.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mbrl.cli.errors import guarded
from mbrl.cli.words import words
from mbrl.report.record import Record, Row, read_table
from mbrl.rundir.folder import read_info
from mbrl.rundir.result import half_interval, success_interval
from mbrl.statistics import Estimate

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
COMMAND = "python -m benchmarks.tables"
BEGIN, END = "<!-- table: {} -->", "<!-- end -->"
MARKED = re.compile(r"<!-- table: (?P<name>\S+) -->\n(?P<table>.*?)<!-- end -->", re.DOTALL)
MARK = re.compile(r"<!-- (?:table: \S+|end) -->")

Cell = Callable[[Record], str]
Cells = Sequence[Sequence[str]]


class Table(Protocol):
    """What stands between two marks."""

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns."""

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """The cells of every row, made of the files below `results`."""


# -- runs: one row each ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """A row for each run.

    Attributes:
        columns: heading and cell; None: the row's next word.
        runs: `folder/name` of the run's files below docs/results, then the row's words.
    """

    columns: Sequence[tuple[str, Cell | None]]
    runs: Sequence[tuple[str, ...]]

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns."""
        return [name for name, _ in self.columns]

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """One for each run."""
        for name, *said in self.runs:
            record, left = read_run(results / name), iter(said)
            yield [next(left) if cell is None else cell(record) for _, cell in self.columns]


def read_run(path: Path) -> Record:
    """A run whose files are `<path>-eval.csv`, `-metrics.csv` and, where there are any, `-run.json`, `-result.json`."""
    found = {kind: path.with_name(f"{path.name}-{kind}.csv") for kind in ("metrics", "eval")}
    return Record(
        folder=path,
        config={},
        info=read_info(path.parent, f"{path.name}-run.json"),
        training=read_table(found["metrics"]),
        scores=read_table(found["eval"]),
        result=read_info(path.parent, f"{path.name}-result.json"),
        unsaved={},
    )


def final_of(record: Record) -> Row | None:
    """The final score; of runs from before there was a result.json the row of eval.csv that names its weights."""
    return record.final or next((row for row in record.scores if "weights_step" in row), None)


def seed(record: Record) -> str:
    """The number at the end of the run's name."""
    return record.folder.name[len(record.folder.name.rstrip("0123456789")) :]


def success(row: Row | None) -> str:
    """A success rate with Wilson's 95 % interval over its episodes."""
    if row is None:
        return ""
    episodes = round(row["episodes"])
    return str(Estimate(row["success"], *success_interval(round(row["success"] * episodes), episodes)))


def returns(row: Row | None) -> str:
    """A mean return with half of its 95 % interval."""
    return "" if row is None else f"{row['return']:.0f} +- {half_interval(row['return_std'], row['episodes']):.0f}"


def random_success(record: Record) -> str:
    """The random policy's success."""
    return success(record.random)


def random_rate(record: Record) -> str:
    """The same without its interval."""
    return f"{record.random['success']:.2f}" if record.random else ""


def random_return(record: Record) -> str:
    """The random policy's return."""
    return returns(record.random)


def final_success(record: Record) -> str:
    """The final score."""
    return success(final_of(record))


def final_return(record: Record) -> str:
    """The return of the final score."""
    return returns(final_of(record))


def final_weights(record: Record) -> str:
    """The final score with the env step of the weights that it is of, or the last row of one that was stopped."""
    if (row := final_of(record)) is None:
        return f"stopped after {spaced(record.training[-1]['env_step'])}"
    return f"{success(row)} ({spaced(row['weights_step'])})"


def last_success(record: Record) -> str:
    """The last evaluation of a version that scored the last weights only."""
    return success(record.scores[-1])


def last_return(record: Record) -> str:
    """Its return."""
    return returns(record.scores[-1])


def interim(record: Record) -> str:
    """The interim scores."""
    return " ".join(f"{row['success']:.2f}" for row in record.greedy)


def interim_at(record: Record) -> str:
    """The interim scores, and where they are: all are equally far apart."""
    steps = [row["env_step"] for row in record.greedy]
    return f"{interim(record)} at {spaced(steps[0])}" + (f" ... {spaced(steps[-1])}" if len(steps) > 1 else "")


def interim_returns(record: Record) -> str:
    """The interim returns."""
    return " ".join(f"{row['return']:.0f}" for row in record.greedy)


def minutes(record: Record) -> str:
    """Wall clock."""
    return f"{(final_of(record) or {'wall_s': record.wall_s})['wall_s'] / 60:.1f} min"


def spaced(steps: float) -> str:
    """`4000`, `12 000`."""
    return f"{steps:.0f}" if steps < 10_000 else f"{steps:,.0f}".replace(",", " ")


# -- seconds by phase --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phases:
    """Where the time of runs went: a row for each group of them, the mean over its runs.

    Attributes:
        columns: heading and the phases of metrics.csv that it adds up.
        groups: label and its runs.
    """

    columns: Sequence[tuple[str, Sequence[str]]]
    groups: Sequence[tuple[str, Sequence[str]]]

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns."""
        return ["", *(name for name, _ in self.columns), "all"]

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """One for each group."""
        for label, names in self.groups:
            runs = [read_run(results / name) for name in names]
            spent = [float(np.mean([seconds(run, phases) for run in runs])) for _, phases in self.columns]
            whole = float(np.mean([run.wall_s for run in runs]))
            yield [label, *(f"{value:.0f} s" for value in (*spent, whole))]


def seconds(run: Record, phases: Sequence[str]) -> float:
    """What a run spent on these phases."""
    return sum(row.get(f"time/{phase}_s", 0.0) for row in run.training for phase in phases)


# -- how well frames are predicted -------------------------------------------------------------------------------------

METRICS = {"psnr": 2, "ssim": 3, "lpips": 3}
"""Metric -> digits."""


@dataclass(frozen=True)
class Predictions:
    """A row for each way of predicting, from the JSON of `mbrl predict`: means over the predicted frames.

    Attributes:
        ways: label, file below docs/results, and its name of the way; a label in bold makes its numbers bold.
    """

    ways: Sequence[tuple[str, str, str]]
    head: Sequence[str] = ("", *(name.upper() for name in METRICS))

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """One for each way."""
        for label, file, way in self.ways:
            found = json.loads((results / file).read_text())["ways"][way]
            values = [f"{found[name]['predicted']['mean']:.{digits}f}" for name, digits in METRICS.items()]
            yield [label, *(bold(value, label) for value in values)]


@dataclass(frozen=True)
class Transfers:
    """A row for each mode of `mbrl transfer`: mean over seeds, from its transfer.csv.

    Attributes:
        file: below docs/results.
        modes: label and mode; the mode `copy` stands for the last frame copied.
        whole: the number of seeds too, standard deviations, and what was predicted with another clip's actions.
    """

    file: str
    modes: Sequence[tuple[str, str]]
    whole: bool = False

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns."""
        names = [name.upper() for name in METRICS]
        return ["", "seeds", *names, "told another clip's actions"] if self.whole else ["", *names]

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """One for each mode."""
        with (results / self.file).open() as table:
            lines = list(csv.DictReader(table))
        for label, mode in self.modes:
            own = [line for line in lines if mode in ("copy", line["mode"])]
            values = {name: np.array([float(line[name]) for line in own]) for name in own[0] if name != "mode"}
            ending = "_copy" if mode == "copy" else ""
            cells = [self._cell(values[name + ending], digits, label, mode) for name, digits in METRICS.items()]
            others = [f"{values[f'{name}_shuffled'].mean():.{digits}f}" for name, digits in METRICS.items()]
            copied = mode == "copy"
            yield (
                [label, "" if copied else str(len(own)), *cells, "" if copied else ", ".join(others)]
                if self.whole
                else [label, *cells]
            )

    def _cell(self, values: np.ndarray, digits: int, label: str, mode: str) -> str:
        """`**21.04** (0.09)`."""
        spread = f" ({values.std(ddof=1):.{digits}f})" if self.whole and len(values) > 1 and mode != "copy" else ""
        return bold(f"{values.mean():.{digits}f}", label) + spread


def bold(value: str, label: str) -> str:
    """In bold where the row's label is."""
    return f"**{value}**" if label.startswith("**") else value


# -- tables that are files already -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """What was measured by hand: a CSV as it stands, its first row the head. `file`: below docs/results."""

    file: str

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns."""
        return self._read(RESULTS)[0]

    def rows(self, results: Path) -> Iterator[Sequence[str]]:
        """All but the first."""
        yield from self._read(results)[1:]

    def _read(self, results: Path) -> list[list[str]]:
        with (results / self.file).open(newline="") as lines:
            return list(csv.reader(lines))


# -- text --------------------------------------------------------------------------------------------------------------


def written(table: Table, results: Path = RESULTS) -> str:
    """A table as Markdown."""
    lines = [table.head, ["---"] * len(table.head), *table.rows(results)]
    return "".join(f"|{'|'.join(cells)}|\n" if cells[0] == "---" else row_of(cells) for cells in lines)


def row_of(cells: Sequence[str]) -> str:
    """`| a | b |`; an empty cell is one space."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def names_in(text: str, where: Path) -> list[str]:
    """The tables that a text holds. Raises: ValueError for a mark without its other one."""
    found = [match["name"] for match in MARKED.finditer(text)]
    if len(MARK.findall(text)) != 2 * len(found):
        raise ValueError(f"{where}: every {BEGIN.format('NAME')} needs its {END}, and no table stands inside another")
    return found


def renewed(text: str, tables: Mapping[str, Table], where: Path) -> str:
    """The text with its tables written anew. Raises: ValueError for a table that nobody declared."""
    for name in names_in(text, where):
        if name not in tables:
            raise ValueError(f"{where}: table {name} is not declared; declared are {', '.join(sorted(tables))}")
    return MARKED.sub(lambda match: f"{BEGIN.format(match['name'])}\n{written(tables[match['name']])}{END}", text)


def stale(text: str, tables: Mapping[str, Table], where: Path) -> list[str]:
    """The names of the tables in `text` that differ from the files."""
    new = renewed(text, tables, where)
    pairs = zip(MARKED.finditer(text), MARKED.finditer(new), strict=True)
    return [old["name"] for old, made in pairs if old["table"] != made["table"]]


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(args: list[str]) -> int:
    """Command line."""
    from benchmarks.published import TABLES

    words("benchmarks.tables", args, {})
    for path in documents():
        text = path.read_text()
        if names := stale(text, TABLES, path):
            path.write_text(renewed(text, TABLES, path))
            print(f"{path.relative_to(ROOT)}: {', '.join(names)} written anew")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
