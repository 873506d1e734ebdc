"""Demonstrations in robomimic's HDF5 layout, as robomimic and LIBERO write them; and HDF5 files that are hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.cli.main import main
from mbrl.data.convert.clip import Unreadable
from mbrl.data.convert.robomimic import robomimic
from mbrl.data.dataset import DataSet, EpisodeCache, read_card
from tests.data.test_foreign import ACTIONS_M, FRAMES_M, convert, episode, explained

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'h5py>=3.10'")

FRAMES, TAKEN = FRAMES_M[:-1], ACTIONS_M  # as many of both: the frame after the last action is not in obs
REWARDS = np.arange(len(TAKEN), dtype=np.float64)
KEY = "agentview_image"


def demo(*, next_obs: bool = True, **other: Any) -> dict[str, Any]:
    """One demonstration with what robomimic writes beside it; `other` replaces members, None leaves one out."""
    members: dict[str, Any] = {
        "actions": TAKEN.astype(np.float64),
        "rewards": REWARDS,
        "dones": np.arange(len(TAKEN)) == len(TAKEN) - 1,
        "states": np.zeros((len(TAKEN), 45)),
        f"obs/{KEY}": FRAMES,
        "obs/robot0_eef_pos": np.zeros((len(TAKEN), 3)),
    }
    members |= {f"next_obs/{KEY}": FRAMES_M[1:]} if next_obs else {}
    return {name: value for name, value in (members | other).items() if value is not None}


def archive(folder: Path, demos: dict[str, dict[str, Any]], name: str = "image.hdf5", **how: Any) -> Path:
    """A folder with one file."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file.create_group("mask").create_dataset("train", data=np.array(list(demos), dtype="S"))
        for place, members in demos.items():
            for member, value in members.items():
                file.create_dataset(f"data/{place}/{member}", data=value, **(how if np.ndim(value) > 1 else {}))
    return folder


def test_the_last_frame_of_next_obs_makes_every_action_explain_the_frame_it_leads_into(tmp_path: Path) -> None:
    source = archive(tmp_path / "in", {"demo_0": demo()}, compression="gzip", chunks=True)
    assert convert(source, tmp_path / "out", "format=robomimic", f"key={KEY}") == 0
    found = episode(tmp_path / "out")
    assert (found.pixels == FRAMES_M.transpose(0, 3, 1, 2)).all() and (found.action == ACTIONS_M).all()
    assert explained(found) and found.reward.tolist() == REWARDS.tolist()
    assert found.truncated[-1], "dones says that the recording ended, not that the task did"
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    assert main(["data", "preview", str(tmp_path / "out"), f"out={tmp_path / 'p.png'}"]) == 0


def test_without_next_obs_the_action_that_led_nowhere_is_cut_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libero = {name: demo(next_obs=False, **{f"obs/{KEY}": None, "obs/agentview_rgb": FRAMES}) for name in ("demo_0",)}
    source = archive(tmp_path / "in", libero)
    assert convert(source, tmp_path / "out", "format=robomimic", "key=agentview_rgb") == 0
    found = episode(tmp_path / "out")
    assert (found.pixels == FRAMES.transpose(0, 3, 1, 2)).all() and explained(found)
    assert (found.action == ACTIONS_M[:-1]).all() and found.reward.tolist() == REWARDS[:-1].tolist()
    told = capsys.readouterr().out
    assert "the last of actions and rewards led to a frame that is not stored" in told
    assert "not read: dones, obs/robot0_eef_pos, states" in told


def test_demonstrations_come_in_natural_order_over_all_files(tmp_path: Path) -> None:
    for name in ("b10.hdf5", "b9.hdf5"):
        marked = {f"demo_{i}": demo(actions=np.full_like(TAKEN, i + 0.5 * (name == "b10.hdf5"))) for i in (10, 9, 0)}
        archive(tmp_path / "in", marked, name)
    assert convert(tmp_path / "in", tmp_path / "out", "format=robomimic", f"key={KEY}", "image=8") == 0
    data = DataSet(tmp_path / "out", cache=EpisodeCache(0))
    assert [data.episode(i).action[0, 0] for i in range(6)] == [0, 9, 10, 0.5, 9.5, 10.5]
    assert data.card.image == (8, 8)


def test_a_recording_without_rewards_is_one(tmp_path: Path) -> None:
    source = archive(tmp_path / "in", {"demo_0": demo(rewards=None)})
    assert convert(source, tmp_path / "out", "format=robomimic", f"key={KEY}") == 0
    assert not read_card(tmp_path / "out").rewards


