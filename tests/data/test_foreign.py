"""Foreign files as people have them: how actions and frames are aligned, ranges of numbers, what systems leave."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mbrl.cli.main import main
from mbrl.data.convert.arrays import npz_in, read, unstacked
from mbrl.data.convert.clip import UnclearRow, Unreadable, action_row, frames_of, rows_of
from mbrl.data.convert.pictures import decoded, picture
from mbrl.data.convert.robonet import trajectory
from mbrl.data.dataset import DataSet, EpisodeCache, read_card
from mbrl.replay.episode import Episode
from tests.data.test_convert import ACTIONS, FRAMES, Group, archive

LENGTH = 12


def moving() -> tuple[np.ndarray, np.ndarray]:
    """Frames of a block that each action moves left or right, and the actions, row i from frame i to i + 1."""
    action = np.zeros((LENGTH - 1, 2), np.float32)
    action[:, 0] = np.random.default_rng(0).choice([-1, 1], LENGTH - 1)
    frames = np.full((LENGTH, 64, 64, 3), 40, np.uint8)
    for frame, x in zip(frames, 32 + 2 * np.cumsum([0, *action[:, 0]]).astype(int), strict=True):
        frame[28:36, x : x + 8] = 250
    return frames, action


def led_into(action: np.ndarray, filler: float = 0.0) -> np.ndarray:
    """The actions as archives hold them whose row i led into frame i."""
    return np.concatenate([np.full_like(action[:1], filler), action])


def explained(episode: Episode) -> bool:
    """Whether action i is what moved frame i to frame i + 1."""
    places = [int((frame[0, 30] == 250).argmax()) for frame in episode.pixels]
    return bool((np.sign(np.diff(places)) == np.sign(episode.action[:, 0])).all())


def stored(folder: Path, **arrays: Any) -> Path:
    """A folder with one npz."""
    folder.mkdir(parents=True)
    np.savez(folder / "ep.npz", **arrays)
    return folder


def convert(source: Path, to: Path, *words: str) -> int:
    return main(["data", "convert", f"from={source}", f"to={to}", *words])


def episode(folder: Path) -> Episode:
    return DataSet(folder, cache=EpisodeCache(0)).episode(0)


# -- which frame an action belongs to ----------------------------------------------------------------------------------

FRAMES_M, ACTIONS_M = moving()
UNCLEAR: dict[str, dict[str, Any]] = {
    "Dreamer": {"action": led_into(ACTIONS_M), "is_first": np.arange(LENGTH) == 0},
    "zeros": {"action": led_into(ACTIONS_M)},
    "TD-MPC2": {"action": led_into(ACTIONS_M, np.nan)},
    "marked, with a first row that is none": {"action": led_into(ACTIONS_M, 0.5), "is_first": np.arange(LENGTH) == 0},
    "reals of 64 bits": {"action": led_into(ACTIONS_M).astype(np.float64)},
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_action_that_may_have_led_into_its_frame_is_asked_about_and_then_right(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stored(tmp_path / "in", image=FRAMES_M, **UNCLEAR[name])
    assert convert(source, tmp_path / "out", "format=published_npz") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: action_row= is missing: action has as many rows as there are frames")
    assert convert(source, tmp_path / "out", "format=published_npz", "action_row=into") == 0, "nothing is in the way"
    assert explained(episode(tmp_path / "out"))


def test_an_action_taken_in_its_frame_is_right_as_it_was_and_where_it_is_said() -> None:
    taken = np.concatenate([ACTIONS_M, np.zeros_like(ACTIONS_M[:1])])  # the last led nowhere
    assert action_row(taken, LENGTH, what="action", usual="from") == "from"
    assert (rows_of(taken, LENGTH, what="action") == ACTIONS_M).all()
    resting = led_into(ACTIONS_M)  # begins with a rest
    with pytest.raises(UnclearRow):
        action_row(resting, LENGTH, what="action", usual="from")
    assert (rows_of(resting, LENGTH, what="action", row="from") == resting[:-1]).all()
    assert (rows_of(ACTIONS_M, LENGTH, what="action", row="into") == ACTIONS_M).all(), "one row less: nothing to tell"
    assert action_row(np.zeros((LENGTH, 2)), LENGTH, what="action", usual="from") == "from", "always at rest"


@pytest.mark.parametrize("extra", [{}, {"is_terminal": np.arange(LENGTH) == LENGTH - 1}])
def test_rewards_come_over_where_they_are_asked_for(extra: dict[str, Any], tmp_path: Path) -> None:
    reward = np.arange(LENGTH, dtype=np.float32)
    source = stored(tmp_path / "in", image=FRAMES_M, action=led_into(ACTIONS_M), reward=reward, **extra)
    words = ["format=published_npz", "action_row=into"]
    assert convert(source, tmp_path / "out", *words, "reward=reward") == 0
    found = episode(tmp_path / "out")
    assert found.reward.tolist() == reward[1:].tolist() and read_card(tmp_path / "out").rewards
    assert bool(found.terminated[-1]) is bool(extra) and bool(found.truncated[-1]) is not bool(extra)
    assert convert(source, tmp_path / "without", *words) == 0
    assert not episode(tmp_path / "without").rewarded


def test_which_step_a_reward_belongs_to_is_asked_where_actions_do_not_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = np.arange(LENGTH, dtype=np.float32)
    taken = np.concatenate([ACTIONS_M, ACTIONS_M[:1]])
    source = stored(tmp_path / "in", image=FRAMES_M, action=taken, reward=reward)
    words = ["format=published_npz", "reward=reward"]
    assert convert(source, tmp_path / "out", *words) == 2
    assert "reward_row= is missing" in capsys.readouterr().err
    for row, right in (("into", reward[1:]), ("from", reward[:-1])):
        assert convert(source, tmp_path / row, *words, f"reward_row={row}") == 0
        assert episode(tmp_path / row).reward.tolist() == right.tolist() and explained(episode(tmp_path / row))


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["action=actons", "key=imag", "reward=rewards"])
def test_a_key_that_was_typed_must_be_there(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stored(tmp_path / "in", image=FRAMES, actions=ACTIONS)
    assert convert(source, tmp_path / "out", "format=published_npz", word) == 3
    assert f"it has no key {word.partition('=')[2]}; it has actions, image" in capsys.readouterr().out
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name != "run.lock"]
    assert convert(source, tmp_path / "out", "format=published_npz", "action=actions") == 0
    assert (episode(tmp_path / "out").action == ACTIONS).all()


def test_keys_that_were_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stored(tmp_path / "in", image=FRAMES, actions=ACTIONS, reward=np.zeros(6))
    assert convert(source, tmp_path / "out", "format=published_npz") == 0
    assert "ep.npz  not read: actions, reward" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["action=action", "camera=1", "split=all", "action_row=into"])
def test_a_word_that_the_format_does_not_read_is_refused(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, tmp_path / "out", "format=video", word) == 2
    assert f"{word} has no effect with format=video" in capsys.readouterr().err


# -- DrQ-v2 ------------------------------------------------------------------------------------------------------------


def demonstration(frames: int = 101, stack: int = 3, *, last_discount: float = 1.0) -> dict[str, np.ndarray]:
    """An episode as the paper's public demonstrations are: pixels and actions that are known."""
    single = np.random.default_rng(3).integers(0, 256, (frames, 3, 64, 64), np.uint8)
    padded = np.concatenate([single[:1].repeat(stack - 1, axis=0), single])
    observation = np.concatenate([padded[place : place + frames] for place in range(stack)], axis=1)
    action = np.random.default_rng(4).uniform(-1, 1, (frames, 4))
    action[0] = 0
    discount = np.ones((frames, 1), np.float32)
    discount[-1] = last_discount
    reward = np.arange(frames, dtype=np.float32)[:, None] / 10
    return {"observation": observation, "action": action, "reward": reward, "discount": discount}


