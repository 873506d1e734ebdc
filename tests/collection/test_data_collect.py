from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbrl.cli.compose import packaged_configs
from mbrl.cli.data_collect import protocol_of, tasks_of
from mbrl.cli.main import main
from mbrl.data.dataset import DataSet, EpisodeCache, read_card
from mbrl.replay.episode import Episode


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def episodes(folder: Path) -> list[Episode]:
    data = DataSet(folder, cache=EpisodeCache(0))
    return [data.episode(place) for place in range(len(data))]


def collected(to: Path, *words: str) -> int:
    return main(["data", "collect", "task=reach", f"to={to}", *words])


def test_collected_episodes_are_those_that_were_executed(tmp_path: Path) -> None:
    assert collected(tmp_path / "a", "policy=noisy", "noise=1.5", "episodes=3") == 0
    assert collected(tmp_path / "a", "policy=scripted", "episodes=2") == 0
    card = read_card(tmp_path / "a")
    assert card.tasks == ("reach",) and card.action_dim == 2 and card.rewards and card.image == (32, 32)
    assert [policy["policy"] for policy in card.policies] == ["noisy", "scripted"] and card.policies[0]["noise"] == 1.5
    found = episodes(tmp_path / "a")
    assert [(episode.number, episode.env) for episode in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert all(np.abs(episode.action).max() <= 1 for episode in found)
    noisy = np.concatenate([episode.action for episode in found if episode.env == 0])
    assert (np.abs(noisy) == 1).mean() > 0.1  # clipped, as the world clipped it
    assert all(episode.proprio.shape[1] == 2 and episode.state.shape[1] == 4 for episode in found)


def test_any_interruption_and_any_number_of_workers_give_the_same_files(tmp_path: Path) -> None:
    assert collected(tmp_path / "one", "policy=noisy", "episodes=7") == 0
    assert collected(tmp_path / "two", "policy=noisy", "episodes=4") == 0
    for place, path in enumerate(sorted((tmp_path / "two").glob("*.npz"))):
        if place != 1:
            path.unlink()  # as if it had been interrupted in another order
    (tmp_path / "two" / ".tmp-ep-1").write_bytes(b"half")
    assert collected(tmp_path / "two", "policy=noisy", "episodes=7", "workers=2") == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not list((tmp_path / "two").glob(".tmp-*"))


def test_no_data_set_hides_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["policy=random", "episodes=1"]
    assert main(["data", "collect", "task=[reach,reach-terminal]", f"to={tmp_path / 'two'}", *both]) == 0
    assert collected(tmp_path / "two", *both) == 2
    assert "is a folder of data sets (reach, ...)" in capsys.readouterr().err
    assert collected(tmp_path / "one", *both) == 0
    assert main(["data", "collect", "task=[reach,reach-terminal]", f"to={tmp_path / 'one'}", *both]) == 2
    assert "lies in a data set" in capsys.readouterr().err
    assert collected(tmp_path / "one" / "new", *both) == 2
    assert not (tmp_path / "one" / "new").exists()
    assert len(files(tmp_path / "one")) == len(files(tmp_path / "two" / "reach")) == 1


def test_tasks_policies_and_seeds_have_starts_of_their_own(tmp_path: Path) -> None:
    starts = set()
    for policy in ("random", "scripted"):
        for seed in (0, 1):
            to = tmp_path / f"{policy}{seed}"
            assert collected(to, f"policy={policy}", f"seed={seed}", "episodes=2") == 0
            starts |= {episode.pixels[0].tobytes() for episode in episodes(to)}
    assert len(starts) == 8


def test_several_tasks_get_a_folder_each_and_the_discrete_one_exact_choices(tmp_path: Path) -> None:
    words = ["data", "collect", "task=[reach,reach-discrete]", "policy=random", "episodes=2", f"to={tmp_path}"]
    assert main(words) == 0
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.is_dir()] == ["reach", "reach-discrete"]
    for episode in episodes(tmp_path / "reach-discrete"):
        assert ((episode.action == 0) | (episode.action == 1)).all() and (episode.action.sum(1) == 1).all()


def test_the_agent_of_a_run_acts_in_its_own_world_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    words = ["experiment=debug", "agent=random", "schedule.total=100", "schedule.evaluate.every=0"]
    assert main(["train", *words, f"run_dir={run}"]) == 0
    capsys.readouterr()
    assert collected(tmp_path / "a", f"policy={run}", "episodes=2") == 0
    card = read_card(tmp_path / "a")
    assert card.policies[0]["policy"] == "run" and card.policies[0]["run"] == str(run)
    assert len({episode.action.tobytes() for episode in episodes(tmp_path / "a")}) == 2
    assert main(["data", "collect", "task=reach-terminal", f"policy={run}", f"to={tmp_path / 'b'}"]) == 2
    assert "it cannot act in reach-terminal under protocol toy" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task=reach", "policy=noisy"], "to= is missing: a folder"),
        (["task=raech-v3", "policy=noisy", "to=x"], "task.name must be one of the 50 tasks of Meta-World"),
        (["task=[reach,reach]", "policy=noisy", "to=x"], "task must name tasks, each once"),
        (["task=reach", "policy=nosy", "to=x"], "policy must be scripted, noisy, random or a run folder (got nosy)"),
        (["task=reach", "policy=noisy", "to=x", "noise=-1"], "noise must be a number > 0 and <= 2 (got -1)"),
        (["task=reach", "policy=random", "to=x", "noise=1"], "noise=1 belongs to policy=noisy"),
        (["task=reach", "policy=noisy", "to=x", "episodes=0"], "episodes must be a whole number >= 1 (got 0)"),
        (["task=reach", "policy=noisy", "to=x", "wrokers=2"], "did you mean workers?"),
        (["task=reach", "policy=noisy", "to=x", "protocol=tyo"], "protocol must be one of"),
    ],
)
def test_bad_words_are_refused_in_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "collect", *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_protocol_or_kind_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert collected(tmp_path / "a", "policy=random", "episodes=1") == 0
    assert main(["data", "collect", "task=reach-terminal", "policy=random", f"to={tmp_path / 'a'}"]) == 2
    assert "holds data with tasks=['reach'], not ['reach-terminal']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("reach", "toy"), ("reach-v3", "default"), ("walker-walk", "dmc_vision"), ("CartPole-v1", "gymnasium")],
)
def test_without_a_protocol_a_world_is_seen_under_the_one_that_is_named_like_it(name: str, protocol: str) -> None:
    folders = [packaged_configs()]
    (task,) = tasks_of(name, folders)
    assert protocol_of(None, task, folders).name == protocol
