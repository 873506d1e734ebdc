"""Data sets of ours written for LeRobot's loaders, and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache, write_card
from mbrl.replay.episode import Episode, write_episode
from tests.data.numbered import CARD, numbered

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")

MEMBERS = ("pixels", "action", "reward", "terminated", "truncated", "success")


def acted(number: int, decisions: int, **other: Any) -> Episode:
    """An episode whose every pixel, number and flag is drawn."""
    random = np.random.default_rng(number)
    last = np.arange(decisions) == decisions - 1
    members: dict[str, Any] = {
        "pixels": random.integers(0, 256, (decisions + 1, 3, 8, 10), np.uint8),
        "action": random.uniform(-1, 1, (decisions, 3)).astype(np.float32),
        "reward": random.normal(size=decisions).astype(np.float32),
        "state": random.normal(size=(decisions + 1, 5)).astype(np.float32),
        "success": random.random(decisions) > 0.5,
        "terminated": last & (number % 2 == 0),
        "truncated": last & (number % 2 == 1),
    }
    return dataclasses.replace(numbered(number, decisions), **(members | other))


def folder_of(folder: Path, episodes: list[Episode], **card: Any) -> Path:
    folder.mkdir()
    for episode in episodes:
        write_episode(folder, episode)
    first = episodes[0]
    write_card(
        folder,
        dataclasses.replace(
            CARD, action_dim=first.action.shape[1], rewards=first.rewarded, image=first.pixels.shape[2:], **card
        ),
    )
    return folder


def exported(source: Path, to: Path, *words: str) -> int:
    return main(["data", "export", f"from={source}", f"to={to}", "format=lerobot", *words])


def back(source: Path, to: Path) -> DataSet:
    assert main(["data", "convert", f"from={source}", f"to={to}", "format=lerobot"]) == 0
    return DataSet(to, cache=EpisodeCache(0))


@pytest.mark.parametrize("file_bytes", [1, 10**9])
def test_what_is_exported_comes_back_byte_for_byte(
    file_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl.data.export.FILE_BYTES", file_bytes)
    monkeypatch.setattr("mbrl.data.export.FILES_OF_A_CHUNK", 2)
    episodes = [acted(number, decisions) for number, decisions in enumerate((7, 1, 12, 4))]
    source = folder_of(tmp_path / "set", episodes, rate=5.0, tasks=("door-close-v3",))
    assert exported(source, tmp_path / "lerobot") == 0
    files = [str(p.relative_to(tmp_path / "lerobot")) for p in sorted((tmp_path / "lerobot").rglob("*.parquet"))]
    data = [f"data/chunk-00{n // 2}/file-00{n % 2}.parquet" for n in range(4 if file_bytes == 1 else 1)]
    assert files == [*data, "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"]
    found = back(tmp_path / "lerobot", tmp_path / "back")
    assert len(found) == 4 and found.card.rate == 5.0
    for place, episode in enumerate(episodes):
        again = found.episode(place)
        for name in MEMBERS:
            assert np.array_equal(getattr(again, name), getattr(episode, name)), name


@pytest.mark.parametrize(
    "member", [{"action": np.zeros((4, 0), np.float32)}, {"action": np.ones((4, 1), np.float32)}, {"reward": None}]
)
def test_videos_and_episodes_without_rewards_are_exported_too(member: dict[str, Any], tmp_path: Path) -> None:
    given = {name: np.full(4, np.nan, np.float32) if value is None else value for name, value in member.items()}
    made = acted(0, 4, **given)
    assert exported(folder_of(tmp_path / "set", [made]), tmp_path / "lerobot", "fps=10") == 0
    found = back(tmp_path / "lerobot", tmp_path / "back")
    assert found.card.rate == 10.0 and found.card.rewards is made.rewarded
    for name in MEMBERS:
        assert np.array_equal(getattr(found.episode(0), name), getattr(made, name), equal_nan=name == "reward")


def test_rows_and_meta_are_what_lerobot_s_loaders_ask_for(tmp_path: Path) -> None:
    episodes = [acted(0, 3), acted(1, 5)]
    assert (
        exported(folder_of(tmp_path / "set", episodes, tasks=("door-close-v3",)), tmp_path / "lerobot", "fps=10") == 0
    )
    info = json.loads((tmp_path / "lerobot" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"], info["fps"]) == ("v3.0", 2, 10, 10)
    assert info["features"]["observation.image"]["shape"] == [8, 10, 3]
    rows = pq.read_table(tmp_path / "lerobot" / "data" / "chunk-000" / "file-000.parquet")
    assert set(rows.column_names) == set(info["features"]), "as datasets casts them"
    assert rows["index"].to_pylist() == list(range(10))
    assert rows["frame_index"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert rows["timestamp"].to_pylist()[:4] == [np.float32(t / 10) for t in range(4)]
    assert rows["next.done"].to_pylist() == [False, False, True, True] + [False] * 4 + [True] * 2
    actions = np.array(rows["action"].to_pylist(), np.float32)
    assert (actions[3] == episodes[0].action[-1]).all() and (actions[:3] == episodes[0].action).all()
    assert (np.array(rows["observation.environment_state"].to_pylist()[4:], np.float32) == episodes[1].state).all()
    listed = pq.read_table(tmp_path / "lerobot" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"], e["length"]) for e in listed] == [(0, 4, 4), (4, 10, 6)]
    assert listed[0]["tasks"] == ["door-close-v3"]
    tasks = pq.read_table(tmp_path / "lerobot" / "meta" / "tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((tmp_path / "lerobot" / "meta" / "stats.json").read_text())
    assert np.allclose(stats["action"]["mean"], actions.mean(0)) and np.allclose(stats["action"]["std"], actions.std(0))
    pixels = np.concatenate([episode.pixels for episode in episodes]) / 255
    for name, of in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        assert np.allclose(stats["observation.image"][name], of(pixels, axis=(0, 2, 3))[:, None, None])
    assert stats["observation.image"]["count"] == [10]


def _holds_something(to: Path) -> None:
    to.mkdir()
    (to / "mine").write_text("")


def _several_sizes(folder: Path) -> None:
    write_card(folder, dataclasses.replace(CARD, image=None))


def _state_of_another_width(folder: Path) -> None:
    write_episode(folder, acted(7, 3, state=np.zeros((4, 2), np.float32)))


def _damaged(folder: Path) -> None:
    path = sorted(folder.glob("*.npz"))[1]
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("change", "where", "words", "code", "said"),
    [
        (_holds_something, "to", (), 2, "holds something; give a new or an empty folder"),
        (_several_sizes, "set", (), 2, "differ in size, and LeRobot has one"),
        (_state_of_another_width, "set", (), 3, "observation.environment_state is not as in ep-000000"),
        (_damaged, "set", (), 3, "its bytes changed since it was written"),
        (lambda folder: None, "set", ("fps=2.5",), 2, "fps must be a whole number >= 1 (got 2.5)"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_stays(
    change: Callable[[Path], None], where: str, words: tuple[str, ...], code: int, said: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder_of(tmp_path / "set", [acted(0, 3), acted(1, 5)])
    change(tmp_path / where)
    before = {str(path) for path in tmp_path.rglob("*")}
    assert exported(tmp_path / "set", tmp_path / "to", *words) == code
    told = [line for line in capsys.readouterr().err.splitlines() if " s left" not in line]
    assert len(told) == 1 and said in told[0]
    assert {str(path) for path in tmp_path.rglob("*")} == before


def test_a_rate_that_is_no_whole_number_asks_for_frames_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path / "set", [acted(0, 3)], rate=2.5)
    assert exported(source, tmp_path / "to") == 2
    assert "fps= is missing: frames a second, a whole number (the set says rate 2.5)" in capsys.readouterr().err
    assert exported(source, tmp_path / "to", "fps=3") == 0


def test_an_export_that_was_killed_leaves_no_dataset_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "set", [acted(0, 3), acted(1, 5)])
    left = tmp_path / ".tmp-to" / "data" / "chunk-007"
    left.mkdir(parents=True)
    (left / "file-000.parquet").write_bytes(b"half of")
    assert exported(source, tmp_path / "to") == 0
    assert not (tmp_path / ".tmp-to").exists() and not (tmp_path / "to" / "data" / "chunk-007").exists()
    monkeypatch.setattr(
        "mbrl.data.export.write_durably", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert exported(source, tmp_path / "other") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "to"]