@pytest.mark.parametrize(("stack", "last"), [(3, 1.0), (3, 0.0), (1, 1.0), (4, 1.0)])
def test_an_episode_of_drqv2_is_unstacked_and_its_filler_dropped(stack: int, last: float, tmp_path: Path) -> None:
    made = demonstration(stack=stack, last_discount=last)
    source = stored(tmp_path / "in", **made)
    assert convert(source, tmp_path / "out", "format=drqv2") == 0
    found = episode(tmp_path / "out")
    assert (found.pixels == made["observation"][:, -3:]).all() and found.pixels.shape == (101, 3, 64, 64)
    assert (found.action == made["action"][1:].astype(np.float32)).all()
    assert found.reward.tolist() == made["reward"][1:, 0].tolist()
    assert bool(found.terminated[-1]) is (last == 0)
    assert main(["data", "check", str(tmp_path / "out")]) == 0


def test_a_stack_in_another_order_or_of_skipped_frames_is_refused() -> None:
    made = demonstration(20)
    newest_first = made["observation"].reshape(20, 3, 3, 64, 64)[:, ::-1].reshape(20, 9, 64, 64)
    for wrong in (newest_first, made["observation"][::2].repeat(2, axis=0)):
        with pytest.raises(Unreadable, match="no stack of frames"):
            unstacked(made | {"observation": wrong})
    with pytest.raises(Unreadable, match="must be uint8"):
        unstacked(made | {"observation": made["observation"].astype(np.float32)})
    with pytest.raises(Unreadable, match="it has no key reward; it has action"):
        unstacked({key: value for key, value in made.items() if key != "reward"})