def test_the_key_is_asked_for_and_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = archive(tmp_path / "viola", {"demo_0": demo(**{"obs/robot0_eye_in_hand_image": FRAMES})})
    assert convert(source, tmp_path / "out", "format=robomimic") == 2
    assert "image.hdf5 has agentview_image, robot0_eye_in_hand_image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert(source, tmp_path / "out", "format=robomimic", "key=agentview_rgb") == 3
    assert "obs has no agentview_rgb; it has agentview_image, robot0_eef_pos" in capsys.readouterr().out
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name != "run.lock"]


def refused(err: str, to: Path) -> None:
    """That one line says so (beside how far it came), and that nothing stays but the lock."""
    said = [line for line in err.splitlines() if " s left" not in line]
    assert len(said) == 1 and said[0].startswith("error: 1 of 1 items cannot be converted")
    assert not [path.name for path in to.iterdir() if path.name != "run.lock"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "actions are shorter": (
        {"actions": TAKEN[:-1]},
        "actions must have as many rows as obs/agentview_image has frames",
    ),
    "rewards are longer": ({"rewards": np.zeros(40)}, "rewards must have as many rows"),
    "no actions": ({"actions": None}, "it has no actions; it has dones"),
    "no obs": ({f"obs/{KEY}": None, "obs/robot0_eef_pos": None, "next_obs": None}, "it has no obs; it has actions"),
    "an action is no number": ({"actions": TAKEN * [np.nan, 1]}, "actions must be finite"),
    "a reward is beyond": ({"rewards": np.full(len(TAKEN), 1e300)}, "rewards must be finite"),
    "actions are text": ({"actions": np.array([b"left"] * len(TAKEN))}, "actions must be an array of numbers (got |S4"),
    "actions are complex": ({"actions": TAKEN.astype(complex)}, "actions must be an array of numbers (got complex"),
    "actions are one number": ({"actions": 3.0}, "actions must be an array of numbers"),
    "actions are a list": ({"actions": TAKEN[:, 0]}, "actions must be [L, A]"),
    "actions are a group": ({"actions": None, "actions/left": TAKEN}, "actions must be an array of numbers (got Group"),
    "obs is an array": (
        {f"obs/{KEY}": None, "obs/robot0_eef_pos": None, "obs": FRAMES},
        "where a group with agentview_image is",
    ),
    "frames are depth": ({f"obs/{KEY}": FRAMES[..., :1], f"next_obs/{KEY}": None}, "must be frames [L, h, w, 3]"),
    "frames skip": ({f"obs/{KEY}": FRAMES[::-1]}, "its frames are not consecutive"),
    "the frame after is another size": ({f"next_obs/{KEY}": FRAMES[:, :8]}, "its frames are not consecutive"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_demonstration_that_is_wrong_is_named_and_nothing_stays(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members, words = WRONG[name]
    source = archive(tmp_path / "in", {"demo_0": demo(**members)})
    assert convert(source, tmp_path / "out", "format=robomimic", f"key={KEY}") == 3
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if "image.hdf5/demo_0" in line)
    assert words in row and len(row) < 250
    refused(captured.err, tmp_path / "out")


def _outside(folder: Path) -> None:
    with h5py.File(folder / "secret.bin", "w") as file:
        file["frames"] = FRAMES
    FRAMES.tofile(folder / "raw.bin")


def _linked(file: Any, folder: Path) -> None:
    del file[f"data/demo_0/obs/{KEY}"]
    file[f"data/demo_0/obs/{KEY}"] = h5py.ExternalLink(str(folder / "secret.bin"), "/frames")


def _linked_softly(file: Any, folder: Path) -> None:
    file["there"] = h5py.ExternalLink(str(folder / "secret.bin"), "/")
    del file[f"data/demo_0/obs/{KEY}"]
    file[f"data/demo_0/obs/{KEY}"] = h5py.SoftLink("/there/frames")


def _virtual(file: Any, folder: Path) -> None:
    del file[f"data/demo_0/obs/{KEY}"]
    layout = h5py.VirtualLayout(FRAMES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "secret.bin"), "frames", FRAMES.shape)
    file.create_virtual_dataset(f"data/demo_0/obs/{KEY}", layout)


def _external(file: Any, folder: Path) -> None:
    del file[f"data/demo_0/obs/{KEY}"]
    name = str(folder / "raw.bin")
    file.create_dataset(f"data/demo_0/obs/{KEY}", FRAMES.shape, np.uint8, external=[(name, 0, FRAMES.nbytes)])


def _huge(file: Any, folder: Path) -> None:
    del file[f"data/demo_0/obs/{KEY}"]
    file.create_dataset(f"data/demo_0/obs/{KEY}", (2**40, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))


def _large(file: Any, folder: Path) -> None:
    del file[f"data/demo_0/obs/{KEY}"]
    file.create_dataset(f"data/demo_0/obs/{KEY}", (99_000, 99, 99, 3), np.uint8, chunks=(1, 99, 99, 3))


def _huge_actions(file: Any, folder: Path) -> None:
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (11, 2**40), np.float64, chunks=(1, 64))


