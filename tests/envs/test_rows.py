import dataclasses

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import EnvDataError, SimStep
from mbrl.envs.toy import TASKS
from tests.envs.worlds import COUNTING, Recorder, recorded, toy


def play(env: RowsEnv, decisions: int, experts: int = 0) -> list:
    """Random steps (the first rows: an expert's) with resets where rows end; the stepped TensorDicts."""
    generator, now, steps = torch.Generator().manual_seed(0), env.reset(), []
    rows, width = env.batch_size[0], env.env_spec.action_dim
    for _ in range(decisions):
        action = torch.rand(rows, width, generator=generator) * 2 - 1
        action[:experts] = env.expert_actions()[:experts]
        stepped, now = env.step_and_maybe_reset(now.set("action", action))
        steps.append(stepped.clone())
    return steps


def act(env: RowsEnv, action: torch.Tensor):
    return env.step(env.current().set("action", action))["next"]


@pytest.mark.parametrize("snapshots", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_the_environment_keeps_its_own_specs(name, snapshots):
    env = toy(name, snapshots=snapshots)
    check_env_specs(env, seed=0)
    assert ("snapshot" in set(env.observation_spec.keys())) is snapshots


def test_a_real_step_has_the_keys_dtypes_and_shapes_of_the_contract():
    step = play(toy(rows=3), 1)[0]
    assert step["pixels"].shape == step["next", "pixels"].shape == (3, 3, 32, 32)
    assert step["pixels"].dtype == step["next", "pixels"].dtype == torch.uint8
    for key, width in (("proprio", 2), ("state", 4)):
        for frame in (step[key], step["next", key]):
            assert frame.shape == (3, width) and frame.dtype == torch.float32
    assert "snapshot" not in {*step.keys(), *step["next"].keys()}
    assert step["action"].shape == (3, 2) and step["action"].dtype == torch.float32
    assert step["next", "reward"].shape == (3, 1) and step["next", "reward"].dtype == torch.float32
    for key in ("terminated", "truncated", "done", "success"):
        assert step["next", key].shape == (3, 1) and step["next", key].dtype == torch.bool
    assert step["is_init"].all()


def test_row_i_plays_the_same_episodes_whatever_the_number_of_rows():
    many, few = toy(rows=4, decisions=3), toy(rows=2, decisions=3)
    for number in range(3):
        a, b = many.reset()["pixels"], few.reset()["pixels"]
        assert torch.equal(a[:2], b), f"episode {number}"
        assert not torch.equal(a[0], a[1])


def test_every_episode_has_a_seed_of_its_own_named_by_run_stream_row_and_number():
    def seen(**names):
        env = toy(**names)
        return [tuple(env.reset()["pixels"][row].flatten().tolist()) for _ in range(3) for row in range(2)]

    base = seen(rows=2)
    assert len(set(base)) == 6
    assert base == seen(rows=2)
    assert not set(base) & set(seen(rows=2, run=1))
    assert not set(base) & set(seen(rows=2, stream="evaluate"))


def test_assigned_episode_numbers_are_what_the_next_reset_opens():
    env = toy(rows=2)
    first = env.reset()["pixels"]
    second = env.reset()["pixels"]
    assert env.episodes == [1, 1]
    env.episodes = [0, 1]
    again = env.reset()["pixels"]
    assert env.episodes == [0, 1]
    assert torch.equal(again[0], first[0]) and torch.equal(again[1], second[1])
    env.reset()
    assert env.episodes == [1, 2]
    with pytest.raises(ValueError, match="episodes must be 2 numbers"):
        env.episodes = [0]


def test_replayed_actions_give_back_open_episodes_of_any_length_exactly():
    env = toy("reach-terminal", rows=3)
    steps = play(env, 33, experts=1)
    begun = [max((i for i, s in enumerate(steps) if s["is_init"][row]), default=0) for row in range(3)]
    ended = [bool(steps[-1]["next", "done"][row]) for row in range(3)]
    tails = [[] if ended[row] else [s[row] for s in steps[begun[row] :]] for row in range(3)]
    actions = [torch.stack([s["action"] for s in tail]) if tail else torch.zeros(0, 2) for tail in tails]

    other = toy("reach-terminal", rows=3)
    replayed = other.replay_actions(env.episodes, actions)

    assert other.episodes == env.episodes
    assert len({len(tail) for tail in tails}) > 1, "rows are of unequal length, or this shows little"
    for tail, again in zip(tails, replayed, strict=True):
        assert again.batch_size == (len(tail),)
        for t, step in enumerate(tail):
            seen = [("next", key) for key in ("pixels", "proprio", "state", "reward", "done")]
            for key in ("pixels", "proprio", "state", "is_init", "action", *seen):
                assert torch.equal(step[key], again[t][key]), key
    assert torch.equal(env.current()["pixels"], other.current()["pixels"])
    assert torch.equal(env.current()["is_init"], other.current()["is_init"])
    action = torch.full((3, 2), 0.3)
    a, b = act(env, action), act(other, action)
    assert all(torch.equal(a[key], b[key]) for key in ("pixels", "reward", "success", "done"))


def test_replaying_more_actions_than_the_episode_lasted_is_refused():
    with pytest.raises(EnvDataError, match="ended before its 5 logged actions did in row 0 of recorder, episode 2"):
        recorded([Recorder()], decisions=4).replay_actions([2], [torch.zeros(5, 3)])


def test_the_time_limit_truncates_and_never_terminates():
    env = recorded([Recorder(), Recorder()], decisions=3)
    steps = play(env, 7)
    assert [s["next", "truncated"].all().item() for s in steps] == [False, False, True, False, False, True, False]
    assert not any(s["next", "terminated"].any() for s in steps)
    assert [s["is_init"].all().item() for s in steps] == [True, False, False, True, False, False, True]


def test_a_world_that_ends_by_itself_terminates_and_is_not_also_truncated():
    ending = {2: SimStep(5.0, terminated=True, success=True)}
    env = recorded([Recorder(ending), Recorder()], decisions=2)
    last = play(env, 2)[-1]["next"]
    assert last["terminated"][:, 0].tolist() == [True, False]
    assert last["truncated"][:, 0].tolist() == [False, True]
    assert last["done"].all()


def test_only_the_rows_that_ended_begin_anew():
    ending = {2: SimStep(0.0, terminated=True, success=False)}
    worlds = [Recorder(), Recorder(ending), Recorder()]
    env = recorded(worlds, decisions=9)
    play(env, 3)
    assert env.episodes == [0, 1, 0]
    assert [len(world.seeds) for world in worlds] == [1, 2, 1]
    assert env.current()["pixels"][:, 0, 0, 0].tolist() == [3, 1, 3]


def test_rewards_are_summed_over_the_action_repeat_and_one_bonus_is_added():
    script = {1: SimStep(1.5, terminated=False, success=True), 2: SimStep(2.0, terminated=False, success=True)}
    world = Recorder(script)
    env = recorded([world], action_repeat=2, success_bonus=10.0)
    env.reset()
    assert act(env, torch.zeros(1, 3))["reward"].item() == 13.5
    assert act(env, torch.zeros(1, 3))["reward"].item() == 2.0
    assert len(world.actions) == 4


def test_a_repeat_ends_where_the_world_ends():
    for end in ("terminated", "truncated"):
        world = Recorder({1: SimStep(1.0, success=False, **{end: True})})
        env = recorded([world], action_repeat=3)
        env.reset()
        after = act(env, torch.zeros(1, 3))
        assert after["reward"].item() == 1.0 and after[end].item() and after["done"].item()
        assert after["terminated"].item() is not after["truncated"].item()
        assert len(world.actions) == 1


@pytest.mark.parametrize(("rule", "expected"), [("any", True), ("last", False)])
def test_success_inside_a_repeat_follows_the_protocols_rule(rule, expected):
    env = recorded([Recorder({1: SimStep(0.0, terminated=False, success=True)})], action_repeat=2, success=rule)
    env.reset()
    assert act(env, torch.zeros(1, 3))["success"].item() is expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_reaches_no_simulator_of_any_row(bad):
    worlds = [Recorder(), Recorder()]
    env = recorded(worlds)
    env.reset()
    act(env, torch.zeros(2, 3))
    action = torch.zeros(2, 3)
    action[1, 2] = bad
    with pytest.raises(EnvDataError, match="not finite in row 1 of recorder, episode 0, decision 1"):
        act(env, action)
    assert [len(world.actions) for world in worlds] == [1, 1]


def test_an_action_of_the_wrong_shape_reaches_no_simulator():
    world = Recorder()
    env = recorded([world])
    env.reset()
    with pytest.raises((EnvDataError, RuntimeError), match="shape"):
        act(env, torch.zeros(1, 4))
    assert not world.actions


def test_actions_out_of_range_are_clipped():
    world = Recorder()
    env = recorded([world])
    env.reset()
    act(env, torch.tensor([[7.0, -7.0, 0.25]]))
    assert world.actions[0].tolist() == [1.0, -1.0, 0.25]


def test_a_discrete_action_arrives_exactly_one_hot():
    world = Recorder(facts=dataclasses.replace(COUNTING, discrete=True))
    env = recorded([world])
    env.reset()
    act(env, torch.tensor([[0.1, 0.7, 0.2]]))
    assert world.actions[0].tolist() == [0.0, 1.0, 0.0]


def test_a_row_that_has_ended_must_be_reset_before_it_is_stepped():
    env = recorded([Recorder()], decisions=1)
    env.reset()
    act(env, torch.zeros(1, 3))
    with pytest.raises(EnvDataError, match="has ended, reset before the next step in row 0"):
        act(env, torch.zeros(1, 3))


def test_a_reward_that_is_not_finite_is_refused_with_its_place():
    env = recorded([Recorder({1: SimStep(float("nan"), terminated=False, success=False)})])
    env.reset()
    with pytest.raises(EnvDataError, match="reward nan is not finite in row 0 of recorder, episode 0, decision 0"):
        act(env, torch.zeros(1, 3))


@pytest.mark.parametrize("frame", [np.zeros((3, 8, 8), np.uint8), np.zeros((3, 16, 16), np.float32)])
def test_a_frame_of_another_kind_is_refused(frame):
    env = recorded([Recorder(frame=frame)])
    with pytest.raises(EnvDataError, match=r"frame must be uint8 \(3, 16, 16\)"):
        env.reset()


def test_what_is_known_belongs_to_the_frame_that_it_comes_with():
    ending = {2: SimStep(0.0, terminated=True, success=False)}
    env = recorded([Recorder(), Recorder(ending), Recorder()], snapshots=True, decisions=4)
    steps = play(env, 6)
    counts = torch.stack([step["pixels"][:, 0, 0, 0] for step in steps], 1)
    assert counts.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 0, 1]]
    for step in (*steps, *(step["next"] for step in steps)):
        count_E = step["pixels"][:, 0, 0, 0].double()
        assert torch.equal(step["state"].double(), torch.stack([count_E, 10 * count_E], 1))
        assert torch.equal(step["proprio"], step["state"][:, :1])
        assert torch.equal(step["snapshot"][:, 0], count_E) and step["snapshot"].dtype == torch.float64
    assert env.widths == {"proprio": 1, "state": 2, "snapshot": 3}
    assert recorded([Recorder()]).widths == {"proprio": 1, "state": 2}


def test_a_step_that_was_given_away_does_not_change_any_more():
    env = recorded([Recorder()], snapshots=True)
    first = env.reset()
    kept = first.clone()
    for _ in range(3):
        act(env, torch.zeros(1, 3))
    assert all(torch.equal(first[key], kept[key]) for key in ("pixels", "proprio", "state", "snapshot"))


def test_a_breakdown_truncates_keeps_the_last_good_frame_and_counts():
    broken = SimStep(99.0, terminated=False, success=True, unstable=True)
    env = recorded([Recorder({4: broken}), Recorder()], action_repeat=2)
    env.reset()
    good = act(env, torch.zeros(2, 3))
    after = act(env, torch.zeros(2, 3))
    assert after["truncated"][:, 0].tolist() == [True, False]
    assert not after["terminated"].any()
    assert after["reward"][:, 0].tolist() == [1.0, 2.0], "the good half of the repeat counts, the broken step does not"
    assert not after["success"].any()
    assert torch.equal(after["pixels"][0], good["pixels"][0])
    assert torch.equal(after["state"][0], good["state"][0])
    assert env.breakdowns == 1


def test_experts_answer_for_every_row():
    assert recorded([Recorder(), Recorder()]).expert_actions().tolist() == [[0.5] * 3] * 2
