import subprocess
import sys

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from mbrl.envs import pixels
from mbrl.envs.metaworld import TASKS
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import EnvDataError
from tests.envs.worlds import CONFIGS, config, metaworld, simulator_of


class NoPictures:
    """A painter for tests of the physics alone."""

    def __init__(self, model, protocol):
        self.frame = np.zeros((3, protocol.image, protocol.image), np.uint8)

    def draw(self, model, data):
        return self.frame

    def close(self):
        pass


def state(simulator) -> np.ndarray:
    world = simulator._world
    parts = (world.data.qpos, world.data.qvel, world.data.mocap_pos, world.model.body_pos, world.model.site_pos)
    return np.concatenate([part.ravel() for part in (*parts, world._target_pos, simulator._observation)])


def act(env: RowsEnv, action):
    action = torch.as_tensor(action, dtype=torch.float32).expand(env.batch_size[0], 4)
    return env.step(env.current().set("action", action))["next"]


def test_the_list_of_tasks_is_meta_worlds_own():
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP

    assert len(TASKS) == 50
    assert set(TASKS) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)


def test_an_unknown_task_names_the_three_nearest_without_importing_the_simulator():
    code = (
        "import sys; from mbrl.envs.metaworld import MetaWorldTask\n"
        "try: MetaWorldTask(name='drawr-close-v2')\n"
        "except ValueError as error: print(error, 'mujoco' in sys.modules, 'metaworld' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    message, *imported = ran.stdout.rsplit(maxsplit=2)
    start = "name must be one of the 50 tasks of Meta-World (got 'drawr-close-v2'); nearest: drawer-close-v3, "
    assert message.startswith(start)
    assert message.count(",") == 2 and imported == ["False", "False"]


@pytest.mark.metaworld
def test_every_task_repeats_itself_bit_for_bit_whatever_happened_before(monkeypatch, tmp_path):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    monkeypatch.chdir(tmp_path)  # MuJoCo logs breakdowns into the working directory
    protocol = config("protocol", "default")
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype(np.float32)

    def episode(world, seed):
        world.reset(seed)
        trace = [state(world)]
        for action in actions:
            step = world.step(action)
            trace.append(np.append(state(world), step.reward))
        return np.concatenate(trace)

    for name in TASKS:
        fresh, used = config("task", "metaworld", name=name).build(protocol=protocol, rows=2)
        used.reset(11)
        for _ in range(8):
            used.step(used.expert())
        used._world.data.qpos[:] = np.nan
        used.step(actions[0])
        assert np.array_equal(episode(fresh, 5), episode(used, 5)), name
        fresh.reset(6)
        used.reset(5)
        assert not np.array_equal(state(fresh), state(used)), f"{name}: another seed, another start or goal"


@pytest.mark.metaworld
def test_an_episodes_goal_is_the_first_draw_of_its_seed_and_stays(monkeypatch):
    monkeypatch.setattr(pixels, "Painter", NoPictures)
    (simulator,) = config("task", "metaworld", name="plate-slide-v3").build(
        protocol=config("protocol", "default"), rows=1
    )
    simulator.reset(42)
    world = simulator._world
    low, high = world._random_reset_space.low, world._random_reset_space.high
    assert np.array_equal(world._last_rand_vec, np.random.default_rng(42).uniform(low, high))
    assert np.array_equal(world._target_pos, world._last_rand_vec[3:])


@pytest.mark.metaworld
def test_proprioception_tells_where_the_controller_wants_the_hand():
    env = metaworld("reach-v3", decisions=40)
    env.reset()
    before_Q = act(env, [0.0, 0.0, 0.0, 0.0])["proprio"][0]
    after_Q = act(env, [1.0, -0.5, 0.0, 0.0])["proprio"][0]
    # two simulator steps of at most a centimetre, in decimetres; the hand itself has hardly begun to move
    torch.testing.assert_close(after_Q[4:] - before_Q[4:], torch.tensor([0.2, -0.1, 0.0]), rtol=0, atol=1e-5)
    assert 0 < after_Q[0] - before_Q[0] < 0.1
    for _ in range(30):
        held_Q = act(env, [1.0, 0.0, 0.0, 0.0])["proprio"][0]
    assert held_Q[4] == pytest.approx(10 * simulator_of(env)._world.mocap_high[0]), "it stops where the workspace ends"
    env.close()


@pytest.mark.metaworld
def test_the_environment_keeps_its_own_specs():
    for snapshots in (False, True):
        env = metaworld("door-close-v3", rows=2, decisions=3, snapshots=snapshots)
        check_env_specs(env, seed=0)
        assert env.widths["proprio"] == 7 and env.widths["state"] == 42
        env.close()


@pytest.mark.metaworld
def test_row_i_sees_the_same_frames_whatever_the_number_of_rows():
    many, few = metaworld("reach-v3", rows=3), metaworld("reach-v3", rows=2)
    a, b = many.reset()["pixels"], few.reset()["pixels"]
    assert torch.equal(a[:2], b) and not torch.equal(a[0], a[1])
    assert not torch.equal(many.reset()["pixels"], a)
    many.close(), few.close()


@pytest.mark.metaworld
def test_an_open_episode_is_recreated_exactly_in_a_simulator_with_a_past():
    env, other = metaworld("plate-slide-v3", rows=2), metaworld("plate-slide-v3", rows=2)
    env.reset()
    now, steps = env.reset(), []
    for t in range(5):
        action = torch.from_numpy(np.random.default_rng(t).uniform(-1, 1, (2, 4)).astype(np.float32))
        stepped, now = env.step_and_maybe_reset(now.set("action", action))
        steps.append(stepped.clone())
    other.reset()
    act(other, [1.0, 1.0, -1.0, 1.0])
    replayed = other.replay_actions(env.episodes, torch.stack([step["action"] for step in steps], 1))
    for row in range(2):
        for key in ("pixels", ("next", "pixels"), ("next", "reward")):
            assert torch.equal(replayed[row][key], torch.stack([step[key][row] for step in steps])), key
    for a, b in [(simulator_of(one, row) for one in (env, other)) for row in range(2)]:
        assert np.array_equal(state(a), state(b))
    env.close(), other.close()


@pytest.mark.metaworld
@pytest.mark.parametrize("field", ["qpos", "qvel"])
def test_a_simulator_that_resets_itself_is_noticed_and_the_episode_cut(field, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = metaworld("reach-v3", rows=2)
    env.reset()
    good = act(env, [0.2, 0.0, 0.0, 0.0])
    getattr(simulator_of(env, 1)._world.data, field)[0] = np.nan
    after = act(env, [0.2, 0.0, 0.0, 0.0])
    assert after["truncated"][:, 0].tolist() == [False, True]
    assert after["reward"][1].item() == 0.0 and not after["terminated"].any()
    assert torch.equal(after["pixels"][1], good["pixels"][1])
    assert env.breakdowns == 1
    env.close()


@pytest.mark.metaworld
def test_a_nan_action_is_stopped_before_the_simulator_and_would_have_broken_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = metaworld("reach-v3")
    env.reset()
    simulator = simulator_of(env)
    before = state(simulator)
    with pytest.raises(EnvDataError, match="not finite in row 0 of reach-v3, episode 0, decision 0"):
        act(env, [0.0, float("nan"), 0.0, 0.0])
    assert np.array_equal(state(simulator), before)
    assert simulator.step(np.array([0.0, np.nan, 0.0, 0.0], np.float32)).unstable, "with the guard off"
    env.close()


@pytest.mark.metaworld
def test_the_expert_solves_an_episode_and_the_time_limit_truncates_it():
    env = metaworld("drawer-close-v3", decisions=45)
    now, success, flags = env.reset(), False, []
    for _ in range(45):
        stepped, now = env.step_and_maybe_reset(now.set("action", env.expert_actions()))
        success |= bool(stepped["next", "success"])
        flags.append((bool(stepped["next", "truncated"]), bool(stepped["next", "terminated"])))
    assert success
    assert flags == [(False, False)] * 44 + [(True, False)]
    env.close()


def test_an_episode_longer_than_meta_world_allows_is_refused_before_anything_is_built():
    (complaint,) = config("task", "metaworld").complaints(config("protocol", "default", decisions=301))
    assert "decisions=301 x protocol.action_repeat=2 must be <= 500 simulator steps" in complaint
    assert "(got 602)" in complaint and complaint.endswith("lower protocol.decisions to 250")


@pytest.mark.metaworld
def test_the_zero_action_of_a_protocol_is_one_simulator_step_before_the_first_frame():
    protocols = [config("protocol", "default", zero_action_first=first) for first in (False, True)]
    times = []
    for protocol in protocols:
        (world,) = config("task", "metaworld").build(protocol=protocol, rows=1)
        world.reset(0)
        times.append(world._world.data.time)
        world.close()
    assert times[1] - times[0] == pytest.approx(0.0125)
