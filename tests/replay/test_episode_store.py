from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mbrl.replay import store as store_module
from mbrl.replay.episode import DamagedEpisode
from mbrl.replay.store import EpisodeStore, Footprint, expected_bytes


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("ep-*.npz")}


def _numbers(store: EpisodeStore) -> list[int]:
    return [stored.episode.number for stored in store.stored]


def test_episodes_are_on_disk_when_append_returns(tmp_path: Path, make_episode) -> None:
    store = EpisodeStore(tmp_path / "replay", capacity=100)
    names = [store.append(make_episode(number, 4 + number, env=number)) for number in (0, 1, 5)]
    assert len(store) == 4 + 5 + 9
    assert _files(tmp_path / "replay") == set(names)
    assert _numbers(store) == [0, 1, 5]


def test_the_oldest_whole_episodes_leave_memory_but_not_the_disk(tmp_path: Path, make_episode) -> None:
    store = EpisodeStore(tmp_path, capacity=10)
    for number in range(4):
        store.append(make_episode(number, 4))
    assert (_numbers(store), len(store), len(_files(tmp_path))) == ([2, 3], 8, 4)
    store.append(make_episode(4, 11))
    assert _numbers(store) == [4], "the newest episode stays, however long"


def test_a_number_that_does_not_grow_is_refused(tmp_path: Path, make_episode) -> None:
    store = EpisodeStore(tmp_path, capacity=10)
    store.append(make_episode(3, 4))
    with pytest.raises(ValueError, match="got 3 after 3"):
        store.append(make_episode(3, 5, env=1))


def test_another_process_adopts_what_is_held_however_it_came_to_be(tmp_path: Path, make_episode) -> None:
    first, other = (EpisodeStore(tmp_path, capacity=100) for _ in range(2))
    first.append(make_episode(0, 10))
    other.adopt(first.listing())
    for number, decisions in ((1, 95), (2, 50)):  # both between two looks: the first pushes 0 out, the second 1
        first.append(make_episode(number, decisions))
    other.adopt(first.listing())
    assert (other.listing(), _numbers(other), len(other)) == (first.listing(), [2], 50)


def test_restore_gives_back_exactly_the_listed_episodes_in_order(tmp_path: Path, make_episode) -> None:
    first = EpisodeStore(tmp_path, capacity=100)
    for number in range(3):
        first.append(make_episode(number, 4 + number))
    state = json.loads(json.dumps(first.state_dict()))
    first.append(make_episode(3, 4))
    (tmp_path / ".tmp-half-written").write_bytes(b"x")

    second = EpisodeStore(tmp_path, capacity=100)
    second.load_state_dict(state)
    assert [stored.episode for stored in second.stored] == [make_episode(number, 4 + number) for number in range(3)]
    assert second.state_dict() == state
    assert len(_files(tmp_path)) == 3
    assert len(_files(tmp_path / "orphans")) == 1
    assert not (tmp_path / ".tmp-half-written").exists()

    again = second.append(make_episode(3, 4))
    assert again in _files(tmp_path / "orphans"), "a resumed run makes the same file again"
    third = EpisodeStore(tmp_path, capacity=100)
    third.load_state_dict(state)
    assert len(_files(tmp_path / "orphans")) == 1, "orphans do not pile up"


def test_orphans_come_back_when_only_an_older_listing_is_left(tmp_path: Path, make_episode) -> None:
    run = EpisodeStore(tmp_path, capacity=12)
    for number in range(2):
        run.append(make_episode(number, 6))
    older = json.loads(json.dumps(run.state_dict()))
    for number in range(2, 4):
        run.append(make_episode(number, 6))
    newer = json.loads(json.dumps(run.state_dict()))
    run.prune([older, newer])
    resumed = EpisodeStore(tmp_path, capacity=12)
    resumed.load_state_dict(newer)
    assert len(_files(tmp_path / "orphans")) == 2, "what only the older checkpoint needs"
    looking = EpisodeStore(tmp_path, capacity=12)
    looking.adopt(older["episodes"])
    assert _numbers(looking) == [0, 1] and len(_files(tmp_path / "orphans")) == 2, "who only looks moves nothing"
    again = EpisodeStore(tmp_path, capacity=12)
    again.load_state_dict(older)
    assert [stored.episode for stored in again.stored] == [make_episode(number, 6) for number in range(2)]
    back = EpisodeStore(tmp_path, capacity=12)
    back.load_state_dict(newer)
    assert _numbers(back) == [2, 3]


