from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbrl.replay.episode import DamagedEpisode, Episode, OtherFormat, read_episode, write_episode


def test_an_episode_comes_back_equal_under_a_name_that_says_what_it_is(tmp_path: Path, make_episode) -> None:
    episode = make_episode(123, 7, env=2, terminated=True)
    name, digest = write_episode(tmp_path, episode)
    assert name == f"ep-000123-e02-7-{digest[:8]}.npz"
    assert read_episode(tmp_path / name, digest=digest) == episode
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_episode_always_gives_the_same_bytes(tmp_path: Path, make_episode) -> None:
    episode = make_episode(4, 6)
    fortran = replace(episode, pixels=np.asfortranarray(episode.pixels))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert write_episode(tmp_path / "a", episode) == write_episode(tmp_path / "b", fortran)


def test_a_file_is_compressed(tmp_path: Path, make_episode) -> None:
    episode = make_episode(1, 30, side=32)
    name, _ = write_episode(tmp_path, episode)
    assert (tmp_path / name).stat().st_size < episode.nbytes / 10


def test_numpy_reads_the_file_without_pickle(tmp_path: Path, make_episode) -> None:
    name, _ = write_episode(tmp_path, make_episode(1, 3))
    with np.load(tmp_path / name, allow_pickle=False) as file:
        assert {key: file[key].shape for key in file}["pixels"] == (4, 3, 5, 5)


def test_arrays_of_an_episode_cannot_be_written(make_episode) -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_episode(1, 3).pixels[0] = 0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("pixels", np.zeros((5, 3, 5, 5), np.uint8), r"pixels must be \[4, 3, H, W\]"),
        ("pixels", np.zeros((4, 3, 5, 5), np.float32), "pixels must be an array of uint8"),
        ("proprio", np.zeros((3, 2), np.float32), r"proprio must be \[4, <= \d+\]"),
        ("state", np.zeros(4, np.float32), r"state must be \[4, <= \d+\]"),
        ("state", np.full((4, 2), np.inf, np.float32), "state of episode 1 must be finite"),
        ("snapshot", np.zeros((4, 3), np.float32), "snapshot must be an array of float64"),
        ("pixels", np.zeros((4, 5, 5, 3), np.uint8), r"pixels must be \[4, 3, H, W\]"),
        ("action", np.zeros((3,), np.float32), r"action must be \[L, A\]"),
        ("action", np.full((3, 4), np.nan, np.float32), "action of episode 1 must be finite"),
        ("reward", np.array([0, np.inf, 0], np.float32), "reward of episode 1 must be finite"),
        ("reward", np.array([0, np.nan, 0], np.float32), "must be finite .or NaN in all steps, where it is unknown."),
        ("reward", np.zeros(2, np.float32), r"reward must be \[3\]"),
        ("success", [True, False, False], "success must be an array of bool"),
        ("truncated", np.array([False, False, False]), "at its last decision"),
        ("truncated", np.array([True, False, True]), "at its last decision"),
        ("number", -1, "must be >= 0"),
    ],
)
def test_what_is_not_a_finished_episode_is_refused(make_episode, field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(make_episode(1, 3), **{field: value})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_and_every_cut_is_refused(tmp_path: Path, make_episode, data: st.DataObject) -> None:
    name, _ = write_episode(tmp_path, make_episode(9, 4))
    good = (tmp_path / name).read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:position]):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(DamagedEpisode, match=name):
            read_episode(tmp_path / name)


def _repack(path: Path, **members: bytes) -> Path:
    """A file of foreign name with some members replaced: no hash protects it."""
    foreign = path.with_name("foreign.npz")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(foreign, "w") as new:
        for member in old.namelist():
            new.writestr(member, members.get(member.removesuffix(".npy"), old.read(member)))
    return foreign


def _npy(array: np.ndarray, **how: bool) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **how)
    return stream.getvalue()


@pytest.mark.parametrize("actions", [0, 4])
@pytest.mark.parametrize("rewarded", [False, True])
def test_a_video_is_an_episode_and_says_format_three_only_where_format_two_could_not_hold_it(
    tmp_path: Path, make_episode, actions: int, rewarded: bool
) -> None:
    whole = make_episode(5, 6)
    reward = whole.reward if rewarded else np.full(6, np.nan, np.float32)
    video = replace(whole, action=whole.action[:, :actions], reward=reward)
    name, digest = write_episode(tmp_path, video)
    again = read_episode(tmp_path / name, digest=digest)
    assert again == video and again.rewarded is rewarded and again.action.shape == (6, actions)
    with np.load(tmp_path / name, allow_pickle=False) as file:
        assert int(file["format"]) == (2 if rewarded and actions else 3)


