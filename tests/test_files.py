"""What a disk may refuse: every error names its path, and a file system without fsync is gone on with."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from mbrl import files
from mbrl.cli.errors import one_line
from mbrl.files import fsync_folder, named, write_atomically
from mbrl.io.logger import Table
from mbrl.io.video import Videos
from tests.children import run_child


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def refused(*given: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, refused)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_fsync_is_gone_on_with_after_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_warned", set())
    refusing(monkeypatch, "fsync", number)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_atomically(tmp_path / name / "file", name.encode())
        fsync_folder(tmp_path / name)
    assert (tmp_path / "two" / "file").read_bytes() == b"two"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text


@pytest.mark.parametrize(("call", "number"), [("fsync", errno.EIO), ("write", errno.ENOSPC), ("write", errno.EDQUOT)])
def test_an_error_of_a_disk_names_the_path_and_what_was_to_be_written(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, call, number)
    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "file", b"12345")
    assert error.value.errno == number
    said = one_line(error.value)
    assert said.startswith(f"{tmp_path / 'file'}: {os.strerror(number)}"), "the name that was asked for"
    assert ("5 bytes were to be written" in said) is (call == "write")
    table = Table(tmp_path / "rows.csv")
    table.columns = ["env_step"]
    if call == "write":
        with pytest.raises(OSError, match=r"rows\.csv"):
            table.append({"env_step": 1})


def test_a_path_that_is_named_already_stays_and_two_are_both_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, named(Path("other")):
        os.open(tmp_path / "missing", os.O_RDONLY)
    assert one_line(error.value) == f"{tmp_path / 'missing'}: No such file or directory"
    with pytest.raises(OSError) as error:
        (tmp_path / "a").rename(tmp_path / "b")
    assert one_line(error.value) == f"{tmp_path / 'a'} to {tmp_path / 'b'}: No such file or directory"


@pytest.mark.parametrize("name", [".tmp-eval-000000100.gif-77", ".tmp-eval-000000100-77.mp4"])
def test_what_a_kill_left_of_a_film_is_swept(name: str, tmp_path: Path) -> None:
    left = tmp_path / name
    left.write_bytes(b"GIF")
    Videos(tmp_path, keep=2)
    assert not left.exists()


def test_a_run_goes_on_quietly_when_nobody_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()

    def to_the_pipe() -> None:  # in the child alone
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w")

    def reader_leaves() -> bool:
        os.close(writing)
        with os.fdopen(reading) as reader:
            assert "run folder" in reader.readline()
        return True

    line = ["train", "experiment=debug", "worldmodel=none", "agent=random", f"run_dir={tmp_path / 'run'}"]
    assert run_child(line, first=to_the_pipe, once=reader_leaves, number=0) == 0  # signal 0 is none
    said = capfd.readouterr().err
    assert (tmp_path / "run" / "result.json").exists()
    assert "Logging error" not in said and "Traceback" not in said and "BrokenPipe" not in said
    assert "where to look" in (tmp_path / "run" / "console.log").read_text()
