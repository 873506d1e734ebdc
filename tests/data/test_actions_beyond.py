"""Actions outside [-1, 1]: said by conversion and check, and refused by a run before it begins; never clipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache
from mbrl.data.reach import Reach
from tests.data.test_foreign import convert

BEYOND: dict[str, tuple[float, int, str]] = {
    "all, three times as large": (3.0, 3, "3 of 3 episodes have actions outside [-1, 1] (from -3 to 3)"),
    "one number by the last bit": (
        float(np.nextafter(np.float32(1), np.float32(2))),
        1,
        "1 of 3 episodes have actions outside [-1, 1] (from -1 to 1.0000001)",
    ),
    "degrees": (-90.0, 2, "2 of 3 episodes have actions outside [-1, 1] (from -90 to 90)"),
}


def archive(folder: Path, largest: float, episodes: int) -> Path:
    """Three episodes of 32x32, with rewards; the last action of the first `episodes` of them goes so far."""
    folder.mkdir()
    for number in range(3):
        action = np.random.default_rng(number).choice([-1.0, 1.0], (8, 2)).astype(np.float32)
        if number < episodes:
            action[-1] = (largest, -largest if abs(largest) > 2 else 1)
        np.savez(
            folder / f"{number}.npz",
            image=np.full((9, 32, 32, 3), 50 + number, np.uint8),
            action=action,
            reward=np.arange(8.0),
        )
    return folder


@pytest.mark.parametrize("name", BEYOND)
def test_conversion_and_check_say_how_many_and_how_far_and_clip_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    largest, episodes, said = BEYOND[name]
    source = archive(tmp_path / "in", largest, episodes)
    words = ("format=published_npz", "reward=reward")
    assert convert(source, tmp_path / "out", *words) == 0
    told = capsys.readouterr().out
    assert said in told and "a run takes none of them" in told and "scale" in told
    assert main(["data", "check", str(tmp_path / "out")]) == 0, "nothing is damaged"
    told = capsys.readouterr().out
    assert said in told and "scale" in told and "all well" not in told
    found = DataSet(tmp_path / "out", cache=EpisodeCache(0)).episode(0)
    assert found.action[-1, 0] == np.float32(largest)


@pytest.mark.parametrize("name", BEYOND)
def test_a_run_refuses_them_before_anything_begins(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    largest, episodes, said = BEYOND[name]
    assert convert(archive(tmp_path / "in", largest, episodes), tmp_path / "set", "format=published_npz",
                   "reward=reward") == 0  # fmt: skip
    capsys.readouterr()
    words, run = ["train", "experiment=debug", "schedule.total=100", f"run_dir={tmp_path / 'run'}"], tmp_path / "run"
    assert main([*words, f"demos={tmp_path / 'set'}"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: demos_from={tmp_path / 'set'} does not fit this run: {said}") and "scale" in line
    assert not run.exists() and not captured.out
    assert main([*words, f"rehearsal=[{tmp_path / 'set'}]"]) == 2
    captured = capsys.readouterr()
    assert "its actions go from " in captured.err and "scale" in captured.err and "run folder" not in captured.out


def test_demonstrations_that_are_not_asked_for_are_no_reason_to_refuse(tmp_path: Path) -> None:
    source = archive(tmp_path / "in", 3.0, 1)
    (source / "0.npz").rename(source / "9.npz")
    assert convert(source, tmp_path / "set", "format=published_npz", "reward=reward") == 0
    words = ["train", "experiment=debug", "schedule.total=100", f"demos_from={tmp_path / 'set'}"]
    assert main([*words, "demos=3", f"run_dir={tmp_path / 'a'}"]) == 2
    assert main([*words, "demos=2", f"run_dir={tmp_path / 'b'}"]) == 0


def test_a_set_within_is_all_well(make_set, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(make_set("a", [5, 3]))]) == 0
    assert "all well" in capsys.readouterr().out
    reach = Reach()
    for action in (np.zeros((3, 0)), np.ones((2, 4)), -np.ones((2, 4))):
        reach.add(action)
    assert (reach.episodes, reach.beyond) == (3, 0)
