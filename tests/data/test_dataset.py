from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mbrl.data.dataset import DamagedSet, DataSet, EpisodeCache, check_beside, read_card, sets_in, write_card
from mbrl.replay.episode import DamagedEpisode, OtherFormat, write_episode
from tests.data.numbered import CARD, numbered


def opened(folder: Path, limit: int = 2**20) -> DataSet:
    return DataSet(folder, cache=EpisodeCache(limit))


def test_a_card_comes_back_equal(tmp_path: Path) -> None:
    full = replace(
        CARD, tasks=("a-v3",), protocol={"name": "toy"}, image=None, rate=12.5, policies=({"policy": "noisy"},)
    )
    write_card(tmp_path / "set", full)
    assert read_card(tmp_path / "set") == full
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "name must be text"),
        ("tasks", "door", "tasks must be a list of names"),
        ("action_dim", -1, "action_dim must be a whole number >= 0"),
        ("action_dim", True, "action_dim must be"),
        ("rewards", 1, "rewards must be true or false"),
        ("image", [64], r"image must be \[height, width\], or null"),
        ("rate", float("nan"), "rate must be a number > 0"),
        ("policies", ["noisy"], "policies must be a list of groups"),
        ("more", 1, "has more, which is unknown"),
        ("rate", None, "rate must be"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, field: str, value: object, words: str) -> None:
    write_card(tmp_path, CARD)
    plain = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(plain | {field: value}))
    with pytest.raises(DamagedSet, match=words):
        read_card(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": 1}', "[" * 100_000, "\x00"])
def test_what_is_no_card_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises((DamagedSet, OtherFormat)):
        read_card(tmp_path)


def test_a_card_of_another_version_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format": 9}')
    with pytest.raises(OtherFormat, match="is of format 9, this version reads 1"):
        read_card(tmp_path)


def test_episodes_are_found_by_name_and_read_when_they_are_asked_for(make_set) -> None:
    data = opened(make_set("a", [5, 3, 9]))
    assert data.frames == [6, 4, 10] and len(data) == 3
    damaged = data.folder / data.names[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert data.episode(2) == numbered(2, 9)
    with pytest.raises(DamagedEpisode, match="its bytes changed"):
        data.episode(1)


def test_the_cache_never_holds_more_than_its_limit_and_keeps_what_was_used_last(make_set) -> None:
    folder = make_set("a", [5, 5, 5, 5])
    one = numbered(0, 5).nbytes
    cache = EpisodeCache(2 * one + one // 2)
    data = DataSet(folder, cache=cache)
    first = data.episode(0)
    data.episode(1)
    assert data.episode(0) is first
    data.episode(2)  # 1 goes, it was used longest ago
    assert cache.held == 2 * one
    assert data.episode(0) is first
    none = DataSet(folder, cache=EpisodeCache(0))
    assert none.episode(3) is not none.episode(3)


def test_an_episode_that_is_not_what_the_card_says_is_refused(make_set) -> None:
    for name, how, words in (
        ("a", {"action_dim": 2}, "it has 3 actions, dataset.json says 2"),
        ("b", {"rewards": False}, "rewards are known"),
        ("c", {"image": (9, 8)}, "frames are 8x8, dataset.json says 9x8"),
    ):
        with pytest.raises(DamagedSet, match=words):
            opened(make_set(name, [3], card=how)).episode(0)


def test_the_replay_of_a_training_run_is_a_data_set_too(tmp_path: Path) -> None:
    replay = tmp_path / "seed-3" / "replay"
    replay.mkdir(parents=True)
    write_episode(replay, numbered(7, 5))
    (replay.parent / "run.json").write_text('{"task": "door-close-v3"}')
    for folder in (replay, replay.parent):
        data = opened(folder)
        assert data.card.tasks == ("door-close-v3",) and data.card.action_dim == 3 and data.card.image == (8, 8)
        assert data.episode(0) == numbered(7, 5)


def test_a_folder_of_data_sets_names_those_inside_it(make_set, tmp_path: Path) -> None:
    two = [make_set(name, [3]) for name in ("b", "a")]
    assert sets_in(tmp_path) == sorted(two)
    assert sets_in(two[0]) == [two[0]]
    write_card(tmp_path, CARD)
    with pytest.raises(ValueError, match="is a data set and has others in it"):
        sets_in(tmp_path)
    run = tmp_path / "run"
    (run / "replay").mkdir(parents=True)
    write_episode(run / "replay", numbered(7, 5))
    for to in (run / "demo", run / "replay" / "new"):
        with pytest.raises(ValueError, match="lies in a data set"):
            check_beside(to)
    with pytest.raises(ValueError, match="is the folder of a run"):
        check_beside(run)
    write_card(run / "demo", CARD)
    with pytest.raises(ValueError, match="is a data set and has others in it"):
        sets_in(run)


def test_a_data_set_may_be_called_replay(make_set, tmp_path: Path) -> None:
    two = [make_set(name, [3]) for name in ("replay", "other")]
    assert sets_in(tmp_path) == sorted(two)
    check_beside(tmp_path / "new")
    check_beside(two[0])


def test_a_folder_without_any_data_says_so(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "is no data set"), (tmp_path / "gone", "is not a folder")):
        with pytest.raises(ValueError, match=words):
            sets_in(folder)
