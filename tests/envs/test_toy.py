import numpy as np
import pytest
import torch

from mbrl.envs.simulator import UnknownTask
from mbrl.envs.toy import TASKS, Toy
from tests.envs.worlds import config, toy


def world_of(name: str) -> Toy:
    (world,) = config("task", "toy", name=name).build(protocol=config("protocol", "toy"), rows=1)
    return world


def scores(name: str, choose) -> tuple[float, float]:
    """Mean return and success over 40 episodes."""
    env = toy(name, rows=40)
    now, total, success = env.reset(), torch.zeros(40), torch.zeros(40, dtype=torch.bool)
    playing = torch.ones(40, dtype=torch.bool)
    for step in range(25):
        stepped, now = env.step_and_maybe_reset(now.set("action", choose(env, step)))
        total += stepped["next", "reward"][:, 0] * playing
        success |= stepped["next", "success"][:, 0] & playing
        playing &= ~stepped["next", "done"][:, 0]
    return total.mean().item(), success.float().mean().item()


def at_random(env, step):
    action = torch.rand(env.batch_size[0], env.env_spec.action_dim, generator=torch.Generator().manual_seed(step))
    return action if env.env_spec.discrete else action * 2 - 1


def expertly(env, step):
    return env.expert_actions()


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_always_reaches_the_goal_and_random_actions_seldom_do(name):
    (good, solved), (bad, lucky) = scores(name, expertly), scores(name, at_random)
    assert solved == 1.0 and lucky < 0.35
    assert good > bad + 8


def test_the_dot_and_the_goal_are_large_bright_and_whole_anywhere():
    world = world_of("reach")
    world._goal, world._dot = np.array([1.0, 1.0]), np.array([0.0, 0.0])
    frame = world.draw().astype(int)
    red = (frame[0] > 150) & (frame[1] < 120)
    green = (frame[1] > 150) & (frame[0] < 120)
    assert 40 <= red.sum() <= 64 and 60 <= green.sum() <= 68
    assert red[:8, :8].sum() == red.sum(), "x = y = 0 is the upper left corner"
    assert green[24:, 24:].sum() == green.sum()


def test_small_moves_can_be_seen():
    world = world_of("reach")
    world.reset(0)
    before = world.draw()
    world.step(np.array([0.05, 0.0], np.float32))
    assert not np.array_equal(before, world.draw())


def test_success_ends_only_the_terminal_variant():
    for name in TASKS:
        world = world_of(name)
        world.reset(1)
        steps = [world.step(world.expert()) for _ in range(25)]
        assert any(step.success for step in steps)
        assert any(step.terminated for step in steps) == (name == "reach-terminal")


@pytest.mark.parametrize("name", TASKS)
def test_a_moment_goes_on_in_another_world_as_in_its_own(name):
    one, other = world_of(name), world_of(name)
    actions = np.random.default_rng(3).uniform(-1, 1, (9, 5 if name == "reach-discrete" else 2)).astype(np.float32)
    for seed in range(5):
        one.reset(seed), other.reset(99)
        for action in actions[:seed]:  # seed 0: right after the reset
            one.step(action)
        moment = one.snapshot()
        other.step(actions[0])
        other.restore(moment)
        assert np.array_equal(one.draw(), other.draw())
        for action in actions:
            assert one.step(action) == other.step(action)
            assert np.array_equal(one.state(), other.state())
        one.restore(moment)
        assert np.array_equal(one.snapshot(), moment), "a moment does not change while its world goes on"


def test_proprioception_is_where_the_dot_is():
    world = world_of("reach")
    world.reset(0)
    before = world.proprio()
    world.step(np.array([0.5, -0.5], np.float32))
    assert world.proprio() - before == pytest.approx([2 * 0.06, 2 * -0.06], abs=1e-6)
    assert world.state() == pytest.approx([*world._dot, *world._goal])


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match=r"task.name must be one of .*got 'reech'.*nearest: reach"):
        config("task", "toy", name="reech")
    with pytest.raises(UnknownTask):
        from mbrl.envs.toy import ToyTask

        ToyTask(name="reech")


def test_a_protocol_with_a_camera_is_refused():
    (complaint,) = config("task", "toy").complaints(config("protocol", "default"))
    assert "camera must be null" in complaint
    assert not list(config("task", "toy").complaints(config("protocol", "toy")))
