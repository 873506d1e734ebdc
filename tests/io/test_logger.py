from __future__ import annotations

import csv
import json
import logging
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.files import DamagedFile
from mbrl.io import backends
from mbrl.io.logger import CsvConfig, Logger, TensorBoardConfig, WandbConfig

WANDB = {"project": "p", "group": "", "name": "", "tags": ("a",), "mode": "online", "timeout_s": 2.0}


def _x(step: int) -> dict[str, int]:
    return {"env_step": 2 * step, "decision": step, "update": step // 3}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _without_wall(path: Path) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "wall_s"} for row in _rows(path)]


def test_every_row_begins_with_the_x_columns_and_is_in_the_file_at_once(tmp_path: Path) -> None:
    logger = CsvConfig().build(folder=tmp_path)
    logger.log({"agent/loss": torch.tensor(0.5, requires_grad=True), "episodes": 3}, _x(7))
    logger.evaluation({"eval/episode/return": 0.1}, _x(7))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "env_step,decision,update,wall_s,agent/loss,episodes"
    row = _rows(tmp_path / "metrics.csv")[0]
    assert (row["env_step"], row["decision"], row["update"], row["agent/loss"], row["episodes"]) == (
        "14",
        "7",
        "2",
        "0.5",
        "3",
    )
    assert _rows(tmp_path / "eval.csv")[0]["eval/episode/return"] == "0.1"


def test_numbers_are_written_with_all_their_digits(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    Logger(tmp_path, backends=[]).log({"a": value, "b": float("nan"), "c": True}, _x(1))
    row = _rows(tmp_path / "metrics.csv")[0]
    assert float(row["a"]) == value and row["b"] == "nan" and row["c"] == "1"


def test_later_columns_widen_the_file_and_earlier_rows_stay(tmp_path: Path) -> None:
    logger = Logger(tmp_path, backends=[])
    logger.log({"a": 1}, _x(1))
    logger.log({"b": 2, "a, odd \"name\"": 5}, _x(2))  # fmt: skip
    logger.log({"a": 3}, _x(3))
    rows = _rows(tmp_path / "metrics.csv")
    assert [(row["a"], row["b"], row['a, odd "name"']) for row in rows] == [
        ("1", "", ""),
        ("", "2", "5"),
        ("3", "", ""),
    ]
    assert [row["env_step"] for row in rows] == ["2", "4", "6"]


def test_a_resumed_run_has_no_row_twice_and_none_missing(tmp_path: Path) -> None:
    def work(logger: Logger, first: int, last: int) -> None:
        for step in range(first, last):
            logger.log({"loss": step / 7} | ({"late": step} if step > 4 else {}), _x(step))
            if step % 4 == 0:
                logger.evaluation({"return": step}, _x(step))

    work(Logger(tmp_path / "whole", backends=[]), 0, 12)

    killed = Logger(tmp_path / "resumed", backends=[])
    work(killed, 0, 4)
    state = json.loads(json.dumps(killed.state_dict()))
    work(killed, 4, 9)
    resumed = Logger(tmp_path / "resumed", backends=[])
    resumed.load_state_dict(state)
    work(resumed, 4, 12)
    for name in ("metrics.csv", "eval.csv"):
        assert _without_wall(tmp_path / "whole" / name) == _without_wall(tmp_path / "resumed" / name)
    walls = [float(row["wall_s"]) for row in _rows(tmp_path / "resumed" / "metrics.csv")]
    assert walls == sorted(walls)


def test_wall_time_goes_on_from_the_saved_value(tmp_path: Path) -> None:
    logger = Logger(tmp_path, backends=[])
    state = logger.state_dict() | {"wall_s": 1000.0}
    logger.load_state_dict(state)
    logger.log({"a": 1}, _x(1))
    assert 1000 <= float(_rows(tmp_path / "metrics.csv")[0]["wall_s"]) < 1010


def test_files_of_a_run_that_never_saved_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Logger(tmp_path, backends=[]).log({"a": 1}, _x(1))
    Logger(tmp_path, backends=[]).log({"a": 2}, _x(1))
    assert [row["a"] for row in _rows(tmp_path / "metrics.csv")] == ["2"]
    assert [row["a"] for row in _rows(tmp_path / "orphans" / "metrics.csv")] == ["1"]
    assert "metrics.csv of an earlier run" in caplog.text

    state = Logger(tmp_path / "b", backends=[]).state_dict()
    Logger(tmp_path / "b", backends=[]).log({"a": 1}, _x(1))
    resumed = Logger(tmp_path / "b", backends=[])
    resumed.load_state_dict(state)
    assert not (tmp_path / "b" / "metrics.csv").exists()


@pytest.mark.parametrize("lost", [1, 3, 17, None])
def test_rows_that_are_missing_are_refused_and_a_table_moved_away_is_begun_anew(
    lost: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = Logger(tmp_path, backends=[])
    for step in range(4):
        logger.log({"a": step}, _x(step))
    state = logger.state_dict()
    path = tmp_path / "metrics.csv"
    kept = b"" if lost is None else path.read_bytes()[:-lost]
    path.write_bytes(kept)
    resumed = Logger(tmp_path, backends=[])
    with pytest.raises(DamagedFile, match=r"has \d of the 4 rows"):
        resumed.load_state_dict(state)
    assert path.read_bytes() == kept
    path.unlink()
    resumed.load_state_dict(state)
    resumed.log({"a": 9}, _x(9))
    assert [row["a"] for row in _rows(path)] == ["9"]
    assert "the checkpoint knew 4 rows of it" in caplog.text


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    logger = Logger(tmp_path, backends=[])
    logger.log({"a": 1}, _x(1))
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:3]))
    with pytest.raises(OSError, match="No space left"):
        logger.log({"a": 2}, _x(2))
    monkeypatch.undo()
    logger.log({"a": 3}, _x(3))
    assert [row["a"] for row in _rows(tmp_path / "metrics.csv")] == ["1", "3"]


