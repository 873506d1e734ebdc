"""Frames of 0 and 1 only: black and white, or nearly black? Asked at the one door that every format goes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mbrl.data.convert.clip import Item, Unreadable, frames_of
from mbrl.data.convert.pictures import frame_folders, videos
from mbrl.data.convert.rlds import rlds
from mbrl.data.convert.robonet import trajectory
from mbrl.data.convert.tfrecord import pushed
from tests.data import lerobot_layout
from tests.data.test_convert import Group, _example
from tests.data.test_foreign import convert, episode
from tests.data.test_foreign import stored as npz_of
from tests.data.test_replays import chunked

LENGTH = 6
TWO = (np.indices((LENGTH, 64, 64, 3)).sum(0) % 2).astype(np.uint8)
"""Black and white, as 0 and 1."""
DARK = TWO.copy()
DARK[-1, 0, 0, 0] = 2
"""Nearly black, without doubt: one number of one frame is beyond 1."""
Frames = np.ndarray[Any, Any]


def one(items: Any) -> Item:
    (found,) = items
    assert isinstance(found, Item)
    return found


def of_bair(frames: Frames, folder: Path) -> Frames:
    features: dict[str, Any] = {f"{i}/view/encoded": frame.tobytes() for i, frame in enumerate(frames)}
    return pushed(_example(features), view="view").frames


def of_pictures(frames: Frames, folder: Path) -> Frames:
    (folder / "clip").mkdir()
    for place, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "clip" / f"{place}.png")
    return one(frame_folders(folder)).read().frames


def of_a_gif(frames: Frames, folder: Path) -> Frames:
    images = [Image.fromarray(frame).quantize(8) for frame in frames]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:])
    return one(videos(folder)).read().frames


def of_rlds(frames: Frames, folder: Path) -> Frames:
    class Reader:
        def episodes(self) -> list[dict[str, Any]]:
            return [{"steps": [{"observation": {"image": frame}} for frame in frames]}]

    return one(rlds(Reader(), image_key="image", action_key="")).read().frames


def of_robonet(frames: Frames, folder: Path) -> Frames:
    camera = Group({"cam0_video": Group({"frames": frames})})
    return trajectory(Group({"env": camera}), camera=0).frames


def converted(source: Path, *words: str) -> Frames:
    """Frames of the first episode. Raises: Unreadable where the conversion ends with exit code 3."""
    code = convert(source, source.parent / "out", *words)
    if code:
        assert code == 3
        raise Unreadable
    return episode(source.parent / "out").pixels.transpose(0, 2, 3, 1)


def of_an_npz(frames: Frames, folder: Path) -> Frames:
    return converted(npz_of(folder / "in", image=frames), "format=published_npz")


def of_drqv2(frames: Frames, folder: Path) -> Frames:
    rows = {"action": np.zeros((LENGTH, 1)), "reward": np.zeros(LENGTH)}
    return converted(npz_of(folder / "in", observation=frames.transpose(0, 3, 1, 2), **rows), "format=drqv2")


def of_dreamerv3(frames: Frames, folder: Path) -> Frames:
    place = np.arange(LENGTH)
    chunked(folder / "in", {"image": frames, "is_first": place == 0, "is_last": place == LENGTH - 1}, "a")
    return converted(folder / "in", "format=dreamerv3")


def of_robomimic(frames: Frames, folder: Path) -> Frames:
    h5py = pytest.importorskip("h5py")
    (folder / "in").mkdir()
    with h5py.File(folder / "in" / "a.hdf5", "w") as file:
        file["data/demo_0/obs/rgb"], file["data/demo_0/actions"] = frames, np.zeros((LENGTH, 1))
    return converted(folder / "in", "format=robomimic", "key=rgb")


def of_lerobot(frames: Frames, folder: Path) -> Frames:
    pytest.importorskip("pyarrow")
    members = [{"frames": frames, "action": np.ones((LENGTH, 2), np.float32)}]
    return converted(lerobot_layout.write(folder / "in", members, "v2.1", image=True), "format=lerobot")


DOORS: dict[str, Callable[[Frames, Path], Frames]] = {
    name: door for name, door in list(globals().items()) if name.startswith("of_")
}


@pytest.mark.parametrize("name", DOORS)
def test_an_episode_of_0_and_1_is_refused_in_every_format_and_a_darker_one_is_taken(name: str, tmp_path: Path) -> None:
    door = DOORS[name]
    (tmp_path / "dark").mkdir()
    (tmp_path / "two").mkdir()
    assert (door(DARK, tmp_path / "dark") == DARK).all()
    with pytest.raises(Unreadable):
        door(TWO, tmp_path / "two")


def test_what_to_do_is_said_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = npz_of(tmp_path / "in", image=TWO)
    np.savez(source / "other.npz", image=DARK)
    assert convert(source, tmp_path / "out", "format=published_npz") == 3
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "0 and 1 only" in line)
    assert row.split("  ")[1] == "ep.npz" and "image holds 0 and 1 only as uint8" in row
    assert "store white as 255, or all as real numbers; damaged=skip goes on without it" in row
    assert convert(source, tmp_path / "out", "format=published_npz", "damaged=skip") == 0
    assert (episode(tmp_path / "out").pixels.max(), episode(tmp_path / "out").number) == (2, 1)
    for mended in (TWO * np.uint8(255), TWO.astype(np.float32)):
        assert (frames_of(mended, what="image") == TWO * 255).all()
    assert not frames_of(np.zeros_like(TWO), what="image").any(), "black either way"
