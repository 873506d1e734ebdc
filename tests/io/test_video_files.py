from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mbrl.files import TEMPORARY
from mbrl.io.video import GAP, LINE, Videos, _cut, difference, sheet, strip


def _clip(length: int, value: int) -> torch.Tensor:
    clip = torch.full((length, 3, 8, 10), value, dtype=torch.uint8)
    clip[:, 0, 2, 7] = torch.arange(length, dtype=torch.uint8) * 20  # one red pixel tells the frame
    return clip


def test_a_strip_shows_every_clip_enlarged_at_its_place() -> None:
    pictures = strip({"truth": _clip(5, 30), "imagined": _clip(5, 90)}, rewards={"true": torch.arange(5.0)})
    assert pictures.shape == (5, LINE + 32 + LINE, 40 + GAP + 40, 3)
    for t in range(5):
        for left, value in ((0, 30), (40 + GAP, 90)):
            frame = pictures[t, LINE : LINE + 32, left : left + 40]
            assert (frame[8:12, 28:32] == (20 * t, value, value)).all(), "pixel (2, 7), four times as large"
            assert (frame[:8] == value).all()


def test_names_and_rewards_are_written_on_the_frames() -> None:
    plain = strip({"": _clip(3, 30)})
    named = strip({"truth": _clip(3, 30)})
    rewarded = strip(
        {"truth": _clip(3, 30)}, rewards={"true": torch.tensor([0.0, 0.0, 5.0]), "predicted": torch.zeros(3)}
    )
    assert plain[:, :LINE].max() == 0 and named[:, :LINE].max() > 128
    below = rewarded[:, LINE + 32 :]
    assert below.shape[1] == 2 * LINE and (below[0] == below[1]).all() and (below[0] != below[2]).any()


def test_difference_is_absolute_and_does_not_wrap_around() -> None:
    a, b = torch.tensor([[[[3]]]], dtype=torch.uint8), torch.tensor([[[[250]]]], dtype=torch.uint8)
    assert difference(a, b).item() == difference(b, a).item() == 247


def test_a_sheet_has_one_row_per_clip_and_runs_from_the_first_to_the_last_frame() -> None:
    picture = sheet({"truth": _clip(9, 30), "imagined": _clip(9, 90)}, columns=3)
    assert picture.shape == (2 * (LINE + 32 + GAP), 3 * (40 + GAP), 3)
    shown = [picture[LINE + 8, place * (40 + GAP) + 28, 0] for place in range(3)]
    assert shown == [0, 80, 160]
    assert sheet({"truth": _clip(2, 30)}, columns=5).shape[1] == 2 * (40 + GAP)


def test_a_number_is_never_cut_off_a_picture() -> None:
    assert _cut("short", " 17", 200) == "short 17"
    assert (long := _cut("a very long name of a data set, episode 3, frame", " 17", 120)).endswith("3, frame 17")
    assert 8 < len(long) < 30
    assert _cut("any name", " 17", 1) == "17"


def test_a_gif_holds_every_frame_at_its_speed(tmp_path: Path) -> None:
    path = Videos(tmp_path / "videos", keep=2).film("eval", 1200, strip({"truth": _clip(6, 30)}), fps=10)
    assert path.name == "eval-000001200.gif"
    with Image.open(path) as image:
        assert (image.n_frames, image.info["duration"], image.size) == (6, 100, (40, LINE + 32))
        image.seek(4)
        red = np.asarray(image.convert("RGB"))[LINE + 9, 29]
    assert np.abs(red.astype(int) - (80, 30, 30)).max() <= 8


def test_only_the_newest_files_of_each_kind_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.io.video.find_spec", lambda name: None)
    videos = Videos(tmp_path, keep=2)
    for step in (5, 1_000_000_000, 700):
        videos.film("eval", step, strip({"truth": _clip(2, step % 200)}), fps=5)
        videos.png("eval", step, sheet({"truth": _clip(2, 30)}, columns=2))
        videos.png("eval_long", step, sheet({"truth": _clip(2, 30)}, columns=2))
    names = sorted(path.name for path in tmp_path.iterdir())
    kept = [f"{kind}-{step}{suffix}" for kind, suffix in (("eval", ".gif"), ("eval", ".png"), ("eval_long", ".png"))
            for step in ("000000700", "1000000000")]  # fmt: skip
    assert names == sorted(kept)