@pytest.mark.parametrize(
    ("values", "x", "words"),
    [
        ({"a": 1}, {"env_step": 1, "decision": 1}, "x must be env_step, decision, update"),
        ({"a": 1}, _x(1) | {"wall_s": 3}, "x must be"),
        ({"a": torch.zeros(2)}, _x(1), r"a must be one number \(got Tensor \[2\]\)"),
        ({"a": "text"}, _x(1), "a must be one number"),
        ({"env_step": 1}, _x(1), "cannot be called 'env_step'"),
        ({"a\nb": 1}, _x(1), "cannot be called"),
    ],
)
def test_mistakes_are_named_and_write_nothing(tmp_path: Path, values: Any, x: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Logger(tmp_path, backends=[]).log(values, x)
    assert list(tmp_path.iterdir()) == []


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.step = (name, step_metric)

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


def _fake_wandb(monkeypatch: pytest.MonkeyPatch, init: Callable[..., Any]) -> None:
    fake = types.SimpleNamespace(
        init=init,
        Settings=lambda **settings: settings,
        Video=lambda path: ("video", path),
        Image=lambda path: ("image", path),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]


def _train(logger: Logger, rows: int = 20) -> float:
    started = time.monotonic()
    for step in range(rows):
        logger.log({"a": step}, _x(step))
    logger.close()
    return time.monotonic() - started


def test_wandb_gets_every_row_with_its_x_and_a_resumed_run_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[dict[str, Any], FakeRun]] = []

    def init(**settings: Any) -> FakeRun:
        runs.append((settings, FakeRun()))
        return runs[-1][1]

    _fake_wandb(monkeypatch, init)
    config = WandbConfig(**WANDB)
    logger = config.build(folder=tmp_path / "seed1", config={"seed": 1})
    state = logger.state_dict()
    logger.video("eval/video", tmp_path / "a.gif", _x(0))
    _train(logger)
    settings, run = runs[0]
    assert (settings["mode"], settings["name"], settings["group"], settings["resume"]) == (
        "online",
        "seed1",
        None,
        "allow",
    )
    assert settings["config"] == {"seed": 1} and settings["settings"]["init_timeout"] == 2.0
    assert run.rows[0]["eval/video"] == ("video", str(tmp_path / "a.gif"))
    assert [row["a"] for row in run.rows[1:]] == list(range(20)) and run.rows[3]["env_step"] == 4
    assert run.step == ("*", "env_step") and run.finished

    resumed = config.build(folder=tmp_path / "seed1")
    resumed.load_state_dict(json.loads(json.dumps(state)))
    _train(resumed, 1)
    assert runs[1][0]["id"] == settings["id"]


