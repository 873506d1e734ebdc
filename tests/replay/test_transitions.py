"""Transitions against a reference that takes them apart decision by decision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from agents.returns import n_step_returns
from mbrl.replay.clips import ClipReplay, ReplayConfig
from mbrl.replay.cut import transitions_of
from mbrl.replay.episode import Episode
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec, ObsKey

MakeEpisode = Callable[..., Episode]
Build = Callable[..., ClipReplay]

SPEC = ModelSpec(
    image=5, context_frames=2, action_dim=4, max_frames=9, context="sliding", burn_in=0, obs_keys=("state",)
)
"""Of a model that sees no pixels: what a transition shows does not depend on it."""
KEYS: tuple[ObsKey, ...] = ("pixels", "proprio", "state")
GAMMA = 0.9


class Every:
    """Seeds of a generator that draws each of the whole numbers once, in their order."""

    def numpy(self, *name: object) -> Every:
        return self

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        assert (low, high) == (0, size), "as many rows as there are decisions"
        return np.arange(high)


@pytest.fixture
def build(tmp_path: Path, make_episode: MakeEpisode) -> Build:
    """A replay of episodes of these lengths, without a tokenizer; the numbers in `terminated` end by themselves."""

    def make(
        lengths: list[int], *, terminated: tuple[int, ...] = (), seeds: Any = None, demos: int = 0, **values: Any
    ) -> ClipReplay:
        plain = {"capacity": 10_000, "recent_fraction": 0.7, "recent_episodes": 2, "return_prioritised_fraction": 0.7}
        replay = ReplayConfig(**{**plain, "on_damage": "stop", **values}).build(
            folder=Path(tempfile.mkdtemp(dir=tmp_path)), spec=SPEC, seeds=seeds or Seeds(1), demos=demos
        )
        for number, length in enumerate(lengths):
            replay.append(make_episode(number, length, terminated=number in terminated))
        return replay

    return make


def places(rows: TensorDict) -> list[tuple[int, int]]:
    """Episode and decision of each row, as its own numbers say."""
    return [tuple(row) for row in (rows["action"][:, :2] * 64).int().tolist()]


def slowly(episode: Episode, decision: int, n_step: int, stack: int) -> dict[str, Any]:
    """One transition, by going through the episode decision by decision."""

    def seen(key: str, frame: int) -> np.ndarray:
        frames = [getattr(episode, key)[max(0, frame - back)] for back in reversed(range(stack))]
        return np.concatenate(frames)

    reward, goes_on, frame = [], [], decision
    for _ in range(n_step):
        if frame < len(episode):
            reward.append(float(episode.reward[frame]))
            goes_on.append(0.0 if episode.terminated[frame] else 1.0)
            frame += 1
        else:
            reward.append(0.0)
            goes_on.append(goes_on[-1])
    return {
        **{key: seen(key, decision) for key in KEYS},
        "action": episode.action[decision],
        "next": {
            **{key: seen(key, frame) for key in KEYS},
            "reward": np.array(reward, np.float32),
            "continue": np.array(goes_on, np.float32),
            "steps": np.int64(frame - decision),
        },
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    ended=st.sets(st.integers(0, 3)),
    n_step=st.integers(1, 6),
    stack=st.integers(1, 4),
)
def test_every_decision_of_every_episode_once_and_each_as_the_reference_has_it(
    build: Build, lengths: list[int], ended: set[int], n_step: int, stack: int
) -> None:
    replay = build(lengths, terminated=tuple(ended), seeds=Every())
    rows = replay.transitions(sum(lengths), n_step=n_step, stack=stack, stream="q", draw=0, keys=KEYS)
    expected = [(number, decision) for number, length in enumerate(lengths) for decision in range(length)]
    assert places(rows) == expected, "a bijection: whole numbers that are equally likely are decisions that are"
    for row, (number, decision) in enumerate(expected):
        wanted = slowly(replay.store.stored[number].episode, decision, n_step, stack)
        flat = TensorDict(wanted, batch_size=[]).flatten_keys("/")
        found = rows[row].flatten_keys("/")
        assert set(found.keys()) == set(flat.keys())
        for key, value in flat.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
            assert torch.equal(found[key], value), (key, number, decision)


def test_decisions_are_drawn_alike_whatever_the_clips_favour(build: Build) -> None:
    lengths = [3, 9, 1, 6]
    rows = build(lengths).transitions(19 * 300, n_step=3, stack=3, stream="q", draw=0)
    found, counts = np.unique(places(rows), axis=0, return_counts=True)
    assert len(found) == sum(lengths), "also the first ones, and those near the end"
    assert ((counts - 300) ** 2 / 300).sum() < 18 + 4 * np.sqrt(2 * 18)


def test_a_stack_at_an_episode_s_beginning_repeats_its_first_frame(make_episode: MakeEpisode) -> None:
    rows = transitions_of([make_episode(2, 5)] * 3, np.array([0, 1, 4]), n_step=1, stack=3, keys=("pixels",))
    assert rows["pixels"].shape == (3, 9, 5, 5) and rows["pixels"].dtype == torch.uint8
    assert rows["pixels"][:, 1::3, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4]]
    assert rows["next", "pixels"][:, 1::3, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [3, 4, 5]]
    assert (rows["pixels"][:, ::3] == 2).all() and (rows["pixels"][:, 2::3] == 7).all()


@pytest.mark.parametrize("terminated", [False, True])
def test_the_return_bootstraps_from_the_last_real_frame_where_the_episode_did_not_end_by_itself(
    make_episode: MakeEpisode, terminated: bool
) -> None:
    episode, decisions = make_episode(0, 6, terminated=terminated), np.arange(6)
    rows = transitions_of([episode] * 6, decisions, n_step=4, stack=1, keys=("pixels",))
    assert rows["next", "steps"].tolist() == [4, 4, 4, 3, 2, 1]
    value = 10.0 + rows["next", "pixels"][:, 1, 0, 0]  # of a frame: ten and its index
    reward, weight = n_step_returns(rows["next"], GAMMA)
    found = reward + weight * value
    for decision in range(6):
        end = min(decision + 4, 6)
        wanted = sum(GAMMA**k * float(episode.reward[decision + k]) for k in range(end - decision))
        if not (terminated and end == 6):
            wanted += GAMMA ** (end - decision) * (10.0 + end)
        assert float(found[decision]) == pytest.approx(wanted, rel=1e-6), decision


def test_draws_are_numbered_and_a_restored_replay_goes_on_alike(build: Build) -> None:
    def drawn(replay: ClipReplay, stream: str = "q", draw: int = 3) -> TensorDict:
        return replay.transitions(20, n_step=2, stack=2, stream=stream, draw=draw, keys=KEYS)

    first = build([3, 9, 1, 6])
    wanted = drawn(first)
    again = ReplayConfig.build(first.config, folder=first.store.folder, spec=SPEC, seeds=Seeds(1))
    again.load_state_dict(first.state_dict())
    for found in (drawn(first), drawn(again), drawn(build([3, 9, 1, 6]))):
        assert all((found[key] == wanted[key]).all() for key in (*KEYS, "action", "next"))
    assert places(drawn(first, draw=4)) != places(wanted) != places(drawn(first, stream="other"))


def test_what_was_evicted_is_drawn_no_more_and_subsets_are_kept_apart(build: Build) -> None:
    fractions = {"recent_fraction": 0.0, "return_prioritised_fraction": 0.0}
    replay = build([4, 3, 5, 6, 7, 8], demos=2, capacity=15, recent_episodes=1, **fractions)
    for subset, numbers in {"all": {0, 1, 4, 5}, "demos": {0, 1}, "recent": {5}}.items():
        rows = replay.transitions(400, n_step=2, stack=2, stream="q", draw=0, subset=subset)  # type: ignore[arg-type]
        assert {number for number, _ in places(rows)} == numbers, subset
        clips = replay.clips(400, 2, stream="q", draw=0, subset=subset)  # type: ignore[arg-type]
        assert set(clips["state"][:, 0, 0].int().tolist()) == numbers, subset


def test_what_cannot_be_drawn_is_said_in_one_line(build: Build, tmp_path: Path) -> None:
    replay = build([4])
    how: dict[str, Any] = {"n_step": 1, "stack": 1, "stream": "q", "draw": 0}
    with pytest.raises(ValueError, match="there is no demonstration to draw from"):
        replay.transitions(1, **how, subset="demos")
    with pytest.raises(ValueError, match="there is no stored episode to draw from"):
        build([]).transitions(1, **how)
    with pytest.raises(ValueError, match=r"subset must be one of all, demos, recent \(got new\)"):
        replay.transitions(1, **how, subset="new")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n, n_step and stack must be >= 1 \(got n=1, n_step=1, stack=0\)"):
        replay.transitions(1, **{**how, "stack": 0})
    with pytest.raises(ValueError, match="codes=True needs a world model with a tokenizer"):
        blind = replay.config.build(folder=tmp_path / "blind", spec=replace(SPEC, obs_keys=("pixels",)), seeds=Seeds(1))
        blind.append(replay.store.stored[0].episode)
        blind.clips(1, 1, stream="q", draw=0, codes=True)
