"""The one door for videos that are no GIF, through ffmpeg where imageio-ffmpeg brings it: a process that is waited for.

ffmpeg writes one picture after the other in a format that says its own size, and its exit code says whether it came
through: a video that breaks off is no shorter video.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import Unreadable
from mbrl.replay.episode import MAX_SIDE

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""What ffmpeg may take a video for, whatever it is called: a playlist would open other files and connections."""
PATIENCE_S = 60.0
"""Seconds that the next picture may take."""
HEADER = re.compile(rb"P6\s(\d{1,9})\s(\d{1,9})\s255\s")


def check_installed() -> None:
    """Raises: ValueError naming the package to install."""
    try:
        import imageio_ffmpeg  # noqa: F401 - asked for before anything is written
    except ImportError as error:
        raise ValueError("videos other than GIF need ffmpeg: pip install imageio-ffmpeg, or extract frames") from error


def decoded(source: Path | bytes, *, window: tuple[float, float] | None = None) -> Iterator[NDArray[np.uint8]]:
    """Frames u8 [H, W, 3] of a video, each picture once, however long it stays.

    Args:
        window: begin and length in seconds: only frames that begin in it.
    Raises: ValueError if ffmpeg is not installed; Unreadable.
    """
    check_installed()
    import imageio_ffmpeg

    with ExitStack() as held:
        if isinstance(source, bytes):
            file = held.enter_context(tempfile.NamedTemporaryFile(suffix=".mp4"))
            file.write(source)
            file.flush()
            source = Path(file.name)
        said = held.enter_context(tempfile.TemporaryFile())
        seek = ["-ss", f"{window[0]:.6f}", "-t", f"{window[1]:.6f}"] if window else []
        given = ["-format_whitelist", CONTAINERS, *seek, "-i", f"file:{source.absolute()}"]
        made = [
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            "-pix_fmt",
            "rgb24",
            "-c:v",
            "ppm",
            "-f",
            "image2pipe",
            "-",
        ]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *given, *made]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        held.enter_context(process)
        held.callback(process.kill)  # before it is waited for: whoever reads may have had enough
        assert process.stdout is not None
        while (frame := _picture(process.stdout.fileno())) is not None:
            yield frame
        if process.wait(PATIENCE_S):
            said.seek(0)
            words = [line.strip() for line in said.read(10_000).decode(errors="replace").splitlines() if line.strip()]
            raise Unreadable(f"it is no video that ffmpeg reads ({(words or ['no word'])[-1][-200:]})")


def _picture(pipe: int) -> NDArray[np.uint8] | None:
    """The next picture; None at the end. Raises: Unreadable."""
    header = _read(pipe, 2)
    while header and not (match := HEADER.fullmatch(header)):
        header += (more := _read(pipe, 1))
        if not more or len(header) > 40:
            raise Unreadable("ffmpeg broke off")
    if not header:
        return None
    width, height = int(match[1]), int(match[2])  # type: ignore[index]
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise Unreadable(f"its pictures have {width}x{height} pixels: at most {MAX_SIDE} a side are read")
    content = _read(pipe, width * height * 3)
    if len(content) < width * height * 3:
        raise Unreadable("ffmpeg broke off")
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)


def _read(pipe: int, wanted: int) -> bytes:
    """So many bytes; fewer at the end. Raises: Unreadable where nothing comes."""
    found = bytearray()
    while len(found) < wanted:
        if not select.select([pipe], [], [], PATIENCE_S)[0]:
            raise Unreadable(f"ffmpeg gave no picture within {PATIENCE_S:.0f} s")
        piece = os.read(pipe, wanted - len(found))
        if not piece:
            break
        found += piece
    return bytes(found)