def test_a_run_that_starts_afresh_takes_nothing_from_its_folder(tmp_path: Path, make_episode) -> None:
    EpisodeStore(tmp_path, capacity=100).append(make_episode(0, 4))
    fresh = EpisodeStore(tmp_path, capacity=100)
    fresh.append(make_episode(0, 6))
    assert (_numbers(fresh), len(fresh)) == ([0], 6)
    assert len(_files(tmp_path)) == len(_files(tmp_path / "orphans")) == 1


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "swapped"])
def test_damage_stops_a_restore_and_is_set_aside(tmp_path: Path, make_episode, harm: str) -> None:
    store = EpisodeStore(tmp_path, capacity=100)
    names = [store.append(make_episode(number, 5)) for number in range(3)]
    victim = tmp_path / names[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "missing":
        victim.unlink()
    elif harm == "swapped":
        shutil.copy(tmp_path / names[2], victim)
    else:
        victim.write_bytes(content if harm == "flipped" else content[:-1])

    with pytest.raises(DamagedEpisode, match=f"1 of 3 replay episodes .*{names[1]}.*on_damage=skip"):
        EpisodeStore(tmp_path, capacity=100).load_state_dict(store.state_dict())
    assert _files(tmp_path) == {names[0], names[2]}
    assert _files(tmp_path / "quarantine") == (set() if harm == "missing" else {names[1]})


def test_damage_can_be_skipped_out_loud(tmp_path: Path, make_episode, caplog: pytest.LogCaptureFixture) -> None:
    store = EpisodeStore(tmp_path, capacity=100)
    names = [store.append(make_episode(number, 5)) for number in range(3)]
    (tmp_path / names[0]).write_bytes(b"")
    second = EpisodeStore(tmp_path, capacity=100, on_damage="skip")
    second.load_state_dict(store.state_dict())
    assert _numbers(second) == [1, 2]
    assert names[0] in caplog.text


def test_a_listing_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DamagedEpisode, match="no episode file"):
        EpisodeStore(tmp_path, capacity=9).load_state_dict({"episodes": [["../../etc/passwd", "0" * 64]], "lent": []})


def test_files_are_deleted_only_when_no_kept_checkpoint_needs_them(tmp_path: Path, make_episode) -> None:
    store = EpisodeStore(tmp_path, capacity=8)
    names = [store.append(make_episode(0, 4))]
    names.append(store.append(make_episode(1, 4)))
    kept = store.state_dict()
    names += [store.append(make_episode(number, 4)) for number in (2, 3, 4)]
    assert store.prune([kept]) == 1
    assert _files(tmp_path) == set(names) - {names[2]}
    assert store.prune([]) == 2
    assert _files(tmp_path) == set(names[3:])


def test_a_store_that_never_looked_at_its_folder_deletes_nothing(tmp_path: Path, make_episode) -> None:
    EpisodeStore(tmp_path, capacity=8).append(make_episode(0, 4))
    assert EpisodeStore(tmp_path, capacity=8).prune([]) == 0


def test_a_full_disk_takes_nothing_into_memory(tmp_path: Path, make_episode, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpisodeStore(tmp_path, capacity=100)
    store.append(make_episode(0, 4))

    def full(handle: int, content: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space"):
        store.append(make_episode(1, 4))
    monkeypatch.undo()
    assert (_numbers(store), len(list(tmp_path.iterdir()))) == ([0], 1)


KNOWN = {"proprio": 2, "state": 5, "snapshot": 3}  # what `make_episode` makes


def test_the_expected_bytes_bound_what_is_really_taken(tmp_path: Path, make_episode) -> None:
    store = EpisodeStore(tmp_path, capacity=10_000)
    for number in range(6):
        store.append(make_episode(number, 20))
    expected = expected_bytes(120, image=5, action_dim=4, widths=KNOWN, episode_decisions=20)
    assert expected.ram == sum(stored.episode.nbytes for stored in store.stored)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= expected.disk


def test_what_cannot_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "available_ram", lambda: 3_000_000_000)
    Footprint(ram=2_000_000_000, disk=1).require_room(tmp_path / "not" / "yet")
    with pytest.raises(ValueError, match=r"needs 4.00 GB of memory, 3.00 GB are free"):
        Footprint(ram=4_000_000_000, disk=1).require_room(tmp_path)
    with pytest.raises(ValueError, match="of disk at"):
        Footprint(ram=1, disk=2**60).require_room(tmp_path)


def test_this_machine_has_some_memory_free() -> None:
    assert 1 < store_module.available_ram() < 2**50


def test_a_store_behaves_like_a_plain_list(tmp_path_factory: pytest.TempPathFactory, make_episode) -> None:
    capacity = 20

    class Machine(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.folder = tmp_path_factory.mktemp("replay")
            self.store = EpisodeStore(self.folder, capacity=capacity)
            self.model: list[int] = []
            self.number = 0
            self.saved = [(self.store.state_dict(), list(self.model), self.number)]

        @rule(decisions=st.integers(1, 9))
        def append(self, decisions: int) -> None:
            self.store.append(make_episode(self.number, decisions))
            self.model.append(self.number * 100 + decisions)
            self.number += 1
            while sum(episode % 100 for episode in self.model) > capacity:
                self.model.pop(0)

        @rule()
        def save(self) -> None:
            self.saved = [*self.saved, (self.store.state_dict(), list(self.model), self.number)][-2:]
            self.store.prune(state for state, _, _ in self.saved)
            assert sum(1 for _ in self.folder.glob("ep-*")) <= len(
                {
                    name
                    for state in (self.store.state_dict(), *(s for s, _, _ in self.saved))
                    for name, _ in state["episodes"]
                }
            )

        @rule(which=st.integers(0, 1))
        def killed_and_resumed(self, which: int) -> None:
            state, self.model, self.number = self.saved[-1 - which % len(self.saved)]
            self.model = list(self.model)
            self.store = EpisodeStore(self.folder, capacity=capacity)
            self.store.load_state_dict(state)
            self.saved = [saved for saved in self.saved if saved[2] <= self.number]

        @invariant()
        def equal(self) -> None:
            found = [stored.episode.number * 100 + len(stored.episode) for stored in self.store.stored]
            assert found == self.model
            assert len(self.store) == sum(episode % 100 for episode in self.model)

    Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)
    Machine.TestCase().runTest()