# -- numbers of a picture ----------------------------------------------------------------------------------------------

CHECKED = (np.indices((4, 8, 8, 3)).sum(0) % 2).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_black_and_white_as_real_numbers_is_black_and_white(dtype: Any) -> None:
    assert (frames_of(CHECKED.astype(dtype), what="image") == CHECKED * 255).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_whole_numbers_that_could_be_either_are_refused(dtype: Any) -> None:
    with pytest.raises(Unreadable, match="holds 0 and 1 only"):
        frames_of(CHECKED.astype(dtype), what="image")
    assert (frames_of((CHECKED * 2).astype(dtype), what="image") == CHECKED * 2).all()


@pytest.mark.parametrize("value", [0, 257, 40000, 65535])
def test_a_picture_of_16_bits_is_scaled(value: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.uint16)).save(stream, "png")
    assert (picture(stream.getvalue()) == round(value / 257)).all()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_picture_whose_range_is_unknown_is_refused(mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (4, 4), 1000).save(stream, "tiff")
    with pytest.raises(Unreadable, match=f"numbers of mode {mode}"):
        picture(stream.getvalue())


# -- RoboNet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["BGR", b"BGR", np.array([b"BGR"])])
@pytest.mark.parametrize("camera", [0, 1])
def test_blue_and_red_of_robonet_are_as_its_loaders_have_them(said: Any, camera: int) -> None:
    assert (trajectory(archive(ACTIONS, image_format=said), camera=camera).frames == FRAMES[..., ::-1]).all()
    assert (trajectory(archive(ACTIONS, image_format="RGB"), camera=camera).frames == FRAMES).all()
    with pytest.raises(Unreadable, match="image_format must be RGB or BGR"):
        trajectory(archive(ACTIONS, image_format="YUV"), camera=camera)


