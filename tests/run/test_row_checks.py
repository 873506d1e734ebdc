"""Rows of a run's tables that were changed behind its back are neither continued nor drawn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mbrl.cli.main import main


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


def test_rows_behind_the_checkpoint_and_wider_tables_are_all_right(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    wider = [f"{header},more", *(f"{row}," for row in rows), f"{rows[-1]},3"]
    (run / "metrics.csv").write_text("\n".join(wider) + "\n")
    assert main(["report", f"run={run}"]) == 0
    (run / "eval.csv").unlink()
    assert main(["train", f"run_dir={run}", "schedule.total=225"]) == 0, "who moves a file away goes on without it"
