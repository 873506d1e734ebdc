from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mbrl.data.convert.arrays import Keys, published_npz
from mbrl.data.convert.clip import Clip, Item, Unreadable, frames_of
from mbrl.data.convert.pictures import frame_folders, videos
from mbrl.data.convert.rlds import rlds
from mbrl.data.convert.robonet import trajectory
from mbrl.data.convert.run import Job, Outcome, convert
from mbrl.data.convert.tfrecord import bair, example, masked_crc, offsets
from mbrl.data.dataset import DamagedSet, DataSet, EpisodeCache, read_card

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (7, 10, 14, 3), np.uint8)
ACTIONS = RANDOM.normal(size=(6, 5)).astype(np.float32)


def converted(items: Any, folder: Path, **how: Any) -> Outcome:
    job = {"source": "test", "side": None, "crop": False, "rate": 10.0, "skip": False, "limit": 0}
    return convert(items, Job(folder=folder, **(job | how)))


def opened(folder: Path) -> DataSet:
    return DataSet(folder, cache=EpisodeCache(0))


# -- published npz -----------------------------------------------------------------------------------------------------


def published(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for place in range(count):
        np.savez(folder / f"train_eps_{place:08d}.npz", image=FRAMES + np.uint8(place), action=ACTIONS * place)
    return folder


def test_a_published_episode_comes_over_frame_by_frame_and_action_by_action(tmp_path: Path) -> None:
    items = published_npz(published(tmp_path / "in"), Keys(image="image"))
    outcome = converted(items, tmp_path / "out")
    assert (outcome.episodes, outcome.written, outcome.damaged) == (4, 4, [])
    data = opened(tmp_path / "out")
    assert (data.card.action_dim, data.card.rewards, data.card.image, data.card.rate) == (5, False, (10, 14), 10.0)
    for place in range(4):
        episode = data.episode(place)
        assert (episode.pixels == (FRAMES + np.uint8(place)).transpose(0, 3, 1, 2)).all()
        assert (episode.action == ACTIONS * place).all() and not episode.rewarded
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[0] == "dataset.json"


def test_an_action_too_many_is_dropped_and_wide_numbers_become_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", image=FRAMES.astype(np.int64), action=np.ones((7, 4)))
    np.savez(tmp_path / "in" / "b.npz", image=FRAMES / 255.0, action=np.ones((6, 4)))
    converted(published_npz(tmp_path / "in", Keys(image="image")), tmp_path / "out")
    data = opened(tmp_path / "out")
    assert (data.episode(0).pixels == data.episode(1).pixels).all()
    assert data.episode(0).action.shape == data.episode(1).action.shape == (6, 4)


def test_an_archive_without_actions_gives_videos(tmp_path: Path) -> None:
    items = published_npz(published(tmp_path / "in"), Keys(image="image", action=""))
    converted(items, tmp_path / "out", side=8, crop=True)
    episode = opened(tmp_path / "out").episode(0)
    assert episode.pixels.shape == (7, 3, 8, 8) and episode.action.shape == (6, 0)


def test_an_interrupted_conversion_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    items = list(published_npz(published(tmp_path / "in"), Keys(image="image")))

    def broken() -> Clip:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted([*items[:2], Item("c", broken)], tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(ValueError, match="holds another conversion"):
        converted(items, tmp_path / "out", side=8)
    assert converted(items, tmp_path / "out").written == 2
    converted(items, tmp_path / "whole")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.npz")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.npz")
    }
    assert converted(items, tmp_path / "out").written == 0
    with pytest.raises(ValueError, match="of another source"):
        converted(items, tmp_path / "out", source="other")


