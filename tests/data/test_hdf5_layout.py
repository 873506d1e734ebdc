"""HDF5 files that are laid out otherwise than robomimic and RoboNet do: nothing is lost, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.data.dataset import DataSet, EpisodeCache
from tests.data.test_foreign import convert
from tests.data.test_robomimic import KEY, TAKEN, archive, demo, refused

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'h5py>=3.10'")

WORDS = ("format=robomimic", f"key={KEY}", "image=8")


def numbered(*names: str) -> dict[str, dict[str, Any]]:
    """Demonstrations of these names, whose actions tell which one it is."""
    return {name: demo(actions=np.full_like(TAKEN, i)) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    "names", [("demo_0", "demo_1", "episode_2"), ("demo_0", "demo_1b"), ("ep10", "ep9"), ("demo", "demo_0", "Demo_1")]
)
def test_a_demonstration_of_another_name_is_read_and_said(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(archive(tmp_path / "in", numbered(*names)), tmp_path / "out", *WORDS) == 0
    data = DataSet(tmp_path / "out", cache=EpisodeCache(0))
    assert sorted(data.episode(i).action[0, 0] for i in range(len(data))) == list(range(len(names)))
    told = [line for line in capsys.readouterr().out.splitlines() if "it is not called demo_<i>" in line]
    strange = sum(not (name.startswith("demo_") and name[5:].isdigit()) for name in names)
    assert len(told) == 1 and (f"{strange} items" in told[0] or strange == 1)


def test_demonstrations_of_other_names_come_in_natural_order(tmp_path: Path) -> None:
    assert convert(archive(tmp_path / "in", numbered("ep10", "ep9", "ep1")), tmp_path / "out", *WORDS) == 0
    data = DataSet(tmp_path / "out", cache=EpisodeCache(0))
    assert [data.episode(i).action[0, 0] for i in range(3)] == [2, 1, 0]


def test_a_group_that_is_no_demonstration_is_a_row_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = archive(tmp_path / "in", numbered("demo_0"))
    with h5py.File(source / "image.hdf5", "a") as file:
        file["data/demo_1"], file["data/notes/author"] = np.zeros(3), np.zeros(2)
        file["data/total"] = 7
    assert convert(source, tmp_path / "out", *WORDS) == 3
    told = capsys.readouterr().out
    assert "image.hdf5/demo_1  data/demo_1 is an array of float64 [3], where a group with obs is expected" in told
    assert "image.hdf5/notes   it has no obs; it has author" in told
    assert "data/total is an array of int64 [], where a group with obs is expected" in told
    assert convert(source, tmp_path / "out", *WORDS, "damaged=skip") == 0
    assert len(DataSet(tmp_path / "out", cache=EpisodeCache(0))) == 1


def _data_of_numbers(file: Any) -> None:
    file["data"] = np.zeros(3)


def _data_of_frames(file: Any) -> None:
    file["data"] = np.zeros((4, 8, 8, 3), np.uint8)


def _data_of_text(file: Any) -> None:
    file["data"] = "demo_0"


def _type(file: Any) -> None:
    file["data"] = np.dtype("f4")


def _no_data(file: Any) -> None:
    file["observations/images"], file["action"] = np.zeros(3), np.zeros(3)


def _obs_of_numbers(file: Any) -> None:
    file["data/demo_0/obs"], file["data/demo_0/actions"] = np.zeros((3, 7)), np.zeros((3, 2))


def _next_obs_of_numbers(file: Any) -> None:
    file[f"data/demo_0/obs/{KEY}"] = np.zeros((3, 8, 8, 3), np.uint8)
    file["data/demo_0/actions"], file["data/demo_0/next_obs"] = np.zeros((3, 2)), np.zeros(3)


WITH = "where a group with one group for each demonstration (demo_0, ...) is expected"
LAYOUTS: dict[str, tuple[Any, str]] = {
    "data is an array": (_data_of_numbers, f"data is an array of float64 [3], {WITH}"),
    "data are frames": (_data_of_frames, f"data is an array of uint8 [4, 8, 8, 3], {WITH}"),
    "data is text": (_data_of_text, f"data is an array of object [], {WITH}"),
    "data is a type": (_type, f"data is a Datatype, {WITH}"),
    "no data": (_no_data, "it has no data; it has action, observations"),
    "obs is an array": (_obs_of_numbers, f"obs is an array of float64 [3, 7], where a group with {KEY} is expected"),
    "next_obs is an array": (_next_obs_of_numbers, "next_obs is an array of float64 [3], where a group"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_array_where_a_group_belongs_is_said_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = LAYOUTS[name]
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "x.hdf5", "w") as file:
        make(file)
    assert convert(tmp_path / "in", tmp_path / "out", *WORDS) == 3
    captured = capsys.readouterr()
    assert words in captured.out
    refused(captured.err, tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("env", "env is an array of float64 [3], where a group with cam0_video is expected"),
        ("env/cam0_video", "env/cam0_video is an array of float64 [3], where a group with frames is expected"),
        ("policy", "policy is an array of float64 [3], where a group with actions is expected"),
        ("elsewhere", "it has no env; it has elsewhere"),
    ],
)
def test_robonet_s_groups_are_asked_for_alike(
    place: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "x.hdf5", "w") as file:
        file[place] = np.zeros(3)
        if place == "policy":
            file["env/cam0_video/frames"] = np.zeros((4, 8, 8, 3), np.uint8)
    assert convert(tmp_path / "in", tmp_path / "out", "format=robonet") == 3
    assert said in capsys.readouterr().out
