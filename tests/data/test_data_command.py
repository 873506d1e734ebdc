from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbrl.cli.main import main
from mbrl.data.dataset import write_card
from mbrl.io import video
from mbrl.replay.episode import write_episode
from tests.data.numbered import CARD, numbered


def test_a_sound_set_is_found_sound(make_set, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "check", str(make_set("a", [5, 3]))]) == 0
    assert "2 episodes, 10 frames" in capsys.readouterr().out


def test_every_fault_is_listed_at_once_and_the_exit_code_says_damaged(make_set, capsys: pytest.CaptureFixture) -> None:
    card = {"protocol": {"name": "toy"}, "policies": ({"policy": "random"},)}
    folder = make_set("a", [5, 3, 4, 6], card=card)
    names = sorted(path.name for path in folder.glob("*.npz"))
    broken = folder / names[1]
    broken.write_bytes(broken.read_bytes()[:-3])
    (folder / names[2]).rename(folder / "mine.npz")
    write_episode(folder, numbered(70, 9))  # its actions are beyond 1
    write_episode(folder, numbered(3, 9))  # a second episode 3
    write_episode(folder, numbered(8, 4, actions=2))
    (folder / ".tmp-ep").write_bytes(b"")
    (folder / "converting.json").write_text("{}")
    assert main(["data", "check", str(folder)]) == 3
    told = capsys.readouterr().out
    for words in (
        "its bytes changed",
        "mine.npz",
        "not in [-1, 1]",
        "more than one episode 3",
        "it has 2 actions, dataset.json says 3",
        "an unfinished file",
        "a conversion was not finished",
    ):
        assert words in told, words


def test_a_broken_card_is_a_fault_like_any_other(make_set, capsys: pytest.CaptureFixture) -> None:
    folder = make_set("a", [5])
    (folder / "dataset.json").write_text("{")
    assert main(["data", "check", str(folder)]) == 3
    assert "is not JSON" in capsys.readouterr().out
    empty = folder.with_name("empty")
    write_card(empty, CARD)
    assert main(["data", "check", str(empty)]) == 3
    assert "there is no episode" in capsys.readouterr().out


def test_a_contact_sheet_and_a_gif_are_drawn(make_set, tmp_path: Path) -> None:
    folder = make_set("a", [5, 30, 9])
    assert main(["data", "preview", str(folder), f"out={tmp_path / 'p' / 'a.png'}", "columns=4", "episodes=2"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "p" / "a.png"))
    assert sheet.shape[0] // 2 > 256 and sheet.shape[1] == 4 * (256 + 4)
    assert main(["data", "preview", str(folder), f"out={tmp_path / 'a.gif'}"]) == 0
    assert Image.open(tmp_path / "a.gif").n_frames > 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.mp4", "B.MP4", "c d: (1) %d ü.mp4"])
def test_a_film_is_an_mp4_too(name: str, make_set, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    from mbrl.data.convert.ffmpeg import decoded

    folder = make_set("a", [5, 30, 9])
    for out in (tmp_path / name, tmp_path / "same.gif"):
        assert main(["data", "preview", str(folder), f"out={out}", "episodes=3"]) == 0
    frames = list(decoded(tmp_path / name))
    with Image.open(tmp_path / "same.gif") as gif:
        assert len(frames) == 31 and frames[0].shape[:2] == (gif.height, gif.width)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([name, "same.gif"])


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.avi", "a.png.txt"])
def test_what_a_preview_cannot_be_is_refused_with_what_it_can(
    name: str, make_set, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "preview", str(make_set("a", [5])), f"out={tmp_path / name}"]) == 2
    assert "out must end in .png, .gif or .mp4 (got " in capsys.readouterr().err


def test_an_mp4_without_ffmpeg_is_refused_with_what_to_do(
    make_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("mbrl.data.preview.find_spec", lambda name: None)
    assert main(["data", "preview", str(make_set("a", [5])), f"out={tmp_path / 'a.mp4'}"]) == 2
    said = capsys.readouterr().err
    assert "pip install imageio-ffmpeg" in said and ".gif or .png" in said and not (tmp_path / "a.mp4").exists()


def test_the_mixture_says_what_is_there(make_set, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_set("kuka", [5])
    assert main(["data", "mixture", f"root={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "1 of 38 parts" in told and "10.0% of the mixture" in told
    assert main(["data", "mixture", "name=oxe_sthsth", f"root={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "1 of 39 parts" in told and " 0.1500  step  1  image         sthsth" in told and "8.5% of" in told


def test_a_published_archive_is_converted_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "viola").mkdir()
    for place in range(3):
        frames = np.full((5, 12, 12, 3), 20 * place, np.uint8)
        np.savez(tmp_path / "viola" / f"train_eps_{place:08d}.npz", agentview_rgb=frames)
    out = tmp_path / "root" / "viola"
    words = ["data", "convert", f"from={tmp_path / 'viola'}", f"to={out}", "format=published_npz", "image=8"]
    assert main(words) == 0 and main(words) == 0
    assert "holds 3 episodes, 0 of them new" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    assert main(["data", "mixture", f"root={out.parent}"]) == 0
    assert "step  7  agentview_rgb viola" in capsys.readouterr().out
    np.savez(tmp_path / "viola" / "train_eps_00000009.npz", image=frames)
    assert main([*words[:2], *words[2:3], f"to={tmp_path / 'b'}", *words[4:]]) == 3
    captured = capsys.readouterr()
    assert "train_eps_00000009.npz  it has no key agentview_rgb; it has image" in captured.out
    assert "1 of 4 items cannot be converted" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["convert", "from=.", "to=x"], "format= is missing"),
        (["convert", "from=.", "to=x", "format=npz"], "format must be one of published_npz"),
        (["convert", "from=gone", "to=x", "format=video"], "from=gone is not a folder"),
        (["convert", "from=.", "to=x", "format=video"], "holds no video"),
        (["convert", "from=.", "to=x", "format=bair"], "holds no file with tfrecord"),
        (
            ["convert", "from=.", "to=x", "format=video", "rate=fast"],
            "rate must be a number > 0 and <= 1e+06 (got fast)",
        ),
        (["check"], "takes folders of data sets"),
        (["check", "gone"], "gone is not a folder"),
        (["preview"], "needs the folder of a data set"),
        (["mixture", "name=ox"], "did you mean oxe"),
        (["covnert"], "did you mean convert?"),
        ([], "write mbrl data collect or convert"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tensorflow_datasets", "rlds"), ("h5py", "robonet"), ("h5py", "robomimic"), ("pyarrow", "lerobot")],
)
def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, kind: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    assert main(["data", "convert", f"from={tmp_path}", f"to={tmp_path / 'x'}", f"format={kind}"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_a_preview_says_of_which_frame_each_picture_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number, decisions in ((3, 90), (7, 10)):
        write_episode(folder, numbered(number, decisions))
    write_card(folder, replace(CARD, name="set", image=(8, 8), action_dim=3, rewards=True))
    told: list[str] = []
    write = video._write_texts
    monkeypatch.setattr(
        video, "_write_texts", lambda p, texts: (told.extend(text for _, _, text in texts), write(p, texts))[1]
    )
    assert main(["data", "preview", str(folder), f"out={tmp_path / 'a.png'}", "columns=4"]) == 0
    told = [text for text in told if text]
    assert told == [
        *(f"set episode 3, frame {frame}" for frame in (0, 30, 60, 90)),
        *(f"set episode 7, frame {frame}" for frame in (0, 3, 7, 10)),
    ]
