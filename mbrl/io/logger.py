"""The record of a run: metrics.csv and eval.csv, always; TensorBoard or wandb beside them if asked.

A resumed run goes on where its checkpoint was: no row twice, none missing. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mbrl.files import MOST_ROWS, DamagedFile, fsync, named, read_plain, set_aside, sha256, write_atomically
from mbrl.io.backends import Background, Sink, TensorBoardSink, WandbSink

log = logging.getLogger(__name__)

GIVEN = ("env_step", "decision", "update")
X = (*GIVEN, "wall_s")
"""First columns of a row: simulator steps, agent decisions, updates, seconds worked (pauses left out).

A record without simulator steps names other columns before `wall_s`; the first of them is what curves are drawn over.
"""


@dataclass(frozen=True, kw_only=True)
class CsvConfig:
    """The CSV files and nothing else."""

    def build(self, *, folder: Path, config: Mapping[str, Any] | None = None, given: tuple[str, ...] = GIVEN) -> Logger:
        """A logger that writes into `folder`; `config`, the run's settings, is for services that show it."""
        return Logger(folder, backends=[], given=given)


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Also event files in `tb/`.

    Attributes:
        patience_s: how long the end of the run waits for the last rows.
    """

    patience_s: float

    def __post_init__(self) -> None:
        if self.patience_s <= 0:
            raise ValueError(f"patience_s must be > 0 (got {self.patience_s})")

    def build(self, *, folder: Path, config: Mapping[str, Any] | None = None, given: tuple[str, ...] = GIVEN) -> Logger:
        """A logger that writes into `folder`; `config` is not shown here."""
        return Logger(folder, backends=[TensorBoard(folder, patience_s=self.patience_s)], given=given)


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Also a Weights & Biases run; without network or account the run goes on and is logged offline or not at all.

    Attributes:
        project: wandb project.
        group: runs that belong together; empty for none.
        name: of the run; empty for the name of its folder.
        tags: labels.
        mode: `online` or `offline`.
        timeout_s: how long the server may take to answer, and the end of the run waits for the upload.
    """

    project: str
    group: str
    name: str
    tags: tuple[str, ...]
    mode: str
    timeout_s: float

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode must be online or offline (got {self.mode})")
        if not self.project:
            raise ValueError("project must be a name (got an empty one)")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be > 0 (got {self.timeout_s})")

    def build(self, *, folder: Path, config: Mapping[str, Any] | None = None, given: tuple[str, ...] = GIVEN) -> Logger:
        """A logger that writes into `folder` and shows `config`, the run's settings."""
        return Logger(folder, backends=[Wandb(self, folder, run_config=dict(config or {}))], given=given)


class TensorBoard:
    """The TensorBoard service of one run."""

    name = "tensorboard"

    def __init__(self, folder: Path, *, patience_s: float) -> None:
        self._folder = folder
        self._purge: int | None = None
        self.background = Background(self.name, self._open, patience_s=patience_s)

    def _open(self) -> Sink:
        return TensorBoardSink(self._folder / "tb", purge=self._purge)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], *, env_step: int) -> None:
        """Hides what the interrupted run logged behind `env_step`."""
        self._purge = env_step + 1


class Wandb:
    """The wandb service of one run: keeps the id by which a resumed run finds itself again."""

    name = "wandb"

    def __init__(self, config: WandbConfig, folder: Path, *, run_config: dict[str, Any]) -> None:
        self._config = config
        self._folder = folder
        self._run_config = run_config
        self._id = uuid.uuid4().hex[:12]
        self.background = Background(self.name, self._open, patience_s=config.timeout_s)

    def _open(self) -> Sink:
        settings = {
            "project": self._config.project,
            "group": self._config.group or None,
            "name": self._config.name or self._folder.name,
            "tags": list(self._config.tags),
            "dir": str(self._folder),
            "id": self._id,
            "resume": "allow",
            "config": self._run_config,
        }
        return WandbSink(mode=self._config.mode, timeout_s=self._config.timeout_s, settings=settings)

    def state_dict(self) -> dict[str, Any]:
        """The run's id."""
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any], *, env_step: int) -> None:
        """Takes the id of the interrupted run."""
        self._id = str(state.get("id", self._id))