def test_a_foreign_name_is_read_by_its_contents(tmp_path: Path, make_episode) -> None:
    name, _ = write_episode(tmp_path, make_episode(9, 4))
    assert read_episode(_repack(tmp_path / name)) == make_episode(9, 4)


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("action", _npy(np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True), "action must be float32"),
        ("reward", _npy(np.zeros(4)), "reward must be float32"),
        ("reward", _npy(np.zeros(4, np.float32))[:-1], "15 bytes follow"),
        ("reward", _npy(np.zeros(4, np.float32)).replace(b"(4,)", b"(9,)"), "says"),
        ("success", _npy(np.array([0, 1, 2, 0], np.uint8)).replace(b"|u1", b"|b1"), "0 and 1 only"),
        ("pixels", b"not an array", "pixels must be uint8"),
        ("format", _npy(np.asarray(2.0)), "format must be int64"),
        ("env", _npy(np.arange(3)), "is not an episode file"),
    ],
)
def test_hostile_members_are_refused_by_name(
    tmp_path: Path, make_episode, member: str, content: bytes, words: str
) -> None:
    name, _ = write_episode(tmp_path, make_episode(9, 4))
    with pytest.raises(DamagedEpisode, match=words):
        read_episode(_repack(tmp_path / name, **{member: content}))


def test_an_episode_of_another_format_is_named_as_that_and_not_as_damaged(tmp_path: Path, make_episode) -> None:
    name, _ = write_episode(tmp_path, make_episode(9, 4))
    first = tmp_path / "first.npz"  # as the first version wrote it
    with zipfile.ZipFile(tmp_path / name) as now, zipfile.ZipFile(first, "w") as old:
        for member in now.namelist():
            if member.removesuffix(".npy") not in ("proprio", "state", "snapshot", "format"):
                old.writestr(member, now.read(member))
        old.writestr("format.npy", _npy(np.asarray(np.int64(1))))
    with pytest.raises(OtherFormat, match=r"first\.npz: is an episode of format 1, this version reads 2 and 3: go on"):
        read_episode(first)
    newer = _repack(tmp_path / name, format=_npy(np.asarray(np.int64(4))))
    with pytest.raises(OtherFormat, match="of format 4"):
        read_episode(newer)


@pytest.mark.parametrize("widths", [(0, 0, 0), (7, 42, 0), (7, 42, 700)])
def test_what_is_known_comes_back_bit_for_bit_however_much_it_is(
    tmp_path: Path, make_episode, widths: tuple[int, int, int]
) -> None:
    random = np.random.default_rng(1)
    proprio, state, snapshot = (random.normal(size=(6, width)) for width in widths)
    known = {"proprio": proprio.astype(np.float32), "state": state.astype(np.float32), "snapshot": snapshot}
    episode = replace(make_episode(3, 5), **known)
    again = read_episode(tmp_path / write_episode(tmp_path, episode)[0])
    assert again == episode
    assert again.snapshot.dtype == np.float64 and again.snapshot.tobytes() == snapshot.tobytes()


def test_a_header_that_claims_more_than_follows_allocates_nothing(tmp_path: Path, make_episode) -> None:
    name, _ = write_episode(tmp_path, make_episode(9, 4))
    honest = _npy(np.zeros((5, 3, 5, 5), np.uint8))
    boastful = honest.replace(b"(5, 3, 5, 5), }        ", b"(99999, 3, 999, 999), }"[:23])
    assert len(boastful) == len(honest) and boastful != honest
    with pytest.raises(DamagedEpisode, match=r"says \[99999, 3, 999, 999\] but 375 bytes follow"):
        read_episode(_repack(tmp_path / name, pixels=boastful))


def test_a_file_under_the_name_of_another_is_refused(tmp_path: Path, make_episode) -> None:
    name, digest = write_episode(tmp_path, make_episode(9, 4))
    other = tmp_path / name.replace("000009", "000008")
    (tmp_path / name).rename(other)
    with pytest.raises(DamagedEpisode, match="holds episode 9"):
        read_episode(other, digest=digest)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedEpisode, match=r"absent\.npz"):
        read_episode(tmp_path / "absent.npz")


def test_episodes_of_two_runs_compare_by_content(make_episode) -> None:
    assert make_episode(1, 3) == make_episode(1, 3)
    assert make_episode(1, 3) != make_episode(1, 4)
    assert isinstance(make_episode(1, 3), Episode)
