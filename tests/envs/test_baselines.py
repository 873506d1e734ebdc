import pytest
import torch

from agents.baselines import RandomConfig, ScriptedConfig
from tests.envs.worlds import config, toy
from worldmodel.seeds import Seeds


def agent(env, name="random", **changes):
    built = config("agent", name, **changes)
    if isinstance(built, RandomConfig):
        return built.build(env_spec=env.env_spec, seeds=Seeds(3))
    assert isinstance(built, ScriptedConfig)
    return built.build(env_spec=env.env_spec, seeds=Seeds(3), expert=lambda mode: env.expert_actions())


def acted(env, eval_setup, step, mode="explore"):
    action, memory = eval_setup.act(env.current(), None, mode, step=step)
    assert memory is None
    return action


def test_random_actions_are_a_function_of_run_mode_and_step_alone():
    env = toy(rows=3)
    env.reset()
    one, two = agent(env), agent(env)
    assert torch.equal(acted(env, one, 9), acted(env, two, 9))
    assert not torch.equal(acted(env, one, 9), acted(env, one, 10))
    assert not torch.equal(acted(env, one, 9), acted(env, one, 9, "evaluate"))


def test_an_action_is_held_for_as_long_as_configured():
    env = toy(rows=3)
    env.reset()
    held = [acted(env, agent(env, hold=4, noise=0.0), step) for step in range(8)]
    assert all(torch.equal(held[0], action) for action in held[:4])
    assert all(torch.equal(held[4], action) for action in held[4:])
    assert not torch.equal(held[0], held[4])


def test_uniform_actions_fill_the_range_and_rows_differ():
    env = toy(rows=3)
    env.reset()
    eval_setup = agent(env, hold=1, noise=0.0)
    actions = torch.stack([acted(env, eval_setup, step) for step in range(200)])
    assert actions.shape == (200, 3, 2) and actions.dtype == torch.float32
    assert actions.abs().max() <= 1 and actions.mean().abs() < 0.1
    assert actions.std() == pytest.approx(3**-0.5, abs=0.05)
    assert not torch.equal(actions[:, 0], actions[:, 1])


def test_noise_keeps_actions_in_range():
    env = toy(rows=3)
    env.reset()
    quiet, loud = agent(env, hold=4, noise=0.0), agent(env, hold=4, noise=0.5)
    difference = torch.stack([acted(env, loud, s) - acted(env, quiet, s) for s in range(100)])
    assert 0.2 < difference.std() < 0.6
    assert max(acted(env, loud, s).abs().max() for s in range(100)) <= 1


def test_discrete_actions_are_one_hot_and_sometimes_replaced_by_noise():
    env = toy("reach-discrete", rows=3)
    env.reset()
    actions = torch.stack([acted(env, agent(env, hold=50, noise=0.3), step) for step in range(50)])
    assert torch.equal(actions.sum(-1), torch.ones(50, 3)) and torch.equal(actions, actions.round())
    changed = (actions != actions.mode(0).values).any(-1).float().mean()
    assert 0.1 < changed < 0.4, "0.3 are redrawn, a fifth of them to the same choice"


def test_the_scripted_agent_does_what_the_expert_of_the_asked_mode_does():
    env = toy(rows=3)
    env.reset()
    assert torch.equal(acted(env, agent(env, "scripted"), 0), env.expert_actions())
    training, scoring = toy(rows=3), toy(rows=3, stream="evaluate")
    training.reset(), scoring.reset()
    eval_setup = config("agent", "scripted").build(
        env_spec=env.env_spec,
        seeds=Seeds(3),
        expert=lambda mode: {"explore": training, "evaluate": scoring}[mode].expert_actions(),
    )
    assert torch.equal(acted(training, eval_setup, 0), training.expert_actions())
    assert torch.equal(acted(scoring, eval_setup, 0, "evaluate"), scoring.expert_actions())


def test_an_expert_of_another_number_of_rows_is_refused():
    env, other = toy(rows=3), toy(rows=2)
    env.reset(), other.reset()
    with pytest.raises(ValueError, match="expert must act in 2 rows"):
        acted(other, agent(env, "scripted"), 0)


def test_baselines_have_no_state_and_refuse_any():
    env = toy(rows=3)
    for name in ("random", "scripted"):
        eval_setup = agent(env, name)
        eval_setup.load_state_dict(eval_setup.state_dict())
        with pytest.raises(ValueError, match="no state to load"):
            eval_setup.load_state_dict({"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"), [({"hold": 0}, "hold must be >= 1"), ({"noise": 1.5}, "noise must be in")]
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config("agent", "random", **change)