@pytest.mark.parametrize(
    ("actions", "states", "length", "longer"),
    [
        (6, 7, 7, ""),
        (7, 7, 7, ""),
        (10, 12, 7, "policy/actions and env/state"),
        (4, 5, 5, "frames"),
        (6, 3, 3, "policy"),
    ],
)
def test_what_is_longer_than_the_rest_of_a_trajectory_is_cut_and_said(
    actions: int, states: int, length: int, longer: str
) -> None:
    held = archive(np.arange(actions * 5.0).reshape(actions, 5))
    held["env"] = Group({**held["env"], "state": np.zeros((states, 3))})
    clip = trajectory(held, camera=0)
    assert len(clip.frames) == length and clip.action is not None
    assert (clip.action == np.arange(actions * 5).reshape(actions, 5)[: length - 1]).all()
    assert (longer in clip.note and f"cut to {length} frames" in clip.note) if longer else not clip.note


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_a_mac_leaves_in_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    clip = tmp_path / "in" / "clip"
    (tmp_path / "in" / "__MACOSX" / "clip").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    clip.mkdir()
    for place in range(1, 12):
        Image.new("RGB", (8, 8), (place * 20, 0, 0)).save(clip / f"{place}.png")
        (clip / f"._{place}.png").write_bytes(b"\0\5\x16\7")
    for junk in (clip / ".DS_Store", clip / "Thumbs.db", tmp_path / "in" / "__MACOSX" / "clip" / "._1.png"):
        junk.write_bytes(b"\0\5\x16\7")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / ".hidden" / "1.png")
    assert convert(tmp_path / "in", tmp_path / "out", "format=frames") == 0
    data = DataSet(tmp_path / "out", cache=EpisodeCache(0))
    assert len(data) == 1 and data.episode(0).pixels[:, 0, 0, 0].tolist() == [20 * place for place in range(1, 12)]
    source = stored(tmp_path / "npz", image=FRAMES)
    (source / "._ep.npz").write_bytes(b"\0\5\x16\7")
    assert convert(source, tmp_path / "out2", "format=published_npz") == 0


def _png_cut_off() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, "png")
    return stream.getvalue()[:600]


def _png_that_says_too_much() -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("content", [b"no picture", b"", _png_cut_off(), _png_that_says_too_much()])
def test_a_broken_picture_is_one_line_without_addresses(content: bytes) -> None:
    with pytest.raises(Unreadable) as error:
        picture(content)
    assert "0x" not in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_failed_conversion_leaves_nothing_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, to = stored(tmp_path / "in", image=FRAMES), tmp_path / "out"
    np.savez(source / "ep2.npz", image=FRAMES[:, :8])
    assert convert(source, to, "format=published_npz") == 3
    assert "image=64 makes them one size" in capsys.readouterr().out
    assert len(list(to.glob("ep-*.npz"))) == 1, "what was readable is kept for the same words"
    assert convert(source, to, "format=published_npz", "image=64") == 0, "and makes room for the advice"
    assert {DataSet(to, cache=EpisodeCache(0)).episode(place).pixels.shape for place in (0, 1)} == {(7, 3, 64, 64)}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.npz").write_bytes(b"none")
    assert convert(tmp_path / "empty", tmp_path / "out2", "format=published_npz") == 3
    assert convert(source, tmp_path / "out2", "format=published_npz", "image=8") == 0, "from= was mistyped"


def test_pictures_of_a_video_are_taken_once_each_however_long_they_stay(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    import subprocess

    for place in range(20):
        Image.new("RGB", (66, 64), (place * 8, 255 - place * 8, 40)).save(tmp_path / f"{place:03d}.png")
    lines = [f"file '{place:03d}.png'\nduration {0.1 if place < 10 else 0.5}\n" for place in range(20)]
    (tmp_path / "list.txt").write_text("".join(lines))
    command = [ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "concat", "-i", "list.txt", "-fps_mode", "vfr"]
    command += ["-c:v", "libx264", "-pix_fmt", "yuv444p", "-qp", "0", "a.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for source in (tmp_path / "a.mp4", (tmp_path / "a.mp4").read_bytes()):
        greens = [int(frame[32, 33, 1]) for frame in decoded(source)]
        assert len(greens) == 20 and greens == sorted(greens, reverse=True)
    with pytest.raises(Unreadable) as error:
        list(decoded(b"nothing"))
    assert "\n" not in str(error.value) and "version" not in str(error.value)


@pytest.mark.parametrize("header", ["(99999999999999999999,)", "(3, ", "(12345678, 2345678, 3)"])
def test_what_a_header_says_is_no_reason_to_break(tmp_path: Path, header: str) -> None:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {header}".ljust(117) + "}\n"
    with zipfile.ZipFile(tmp_path / "1.npz", "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with pytest.raises(Unreadable, match="cannot be read"):
        read(tmp_path / "1.npz", lambda arrays: arrays["image"])


def test_a_pipe_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.npz")
    with pytest.raises(ValueError, match=r"1\.npz is a pipe or a device"):
        npz_in(tmp_path)