def _no_demos(file: Any, folder: Path) -> None:
    del file["data/demo_0"]


def _dangling(file: Any, folder: Path) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.SoftLink("/nowhere")


HOSTILE: dict[str, tuple[Any, str]] = {
    "a link to another file": (_linked, "is a link to another file"),
    "a link over a link": (_linked_softly, "there is a link to another file"),
    "a virtual array": (_virtual, "lies in other files"),
    "an external array": (_external, "lies in other files"),
    "2^40 frames": (_huge, "must be 1 to 100000 frames of at most 1024 pixels a side (got [1099511627776, 64, 64, 3])"),
    "too many pixels": (_large, "says [99000, 99, 99, 3] of uint8: more than 2147483648 bytes"),
    "2^40 numbers": (_huge_actions, "more than 268435456 bytes"),
    "no demonstration": (_no_demos, "its group data is empty: it has one group for each demonstration (demo_0, ...)"),
    "a link to nothing": (_dangling, "it cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_one_row_and_nothing_of_another_file_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = HOSTILE[name]
    _outside(tmp_path)
    source = archive(tmp_path / "in", {"demo_0": demo(next_obs=False)})
    with h5py.File(source / "image.hdf5", "a") as file:
        change(file, tmp_path)
    assert convert(source, tmp_path / "out", "format=robomimic", f"key={KEY}") == 3
    captured = capsys.readouterr()
    assert words in captured.out
    refused(captured.err, tmp_path / "out")


def test_a_file_is_looked_through_for_links_once_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = archive(tmp_path / "in", {f"demo_{i}": demo(next_obs=False) for i in range(4)})
    looked, whole = [0], h5py.File.visititems_links

    def visit(self: Any, look: Any) -> Any:
        looked[0] += 1
        return whole(self, look)

    monkeypatch.setattr(h5py.File, "visititems_links", visit)
    items = list(robomimic(source, key=KEY))
    assert [len(item.read().frames) for item in items] == [len(FRAMES)] * 4 and looked == [1]
    with h5py.File(source / "image.hdf5", "a") as file:
        file["there"] = h5py.ExternalLink("elsewhere.hdf5", "/")
    with pytest.raises(Unreadable, match="there is a link to another file"):
        items[0].read()


@pytest.mark.parametrize("cut", [0, 1, 100, 4000, -1])
def test_a_file_that_is_cut_off_is_one_row(cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = archive(tmp_path / "in", {"demo_0": demo()})
    path = source / "image.hdf5"
    path.write_bytes(path.read_bytes()[:cut])
    assert convert(source, tmp_path / "out", "format=robomimic", f"key={KEY}") == 3
    captured = capsys.readouterr()
    assert "image.hdf5  it cannot be read (" in captured.out
    refused(captured.err, tmp_path / "out")


def test_changed_bytes_of_a_file_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    source = archive(tmp_path / "in", {"demo_0": demo(), "demo_1": demo(next_obs=False)}, compression="gzip")
    path = source / "image.hdf5"
    good, random = path.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for _ in range(60):
        bad = bytearray(good)
        for place in random.integers(min(len(good), 20_000), size=3):  # where it says what it holds
            bad[place] = random.integers(256)
        path.write_bytes(bytes(bad))
        for item in robomimic(source, key=KEY):
            try:
                item.read()
            except Unreadable as error:
                refusals += 1
                assert "\n" not in str(error) and len(str(error)) < 400
    assert refusals > 10


def test_robonet_s_files_come_through_the_same_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, change in (("a", None), ("b", "link"), ("c", "huge")):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "traj.hdf5", "w") as file:
            file["env/cam0_video/frames"] = FRAMES_M
            file["policy/actions"] = ACTIONS_M
            file.create_group("metadata").attrs["image_format"] = "RGB"
            if change == "link":
                file["more"] = h5py.ExternalLink("elsewhere.hdf5", "/")
            if change == "huge":
                file.create_dataset("env/state", (2**40, 4), np.float32, chunks=(1, 4))
    assert convert(tmp_path / "a", tmp_path / "out", "format=robonet") == 0
    assert (episode(tmp_path / "out").pixels == FRAMES_M.transpose(0, 3, 1, 2)).all() and explained(
        episode(tmp_path / "out")
    )
    for name, words in (("b", "more is a link to another file"), ("c", "env/state says [1099511627776, 4]")):
        assert convert(tmp_path / name, tmp_path / f"{name}out", "format=robonet") == 3
        assert words in capsys.readouterr().out