def test_damage_is_refused_with_a_table_or_skipped_if_asked(tmp_path: Path) -> None:
    folder = published(tmp_path / "in", 6)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).write_bytes(b"not a zip")
    np.savez(folder / names[1], image=np.array([{"a": 1}], dtype=object), action=ACTIONS)
    np.savez(folder / names[2], rgb=FRAMES)
    np.savez(folder / names[3], image=FRAMES, action=np.full((6, 5), np.nan))
    np.savez(folder / names[4], image=FRAMES[:1], action=ACTIONS[:0])
    items = published_npz(folder, Keys(image="image"))
    with pytest.raises(DamagedSet, match="5 of 6 items cannot be converted") as error:
        converted(items, tmp_path / "out")
    told = dict(error.value.rows)
    for place, words in enumerate(("cannot be read", "Object arrays", "no key image; it has rgb", "finite", "2 to")):
        assert words in told[names[place]], told[names[place]]
    assert not (tmp_path / "out" / "dataset.json").exists()
    outcome = converted(items, tmp_path / "out", skip=True)
    assert (outcome.episodes, outcome.written, len(outcome.damaged)) == (1, 0, 5)
    assert opened(tmp_path / "out").names[0].startswith("ep-000005-")


def test_episodes_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", image=FRAMES)
    np.savez(tmp_path / "in" / "b.npz", image=FRAMES[:, :8])
    np.savez(tmp_path / "in" / "c.npz", image=FRAMES, action=ACTIONS)
    items = published_npz(tmp_path / "in", Keys(image="image"))
    with pytest.raises(DamagedSet) as error:
        converted(items, tmp_path / "out")
    told = dict(error.value.rows)
    assert told["b.npz"] == "frame size 8x14, but a.npz has 10x14; image=64 makes them one size"
    assert told["c.npz"] == "actions 5, but a.npz has 0"
    assert (
        converted(published_npz(tmp_path / "in", Keys(image="image", action="")), tmp_path / "b", side=8).episodes == 3
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4, 4), np.uint8), "frames"),
        (np.zeros((3, 4, 4, 3), bool), "frames"),
        (np.full((3, 4, 4, 3), 256), "within 0..255"),
        (np.full((3, 4, 4, 3), np.nan), "within 0..255"),
        (np.full((3, 4, 4, 3), 1.5), "whole numbers"),
        (np.zeros((1, 4, 4, 3), np.uint8), "2 to"),
    ],
)
def test_what_is_no_video_is_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        frames_of(array, what="image")


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_gifs_and_folders_of_frames_become_episodes_in_natural_order(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    flat = np.repeat(np.arange(12, dtype=np.uint8) * 20, 8 * 8 * 3).reshape(12, 8, 8, 3)
    images = [Image.fromarray(frame) for frame in flat]
    images[0].save(inside / "b2.gif", save_all=True, append_images=images[1:], loop=0)
    images[0].save(inside / "b10.gif", save_all=True, append_images=images[1:3], loop=0)
    (inside / "clip").mkdir()
    for place, image in enumerate(images):
        image.save(inside / "clip" / f"{place + 1}.png")
    assert [item.name for item in videos(inside)] == ["b2.gif", "b10.gif"]
    converted(videos(inside), tmp_path / "gifs")
    gif = opened(tmp_path / "gifs").episode(0)
    assert abs(gif.pixels.astype(int) - flat.transpose(0, 3, 1, 2)).max() <= 4
    converted(frame_folders(inside), tmp_path / "frames")
    assert (opened(tmp_path / "frames").episode(0).pixels == flat.transpose(0, 3, 1, 2)).all()


def test_an_mp4_is_read_where_ffmpeg_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as imageio

    (tmp_path / "in").mkdir()
    flat = np.repeat(np.linspace(20, 220, 6, dtype=np.uint8), 32 * 32 * 3).reshape(6, 32, 32, 3)
    imageio.imwrite(tmp_path / "in" / "a.mp4", flat, plugin="FFMPEG", fps=10)
    (tmp_path / "in" / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(DamagedSet) as error:
        converted(videos(tmp_path / "in"), tmp_path / "out")
    assert [name for name, _ in error.value.rows] == ["b.mp4"]
    converted(videos(tmp_path / "in"), tmp_path / "out", skip=True)
    pixels = opened(tmp_path / "out").episode(0).pixels
    assert pixels.shape == (6, 3, 32, 32) and abs(pixels.astype(int).mean((1, 2, 3)) - flat.mean((1, 2, 3))).max() < 6


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "in" / "clip").mkdir(parents=True)
    (tmp_path / "in" / "clip" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DamagedSet) as error:
        converted(frame_folders(tmp_path / "in"), tmp_path / "out")
    assert error.value.rows[0][0] == "clip" and "1.jpg: it is no picture" in error.value.rows[0][1]
    with pytest.raises(ValueError, match="holds no video"):
        videos(tmp_path / "in")


# -- BAIR --------------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _example(features: dict[str, bytes | np.ndarray]) -> bytes:
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        elif value.dtype.kind == "f":
            feature = _field(2, _field(1, value.astype("<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(_varint(int(v) & (1 << 64) - 1) for v in value)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc(length)) + content + struct.pack("<I", masked_crc(content))


def pushing(number: int) -> bytes:
    random = np.random.default_rng(number)
    features: dict[str, bytes | np.ndarray] = {}
    for place in range(3):
        features[f"{place}/image_aux1/encoded"] = random.integers(0, 256, 64 * 64 * 3, np.uint8).tobytes()
        features[f"{place}/image_main/encoded"] = bytes(64 * 64 * 3)
        features[f"{place}/action"] = np.arange(4) + 10.0 * place + number
    return _example(features)


def test_bair_is_read_without_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "in" / "train").mkdir(parents=True)
    for name, numbers in (("traj_0_to_1.tfrecords", (0, 1)), ("traj_2_to_2.tfrecords", (2,))):
        (tmp_path / "in" / "train" / name).write_bytes(b"".join(_record(pushing(number)) for number in numbers))
    items = bair(tmp_path / "in", view="image_aux1")
    assert converted(items, tmp_path / "out").episodes == 3
    episode = opened(tmp_path / "out").episode(2)
    expected = np.random.default_rng(2).integers(0, 256, 64 * 64 * 3, np.uint8).reshape(64, 64, 3)
    assert (episode.pixels[0] == expected.transpose(2, 0, 1)).all()
    assert episode.action.tolist() == [[2, 3, 4, 5], [12, 13, 14, 15]]


def test_the_features_of_an_example_of_every_kind_come_back() -> None:
    made = _example({"a": b"text", "b": np.array([1.5, -2.0]), "c": np.array([3, -7, 2**40])})
    found = example(made)
    assert found["a"] == [b"text"]
    assert np.asarray(found["b"]).tolist() == [1.5, -2.0] and np.asarray(found["c"]).tolist() == [3, -7, 2**40]


def test_every_cut_and_every_changed_byte_of_a_tfrecord_is_refused_and_nothing_hangs(tmp_path: Path) -> None:
    features = {"0/view/encoded": bytes(range(200)), "0/action": np.array([1.0])}
    good = _record(_example(features)) + _record(_example(features))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tfrecord"
    random = np.random.default_rng(0)
    for _ in range(150):
        bad = bytearray(good)
        if random.random() < 0.5:
            bad[random.integers(len(good))] ^= int(random.integers(1, 256))
        else:
            bad = bad[: random.integers(1, len(good))]
            if len(bad) == len(good) // 2:  # one whole record is a whole file
                continue
        path.write_bytes(bytes(bad))
        refused = 0
        for item in bair(tmp_path / "in", view="view"):
            with pytest.raises(Unreadable) as error:
                item.read()
            refused += "it has no frames" not in str(error.value)
        assert refused, "a changed file read like the good one"
    path.write_bytes(struct.pack("<Q", 2**60) + struct.pack("<I", masked_crc(struct.pack("<Q", 2**60))) + bytes(9))
    with pytest.raises(Unreadable, match="says 1152921504606846976 bytes"):
        offsets(path)


def test_a_hostile_message_is_refused() -> None:
    for content in (b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 11, b"\x0a", b"\x0b\x00", b"\x0a\x03\x0a\x05\x00"):
        with pytest.raises(Unreadable):
            example(content)


# -- RoboNet -----------------------------------------------------------------------------------------------------------


class Group(dict):
    """A group of an HDF5 file as far as a reader looks at it."""

    def __init__(self, content: dict[str, Any], **attrs: Any) -> None:
        super().__init__(content)
        self.attrs = attrs


def archive(actions: np.ndarray, **attrs: Any) -> Group:
    state = np.zeros((7, 3))
    state[:, -1] = [0.0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3]
    pictures = {}
    for place, frame in enumerate(FRAMES):
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "png")
        pictures[f"frame{place}"] = np.frombuffer(stream.getvalue(), np.uint8)
    env = Group({"cam0_video": Group({"frames": FRAMES}), "cam1_video": Group(pictures), "state": state})
    return Group({"env": env, "policy": Group({"actions": actions}), "metadata": Group({}, **attrs)})


def test_robonet_frames_come_as_an_array_or_as_pictures() -> None:
    whole, single = (trajectory(archive(ACTIONS), camera=camera) for camera in (0, 1))
    assert (whole.frames == FRAMES).all() and (single.frames == FRAMES).all()
    assert whole.action is not None and (whole.action == ACTIONS).all()
    with pytest.raises(Unreadable, match="env has no cam7_video; it has cam0_video"):
        trajectory(archive(ACTIONS), camera=7)


def test_robonet_actions_become_five_numbers() -> None:
    def made(actions: np.ndarray, **attrs: Any) -> np.ndarray:
        action = trajectory(archive(actions, **attrs), camera=0).action
        assert action is not None
        return action

    wide = np.concatenate([ACTIONS, ACTIONS], axis=1)
    assert (made(wide) == ACTIONS).all()
    narrow = made(ACTIONS[:, :3])
    assert (narrow[:, :3] == ACTIONS[:, :3]).all() and (narrow[:, 3:] == 0).all()
    bounds = {"low_bound": np.array([0.0, -1.0]), "high_bound": np.array([1.0, 2.0])}
    grasped = made(ACTIONS[:, :4], primitives="autograsp", **bounds)
    assert (grasped[:, :4] == ACTIONS[:, :4]).all()
    assert grasped[:, 4].tolist() == [2.0, -1.0, 2.0, -1.0, 2.0, -1.0]  # next state's last number against 0.5
    with pytest.raises(Unreadable, match="no autograsp"):
        made(ACTIONS[:, :4])


# -- RLDS --------------------------------------------------------------------------------------------------------------


class Reader:
    """Two episodes as tensorflow-datasets gives them."""

    def __init__(self, **first_step: Any) -> None:
        self.first_step = first_step

    def episodes(self) -> list[dict[str, Any]]:
        steps = [
            {
                "observation": {"rgb": frame, "state": np.zeros(3)},
                "action": np.append(ACTIONS, ACTIONS[:1], axis=0)[place],
            }
            for place, frame in enumerate(FRAMES)
        ]
        return [{"steps": steps}, {"steps": [{**steps[0], **self.first_step}, *steps[1:]]}]


def test_rlds_episodes_come_over_with_or_without_actions(tmp_path: Path) -> None:
    converted(rlds(Reader(), image_key="rgb", action_key="action"), tmp_path / "a")
    episode = opened(tmp_path / "a").episode(1)
    assert (episode.pixels == FRAMES.transpose(0, 3, 1, 2)).all() and (episode.action == ACTIONS).all()
    converted(rlds(Reader(), image_key="rgb", action_key=""), tmp_path / "b")
    assert read_card(tmp_path / "b").action_dim == 0


def test_a_step_that_lacks_something_is_named(tmp_path: Path) -> None:
    reader = Reader(observation={"image": FRAMES[0]})
    with pytest.raises(DamagedSet) as error:
        converted(rlds(reader, image_key="rgb", action_key=""), tmp_path / "a")
    assert error.value.rows == [("episode 1", "a step has no observation rgb; it has image")]
    with pytest.raises(DamagedSet) as error:
        converted(rlds(Reader(), image_key="rgb", action_key="command"), tmp_path / "b")
    assert "no command; it has action, observation" in error.value.rows[0][1]


def test_the_mark_of_a_conversion_is_gone_when_it_is_done(tmp_path: Path) -> None:
    converted(rlds(Reader(), image_key="rgb", action_key=""), tmp_path / "a")
    assert not (tmp_path / "a" / "converting.json").exists()
    assert json.loads((tmp_path / "a" / "dataset.json").read_text())["source"] == "test"