def test_an_unreachable_wandb_falls_back_to_offline_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun()

    taken = set()

    def init(*, mode: str, **settings: Any) -> FakeRun:
        assert settings["id"] not in taken, "the real one refuses an id whose first attempt failed"
        taken.add(settings["id"])
        if mode == "online":
            raise ConnectionError("no route")
        return run

    _fake_wandb(monkeypatch, init)
    _train(WandbConfig(**WANDB).build(folder=tmp_path))
    assert len(run.rows) == 20
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["wandb cannot be reached (ConnectionError); logging offline"]


def test_every_start_of_an_offline_run_is_a_part_of_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    def init(*, mode: str, **settings: Any) -> FakeRun:
        begun.append({"mode": mode, **settings})
        (tmp_path / "wandb" / f"offline-run-2026_{len(begun)}-{settings['id']}").mkdir(parents=True)
        return FakeRun()

    _fake_wandb(monkeypatch, init)
    offline = WandbConfig(**(WANDB | {"mode": "offline", "group": ""}))
    logger = offline.build(folder=tmp_path)
    state = json.loads(json.dumps(logger.state_dict()))
    _train(logger, 1)
    for _ in range(2):
        resumed = offline.build(folder=tmp_path)
        resumed.load_state_dict(state)
        _train(resumed, 1)
    assert len({settings["id"] for settings in begun}) == 3, "no two folders have one id"
    assert len({settings["group"] for settings in begun}) == 1 and begun[0]["group"]


@pytest.mark.parametrize(("variable", "config", "mode"), [
    ("offline", "online", "offline"), ("disabled", "online", "disabled"), ("online", "offline", "online"),
    ("", "offline", "offline"), ("", "online", "online"),
])  # fmt: skip
def test_the_environment_s_mode_wins(
    variable: str, config: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setenv("WANDB_MODE", variable)
    _fake_wandb(monkeypatch, lambda **settings: (modes.append(settings["mode"]), FakeRun())[1])
    _train(WandbConfig(**(WANDB | {"mode": config})).build(folder=tmp_path), 1)
    assert modes == [mode]


@pytest.mark.parametrize("trouble", ["missing", "init", "exit", "row", "finish"])
def test_a_failing_wandb_stops_nothing_and_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    run = FakeRun()

    def fail(*arguments: Any, **settings: Any) -> Any:
        raise SystemExit(1) if trouble == "exit" else RuntimeError("server said\nno")

    if trouble in ("row", "finish"):
        setattr(run, "log" if trouble == "row" else "finish", fail)
    _fake_wandb(monkeypatch, fail if trouble in ("init", "exit") else lambda **settings: run)
    if trouble == "missing":
        monkeypatch.setitem(sys.modules, "wandb", None)
    assert _train(WandbConfig(**(WANDB | {"mode": "offline"})).build(folder=tmp_path)) < 2
    assert len(_rows(tmp_path / "metrics.csv")) == 20
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith("wandb is off (") and "\n" not in warnings[0]


@pytest.mark.parametrize("where", ["init", "row"])
def test_a_hanging_wandb_costs_its_timeout_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    release = threading.Event()
    run = FakeRun()
    run.log = lambda row: release.wait(20)  # type: ignore[method-assign, assignment, return-value]
    _fake_wandb(monkeypatch, lambda **settings: release.wait(20) if where == "init" else run)
    monkeypatch.setattr(backends, "QUEUE_ROWS", 5)
    logger = WandbConfig(**(WANDB | {"timeout_s": 0.3})).build(folder=tmp_path)
    assert _train(logger) < 2
    release.set()
    assert len(_rows(tmp_path / "metrics.csv")) == 20
    assert "did not finish within" in caplog.text


def test_tensorboard_writes_events_and_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TensorBoardConfig(patience_s=20.0)
    first = config.build(folder=tmp_path)
    for step in range(3):
        first.log({"a": step}, _x(step))
    state = first.state_dict()
    first.log({"a": 77}, _x(3))
    first.log({"a": 78}, _x(4))
    first.close()
    resumed = config.build(folder=tmp_path)
    resumed.load_state_dict(state)
    resumed.log({"a": 3}, _x(3))
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(0, 0.0), (2, 1.0), (4, 2.0), (6, 3.0)]


def test_a_missing_tensorboard_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _train(TensorBoardConfig(patience_s=2.0).build(folder=tmp_path))
    assert len(_rows(tmp_path / "metrics.csv")) == 20
    assert caplog.text.count("tensorboard is off") == 1


@pytest.mark.parametrize(("field", "value"), [("mode", "disabled"), ("project", ""), ("timeout_s", 0.0)])
def test_config_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        WandbConfig(**(WANDB | {field: value}))