class Table:
    """A CSV file that grows row by row; each row is in the file when `append` returns, and later columns widen it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows = 0
        self._written = hashlib.sha256()
        """Of the file's bytes, as far as it is ours."""

    def append(self, row: Mapping[str, float | int]) -> None:
        """Adds a row; a column that it lacks stays empty.

        Raises: OSError where the disk refuses; the rows before are intact then.
        """
        new = [name for name in row if name not in self.columns]
        if not self.columns and self.path.exists():
            # from a run that was killed before its first checkpoint: not ours, and not ours to delete
            log.warning("%s of an earlier run moved to %s", self.path.name, set_aside(self.path, self._orphans()))
        if new:
            kept = self._read()[1] if self.columns else []
            self._rewrite([*self.columns, *new], kept)
        line = _line([row.get(name, "") for name in self.columns])
        self._append_bytes(line)
        self._written.update(line)
        self.rows += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: how far the file had come, and the hash by which its rows are known again."""
        return {"rows": self.rows, "columns": list(self.columns), "sha256": self._written.hexdigest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the file what it was; a file that was moved away is said aloud, and begun anew.

        Raises: DamagedFile for other rows than saved.
        """
        rows, columns = state["rows"], state["columns"]
        header, found = self._read() if self.path.exists() else ([], [])
        if rows and not self.path.exists():
            log.warning("%s is gone, the checkpoint knew %d rows of it: the run goes on without them", self.path, rows)
        else:
            check_rows(self.path, header, found, state)
        narrow = [[dict(zip(header, cells, strict=True)).get(name, "") for name in columns] for cells in found[:rows]]
        if columns:
            self._rewrite(list(columns), narrow)
        elif self.path.exists():
            set_aside(self.path, self._orphans())
        self.columns, self.rows = list(columns), len(narrow)

    def sync(self) -> None:
        """Waits until the rows are on disk."""
        if self.path.exists():
            handle = os.open(self.path, os.O_RDONLY)
            try:
                fsync(handle, self.path)
            finally:
                os.close(handle)

    def _orphans(self) -> Path:
        return self.path.parent / "orphans"

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Header and whole rows; what a power cut left of a last row is not one."""
        text = read_plain(self.path, most=MOST_ROWS).decode()
        header, *rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))) or [[]]
        return header, [row for row in rows if len(row) == len(header)]

    def _rewrite(self, columns: list[str], rows: Sequence[Sequence[str]]) -> None:
        padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
        content = b"".join([_line(columns), *map(_line, padded)])
        write_atomically(self.path, content)
        self.columns, self._written = columns, hashlib.sha256(content)

    def _append_bytes(self, content: bytes) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            with named(self.path, needed=len(content)):
                if os.write(handle, content) < len(content):
                    os.ftruncate(handle, size)  # half a row would spoil the next one
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def check_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], state: Mapping[str, Any]) -> None:
    """Compares a table's rows with those that a checkpoint was saved with (`Table.state_dict`); it knows no later ones.

    Raises: DamagedFile where one is another or missing.
    """
    count, columns = state["rows"], state["columns"]
    mend = "bring them back (or move the file away: the run goes on without these rows)"
    if len(rows) < count:
        raise DamagedFile(f"{path} has {len(rows)} of the {count} rows that the run saved; {mend}")
    if not count or "sha256" not in state:  # an older checkpoint knows no hash
        return
    cells = [dict(zip(header, row, strict=True)) for row in rows[:count]]
    lines = [_line(columns), *(_line([row.get(name, "") for name in columns]) for row in cells)]
    unknown = [name for name in header if name not in columns and any(row[name] for row in cells)]
    if unknown or sha256(b"".join(lines)) != state["sha256"]:
        raise DamagedFile(f"{path}: its first {count} rows are not those that the run saved; {mend}")


class Logger:
    """Writes rows of numbers into `folder`: `log` into metrics.csv, `evaluation` into eval.csv.

    Args:
        folder: the run's; made if missing.
        backends: services that get every row too and may fail without harm.
        given: the x columns that every row is given; services always know the first as `env_step`.
    """

    def __init__(
        self, folder: Path, *, backends: Sequence[TensorBoard | Wandb], given: tuple[str, ...] = GIVEN
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tables = {"metrics": Table(folder / "metrics.csv"), "eval": Table(folder / "eval.csv")}
        self._backends, self._given = backends, given
        self._wall_s = 0.0
        self._since = time.monotonic()
        self._env_step = 0

    def log(self, values: Mapping[str, float | Tensor], x: Mapping[str, int]) -> None:
        """One row of metrics.csv.

        Args:
            values: numbers or scalar tensors by name, such as `agent/entropy`.
            x: exactly the given columns (`env_step`, `decision` and `update`); `wall_s` is added here.

        Raises: ValueError for other x, for a value that is no number, for an impossible name.
        """
        self._write("metrics", values, x)

    def evaluation(self, values: Mapping[str, float | Tensor], x: Mapping[str, int]) -> None:
        """One row of eval.csv; arguments as for `log`."""
        self._write("eval", values, x)

    def video(self, name: str, path: Path, x: Mapping[str, int]) -> None:
        """Shows a file that is already written to the services; without any, the file alone is the record."""
        at = self._at(x)
        for backend in self._backends:
            backend.background.video(name, path, at | {"env_step": at[self._given[0]]})

    @property
    def wall_s(self) -> float:
        """Seconds that the run has worked, over all its interruptions."""
        return self._wall_s + time.monotonic() - self._since

    def _write(self, table: str, values: Mapping[str, float | Tensor], x: Mapping[str, int]) -> None:
        at, numbers = self._at(x), {name: _number(name, value) for name, value in values.items()}
        self._tables[table].append(at | numbers)
        self._env_step = int(at[self._given[0]])
        for backend in self._backends:
            backend.background.write(numbers, at | {"env_step": self._env_step})

    def _at(self, x: Mapping[str, int]) -> dict[str, float | int]:
        if set(x) != set(self._given):
            raise ValueError(f"x must be {', '.join(self._given)} (got {', '.join(x)})")
        return {name: int(x[name]) for name in self._given} | {"wall_s": round(self.wall_s, 3)}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: how far each file had come. The rows that it counts are on disk when this returns."""
        for table in self._tables.values():
            table.sync()
        return {
            "tables": {name: table.state_dict() for name, table in self._tables.items()},
            "wall_s": self.wall_s,
            "env_step": self._env_step,
            "backends": {backend.name: backend.state_dict() for backend in self._backends},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cuts the files back to what they were, and goes on from there; services may be others than before."""
        for name, table in self._tables.items():
            table.load_state_dict(state["tables"][name])
        self._wall_s, self._since = float(state["wall_s"]), time.monotonic()
        self._env_step = int(state["env_step"])
        for backend in self._backends:
            backend.load_state_dict(state["backends"].get(backend.name, {}), env_step=self._env_step)

    def close(self) -> None:
        """Lets the services finish, for a bounded time."""
        for backend in self._backends:
            backend.background.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(name: str, value: float | Tensor) -> float | int:
    """A plain number: what is kept must not hold a graph or a device."""
    if name in X or not name or not name.isprintable():
        raise ValueError(f"a value cannot be called {name!r}; {', '.join(X)} are the x columns")
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if not isinstance(number, int | float):
        raise ValueError(f"{name} must be one number (got {type(value).__name__} {list(getattr(value, 'shape', []))})")
    return int(number) if isinstance(number, bool) else number


def _line(cells: Sequence[Any]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue().encode()
