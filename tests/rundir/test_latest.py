"""`runs/latest` leads to the newest run of a default folder, and stops nobody."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mbrl.cli.main import main
from mbrl.rundir.folder import point_latest

SHORT = ["experiment=debug", "schedule.total=150", "schedule.evaluate.every=0", "evaluation.episodes=1"]


def test_a_run_in_a_default_folder_is_the_latest_and_one_in_a_named_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SHORT]) == 0
    latest = tmp_path / "runs" / "latest"
    assert latest.is_symlink() and not Path(latest.readlink()).is_absolute(), "the folder may be moved"
    (run,) = (path.parent for path in tmp_path.glob("runs/*/*/*/*/config.yaml"))
    assert latest.resolve() == run
    assert main(["report", "run=runs/latest"]) == 0 and (run / "report.png").is_file()
    assert main(["train", *SHORT, "run_dir=runs/mine"]) == 0
    assert latest.resolve() == run


def test_the_link_moves_on_and_somebody_s_own_folder_stays(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / "task" / "method" / "seed-0" / stamp for stamp in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        point_latest(folder)
    latest = tmp_path / "runs" / "latest"
    assert latest.resolve() == folders[1]
    latest.unlink()
    latest.mkdir()
    point_latest(folders[0])
    assert latest.is_dir() and not latest.is_symlink()
    assert not list((tmp_path / "runs").glob(".tmp*"))


def test_a_file_system_without_links_is_told_of_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    folder = tmp_path / "runs" / "task" / "method" / "seed-0" / "a"
    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "symlink_to", refused)
    with caplog.at_level(logging.WARNING, "mbrl"):
        point_latest(folder)
    link = tmp_path / "runs" / "latest"
    assert caplog.messages == [f"WARNING: {link} does not lead to this run: Operation not permitted"]
