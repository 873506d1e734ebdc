"""A disk that takes no more while data verbs write: one line with the place that was meant, and nothing half done."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl import files
from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache
from mbrl.files import sized
from tests.io.test_video_files import broken_ffmpeg

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An archive whose first episode takes 2 KB and whose second takes 150 KB."""
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "0.npz", image=FRAMES * 0)
    np.savez(tmp_path / "in" / "1.npz", image=FRAMES)
    return tmp_path / "in"


def said(err: str) -> str:
    """The one line of error."""
    (line,) = (line for line in err.splitlines() if " s left" not in line)
    assert line.startswith("error: ") and ".tmp-" not in line and str(os.getpid()) not in line and "Errno" not in line
    return line


def left(folder: Path) -> list[str]:
    """What there is that is no episode, card, list or lock."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".tmp-") or path.suffix in (".png", ".mp4")]


def test_a_conversion_names_the_episode_and_goes_on_when_there_is_room(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "convert", f"from={source}", f"to={tmp_path / 'out'}", "format=published_npz"]
    with files_of_at_most(20_000):
        assert main(words) == 1
    line = said(capsys.readouterr().err)
    assert f"{tmp_path / 'out'}/ep-000001-e00-11-" in line and ".npz: File too large; 14" in line
    assert line.endswith(" KB were to be written") and not left(tmp_path / "out")
    assert main(words) == 0
    assert "holds 2 episodes, 1 of them new" in capsys.readouterr().out
    assert len(DataSet(tmp_path / "out", cache=EpisodeCache(0))) == 2


def test_a_mark_that_cannot_be_written_hides_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, full = os.write, False

    def refusing(handle: int, content: Any) -> int:
        nonlocal full
        full = full or len(content) > 20_000
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content)

    monkeypatch.setattr(files.os, "write", refusing)
    words = ["data", "convert", f"from={source}", f"to={tmp_path / 'out'}", "format=published_npz"]
    assert main(words) == 1
    assert "out/ep-000001-e00-11-" in said(capsys.readouterr().err)
    monkeypatch.undo()
    assert main(words) == 0


@pytest.mark.parametrize("ending", ["png", "gif", "mp4"])
@pytest.mark.parametrize("there", [False, True])
def test_a_preview_names_its_picture_and_leaves_what_was_there(
    there: bool,
    ending: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if ending == "mp4":
        pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
        broken_ffmpeg(tmp_path, monkeypatch, "[out @ 0x55] Could not write header: No space left on device\\n")
    assert main(["data", "convert", f"from={source}", f"to={tmp_path / 'set'}", "format=published_npz"]) == 0
    capsys.readouterr()
    out = tmp_path / "pictures" / f"p.{ending}"
    out.parent.mkdir()
    if there:
        out.write_bytes(b"older")
    with nullcontext() if ending == "mp4" else files_of_at_most(2_000):
        assert main(["data", "preview", str(tmp_path / "set"), f"out={out}"]) == 1
    line = said(capsys.readouterr().err)
    cause = ": File too large; " if ending != "mp4" else " was not written: Could not write header: No space left on"
    assert line.startswith(f"error: {out}{cause}")
    assert [path.read_bytes() for path in out.parent.iterdir()] == ([b"older"] if there else [])


@pytest.mark.parametrize("limit", [0, 20_000])
def test_an_export_names_the_folder_that_was_meant(
    limit: int, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    assert main(["data", "convert", f"from={source}", f"to={tmp_path / 'set'}", "format=published_npz"]) == 0
    capsys.readouterr()
    with files_of_at_most(limit):
        words = ["data", "export", f"from={tmp_path / 'set'}", f"to={tmp_path / 'lr'}", "format=lerobot", "fps=10"]
        assert main(words) == 1
    assert f"error: {tmp_path / 'lr'}/" in said(capsys.readouterr().err)
    assert not (tmp_path / "lr").exists()
    assert main(words) == 0


@pytest.mark.parametrize("verb", ["convert", "collect"])
def test_a_lock_that_cannot_be_written_is_named(
    verb: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = [f"from={source}", "format=published_npz"] if verb == "convert" else ["task=reach", "policy=random"]
    with files_of_at_most(0):
        assert main(["data", verb, f"to={tmp_path / 'out'}", *how]) == 1
    assert said(capsys.readouterr().err).startswith(f"error: {tmp_path / 'out' / 'run.lock'}: File too large")


@pytest.mark.parametrize("call", ["open", "fsync", "write"])
def test_whatever_refuses_the_path_that_was_meant_is_named(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*given: Any) -> int:
        path = (given[0],) if call == "open" else ()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *path)

    monkeypatch.setattr(files.os, call, refusing)
    with pytest.raises(OSError) as error:
        files.write_atomically(tmp_path / "film.gif", b"x" * 2_500)
    assert error.value.filename == str(tmp_path / "film.gif") and error.value.errno == errno.ENOSPC
    assert ("2.5 KB were to be written" in str(error.value)) is (call != "fsync")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 KB"), (248_243, "248.2 KB"), (3_400_000, "3.4 MB"),
        (999_900_000, "999.9 MB"), (1e9, "1.00 GB"), (3.14159e12, "3141.59 GB"),
    ],
)  # fmt: skip
def test_no_size_is_said_to_be_nothing(size: float, text: str) -> None:
    assert sized(size) == text


def test_a_tiny_disk_is_told_in_its_own_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Usage:
        free = 200_000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    assert main(["train", "experiment=debug", "schedule.total=100", f"run_dir={tmp_path / 'run'}"]) == 2
    line = said(capsys.readouterr().err)
    assert "200.0 KB are free" in line and " 0.0" not in line and "KB of disk" in line
