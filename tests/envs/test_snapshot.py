"""Moments of Meta-World: what is read in one world goes on in another one, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from mbrl.envs import pixels
from tests.envs.test_metaworld import NoPictures, state
from tests.envs.worlds import config

TASKS = ("door-lock-v3", "bin-picking-v3", "sweep-v3", "hammer-v3", "plate-slide-v3")
NOISE = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)


def two_worlds(name: str):
    protocol = config("protocol", "default")
    return config("task", "metaworld", name=name).build(protocol=protocol, rows=2)


def goes_on(world, actions) -> list:
    """All that can be seen of a world while it goes on: rewards, success, what it tells, where everything is."""
    seen = []
    for action in actions:
        step = world.step(action)
        seen.append((step, world.state().tobytes(), state(world).tobytes(), world.expert().tobytes()))
    return seen


@pytest.mark.metaworld
@pytest.mark.parametrize("name", TASKS)
def test_a_moment_goes_on_in_another_world_as_in_its_own(name, monkeypatch):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    one, other = two_worlds(name)
    other.reset(6)
    for steps in (0, 1, 12):  # 0: right after a reset
        one.reset(5)
        for action in NOISE[:steps]:
            one.step(action)
        moment, told = one.snapshot(), one.state()
        seen = goes_on(one, NOISE)
        goes_on(other, NOISE[::-1])
        assert other.snapshot().tobytes() != moment.tobytes()
        for world in (other, one):  # another world with a past of its own, and the same one rewound
            world.restore(moment)
            assert world.snapshot().tobytes() == moment.tobytes() and world.state().tobytes() == told.tobytes()
            assert goes_on(world, NOISE) == seen, f"after {steps} steps"


@pytest.mark.metaworld
def test_a_moment_late_in_an_experts_episode_goes_on_too_and_a_new_episode_is_none_the_wiser(monkeypatch):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    one, other = two_worlds("hammer-v3")
    one.reset(1), other.reset(2)
    for _ in range(60):
        one.step(one.expert())
    moment = one.snapshot()
    other.restore(moment)
    assert [one.step(one.expert()) for _ in range(20)] == [other.step(other.expert()) for _ in range(20)]
    one.reset(3), other.reset(3)
    assert one.snapshot().tobytes() == other.snapshot().tobytes()


@pytest.mark.metaworld
def test_a_moment_at_the_end_of_the_longest_episode_goes_on(monkeypatch):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    one, other = two_worlds("reach-v3")
    one.reset(0), other.reset(1)
    one._world.curr_path_length = 499
    other.restore(one.snapshot())
    assert goes_on(other, NOISE[:4]) == goes_on(one, NOISE[:4])


@pytest.mark.metaworld
def test_a_world_that_was_never_reset_has_no_moment(monkeypatch):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    one, other = two_worlds("reach-v3")
    with pytest.raises(AssertionError, match="never reset"):
        one.snapshot()
    other.reset(0)
    with pytest.raises(AssertionError, match="never reset"):
        one.restore(other.snapshot())
