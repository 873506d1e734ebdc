"""Rows of a run's tables that were changed behind its back are neither continued nor drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mbrl.cli.main import main
from tests.conftest import as_imported


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "experiment=debug", "schedule.total=200", f"run_dir={folder}"]) == 0
    return folder


def digit(text: str) -> str:
    place = next(at for at in range(len(text) // 2, len(text)) if text[at].isdigit())
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


def swapped(text: str) -> str:
    header, first, second, *rest = text.splitlines()
    return "\n".join([header, second, first, *rest]) + "\n"


def renamed(text: str) -> str:
    header, *rows = text.splitlines()
    first, second, *names = header.split(",")
    return "\n".join([",".join([first, *reversed(names[-2:]), *names[:-2], second]), *rows]) + "\n"


@pytest.mark.parametrize("change", [digit, swapped, renamed])
@pytest.mark.parametrize("name", ["metrics.csv", "eval.csv"])
def test_changed_rows_are_refused_by_resume_and_report(
    name: str, change: Callable[[str], str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / name).write_text(change((run / name).read_text()))
    for line in (["train", f"run_dir={run}", "schedule.total=225"], ["report", f"run={run}"]):
        assert main(line) == 3
        said = capsys.readouterr().err
        assert f"{name}: its first" in said or "has no env_step" in said or "line" in said
        assert "Traceback" not in said
    assert not (run / "report.png").exists()


def fewer(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


def fewer_and_a_digit(text: str) -> str:
    return digit(fewer(text))


@pytest.mark.parametrize("change", [fewer, fewer_and_a_digit, lambda text: text.splitlines(keepends=True)[0]])
@pytest.mark.parametrize("name", ["metrics.csv", "eval.csv"])
def test_missing_rows_are_refused_whatever_is_left(
    name: str, change: Callable[[str], str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / name).write_text(change((run / name).read_text()))
    for line in (["train", f"run_dir={run}", "schedule.total=225"], ["report", f"run={run}"]):
        assert main(line) == 3
        assert "rows that the run saved; bring them back" in capsys.readouterr().err


def another(result: dict[str, Any], path: Sequence[Any], value: Any) -> None:
    *before, last = path
    for name in before:
        result = result[name]
    result[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("final", "returns", 0), 9.5),
        (("random", "returns", 1), 0.0),
        (("weights_step",), 100),
        (("task",), "reach-terminal"),
        (("seed",), 7),
        (("demos",), 9),
        (("protocol", "name"), "default"),
        (("model", "class"), "oracle"),
    ],
)
def test_a_changed_result_is_refused_by_all_who_read_it(
    path: Sequence[Any], value: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    another(result, path, value)
    (run / "result.json").write_text(json.dumps(result))
    for line in (["report", f"run={run}"], ["results", f"from={run}"]):
        assert main(line) == 3
        assert f"result.json is not what the run saved ({path[0]})" in capsys.readouterr().err
    (run / "result.json").unlink()
    assert main(["train", f"run_dir={run}"]) == 0
    assert (run / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_a_result_of_another_end_is_left_out_and_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As where a longer run was killed between its last checkpoint and its result, or an older checkpoint is left."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"env_steps": 2000}))
    assert main(["report", f"run={run}"]) == 0
    assert "is of another end of the run" in caplog.text
    assert main(["results", f"from={run}"]) == 3 and "holds no result" in capsys.readouterr().err
    longer = Path(shutil.copytree(finished, tmp_path / "longer"))
    assert main(["train", f"run_dir={longer}", "schedule.total=225"]) == 0
    newest = max((longer / "checkpoints").glob("step-*"))
    content = bytearray((newest / "state.json").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.json").write_bytes(content)
    caplog.clear()
    as_imported()  # the run has taken the logger
    assert main(["report", f"run={longer}"]) == 0, "the older checkpoint's rows and score are no measure of the newest"
    assert "is of another end of the run" in caplog.text


def test_a_column_that_the_run_did_not_write_is_refused_in_rows_that_were_saved(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([f"{header},heldout/value", *(f"{row},0.9" for row in rows)]) + "\n")
    for line in (["report", f"run={run}"], ["train", f"run_dir={run}", "schedule.total=225"]):
        assert main(line) == 3
        assert "are not those that the run saved" in capsys.readouterr().err


def test_rows_that_no_checkpoint_knows_are_told_of_and_wider_tables_are_all_right(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    wider = [f"{header},more", *(f"{row}," for row in rows)]
    for added, told in (
        (0, ""),
        (1, "metrics.csv: no checkpoint vouches for the last 1 row\n"),
        (2, "vouches for the last 2 rows\n"),
    ):
        (run / "metrics.csv").write_text("\n".join([*wider, *[f"{rows[-1]},3"] * added]) + "\n")
        assert main(["report", f"run={run}"]) == 0
        said = capsys.readouterr().out
        assert told in said and ("vouches" in said) == bool(added)
    (run / "eval.csv").unlink()
    assert main(["train", f"run_dir={run}", "schedule.total=225"]) == 0, "who moves a file away goes on without it"
