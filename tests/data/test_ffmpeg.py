"""The door for videos: ffmpeg as a process that may hang, break off, or say more than is read."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from mbrl.cli.main import main
from mbrl.data.convert import ffmpeg
from mbrl.data.convert.clip import Unreadable
from tests.data import lerobot_layout as layout
from tests.data.test_foreign import FRAMES_M

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")

PROGRAMS = {
    "hangs before the first picture": ("time.sleep(60)", "ffmpeg gave no picture within"),
    "hangs in a picture": (
        "out.write(b'P6\\n2 2\\n255\\n12'); out.flush(); time.sleep(60)",
        "ffmpeg gave no picture within",
    ),
    "leaves with an error after a picture": (
        "out.write(b'P6\\n2 2\\n255\\n' + bytes(12)); print('banner\\nInvalid data', file=sys.stderr); sys.exit(1)",
        "it is no video that ffmpeg reads (Invalid data)",
    ),
    "is killed in a picture": (
        "out.write(b'P6\\n2 2\\n255\\n' + bytes(5)); out.flush(); os.abort()",
        "ffmpeg broke off",
    ),
    "gives no picture format": ("out.write(bytes(99))", "ffmpeg broke off"),
    "gives larger pictures than are read": (
        "out.write(b'P6\\n99999 99999\\n255\\n'); out.flush(); time.sleep(60)",
        "its pictures have 99999x99999 pixels",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_whatever_ffmpeg_does_ends_in_one_line_and_in_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, words = PROGRAMS[name]
    program = tmp_path / "ffmpeg"
    code = f"import os, sys, time\nout = sys.stdout.buffer\n{text}\n"
    program.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    monkeypatch.setattr(ffmpeg, "PATIENCE_S", 1.0)
    with pytest.raises(Unreadable) as error:
        list(ffmpeg.decoded(tmp_path / "a.mp4"))
    assert words in str(error.value) and "\n" not in str(error.value) and "banner" not in str(error.value)


def test_who_has_had_enough_leaves_no_process(tmp_path: Path) -> None:
    layout.encode(tmp_path / "a.mp4", FRAMES_M.repeat(20, axis=0))
    for source in (tmp_path / "a.mp4", (tmp_path / "a.mp4").read_bytes()):
        frames = ffmpeg.decoded(source)
        assert (next(frames) == FRAMES_M[0]).all()
        frames.close()  # type: ignore[attr-defined]
    assert sum(1 for _ in ffmpeg.decoded(tmp_path / "a.mp4", window=(0.95, 1.0))) == 10


@pytest.mark.parametrize("name", ["-a.mp4", "a:b.mp4", "concat:a|b.mp4", "%03d.mp4", "ä (2), neu.mp4"])
def test_the_name_of_a_video_is_no_word_of_ffmpeg_s(name: str, tmp_path: Path) -> None:
    layout.encode(tmp_path / "plain.mp4", FRAMES_M)
    (tmp_path / "plain.mp4").rename(tmp_path / name)
    assert (np.stack(list(ffmpeg.decoded(tmp_path / name))) == FRAMES_M).all()


@pytest.mark.parametrize("kind", ["video", "lerobot", "robonet"])
def test_without_ffmpeg_a_video_is_refused_before_anything(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    if kind == "lerobot":
        pytest.importorskip("pyarrow")
        rows = {"frames": FRAMES_M, "action": np.zeros((len(FRAMES_M), 2), np.float32)}
        layout.write(source, [rows, rows], "v3.0", image=False)
    elif kind == "robonet":
        h5py = pytest.importorskip("h5py")
        source.mkdir()
        with h5py.File(source / "a.hdf5", "w") as file:
            file["env/cam0_video/frames"] = np.zeros(50, np.uint8)
    else:
        source.mkdir()
        (source / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["data", "convert", f"from={source}", f"to={tmp_path / 'out'}", f"format={kind}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install imageio-ffmpeg" in line and not (tmp_path / "out").exists()