def test_an_mp4_lies_beside_the_gif_where_it_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    import imageio.v3 as imageio

    clip = torch.full((7, 3, 8, 10), 40, dtype=torch.uint8)
    clip += torch.arange(7, dtype=torch.uint8)[:, None, None, None] * 25
    pictures = strip({"": clip})[:, :-1]  # an odd height
    path = Videos(tmp_path, keep=2).film("eval", 1200, pictures, fps=10)
    frames = imageio.imread(path.with_suffix(".mp4"), plugin="FFMPEG")
    assert frames.shape == (7, LINE + 32, 40, 3), "as large as the GIF, to an even edge"
    middle = frames[:, LINE + 8 : -8, 8:-8].astype(int).mean(axis=(1, 2, 3))
    assert np.abs(middle - (40 + 25 * np.arange(7))).max() < 6
    assert imageio.immeta(path.with_suffix(".mp4"), plugin="FFMPEG")["fps"] == 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["eval-000001200.gif", "eval-000001200.mp4"]


def test_gif_and_mp4_of_one_step_stay_and_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.io.video.find_spec", lambda name: True)
    monkeypatch.setattr("mbrl.io.video.write_mp4", lambda path, pictures, fps: path.write_bytes(b"mp4"))
    videos = Videos(tmp_path, keep=2)
    (tmp_path / "eval-000000050.mp4").write_bytes(b"an mp4 whose GIF is gone")
    for step in (100, 300, 200):
        videos.film("eval", step, strip({"": _clip(2, 30)}), fps=5)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"eval-000000{step}.{suffix}" for step in (200, 300) for suffix in ("gif", "mp4")
    ]


def broken_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> Path:
    """An ffmpeg that writes half a film and ends with these words; the file says where it wrote."""
    program, wrote = folder / "ffmpeg", folder / "wrote"
    said = f'cat > /dev/null\nfor last; do :; done\necho "$last" > {wrote}\necho half > "${{last#file:}}"\n'
    program.write_text(f"#!/bin/sh\n{said}printf '{words}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(program))
    return wrote


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("[out#0/mp4 @ 0x5581] [x] no such encoder: %%\\nNothing was written\\n", "no such encoder: %"),
        ("\\n  Conversion failed!\\n", "Conversion failed!"),
        ("", "ffmpeg ended with 1"),
    ],
)
def test_an_mp4_that_cannot_be_written_is_said_and_the_gif_stays(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    wrote = broken_ffmpeg(tmp_path, monkeypatch, words)
    with caplog.at_level("WARNING", "mbrl"):
        path = Videos(tmp_path / "videos", keep=2).film("eval", 100, strip({"": _clip(2, 30)}), fps=5)
    assert TEMPORARY in wrote.read_text(), "a kill leaves what the next start sweeps"
    assert [file.name for file in (tmp_path / "videos").iterdir()] == [path.name]
    assert caplog.messages == [f"WARNING: {path.with_suffix('.mp4')} was not written: {said}; the GIF is there"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: strip({}), "at least one"),
        (lambda: strip({"a": _clip(2, 1), "b": _clip(3, 1)}), "of one shape"),
        (lambda: strip({"a": _clip(2, 1)}, rewards={"true": torch.zeros(3)}), r"rewards must be \[2\]"),
        (lambda: sheet({"a": _clip(2, 1)}, columns=0), "columns must be >= 1"),
        (lambda: Videos(Path(), keep=0), "keep must be >= 1"),
        (lambda: Videos(Path(), keep=1).png("../evil", 1, np.zeros((2, 2, 3), np.uint8)), "kind must be"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_an_ffmpeg_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(program))
    monkeypatch.setattr("mbrl.io.video.LONGEST", 0.3)
    with caplog.at_level("WARNING", "mbrl"):
        path = Videos(tmp_path / "videos", keep=2).film("eval", 100, strip({"": _clip(2, 30)}), fps=5)
    assert [file.name for file in (tmp_path / "videos").iterdir()] == [path.name]
    assert len(caplog.messages) == 1 and "ffmpeg had not ended after 0.3 s" in caplog.messages[0]
