"""The simulator as a world model: what it imagines is what happens, bit for bit."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import SimStep
from mbrl.envs.toy import TASKS
from mbrl.oracle import OracleModel
from tests.envs.worlds import Recorder, config, metaworld, recorded, toy


def clip_of(now: TensorDict) -> TensorDict:
    """What an agent's memory makes of one real step: a clip of one frame."""
    return TensorDict({key: now[key][:, None] for key in ("state", "snapshot")}, batch_size=now.batch_size)


def model_of(env: RowsEnv, group: str, name: str) -> OracleModel:
    task = config("task", group, name=name)
    return config("worldmodel", "oracle").build(task=task, protocol=env.protocol, env_spec=env.env_spec)


def draws(env: RowsEnv, decisions: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (*env.batch_size, env.env_spec.action_dim)
    return [torch.rand(shape, generator=generator) * 3 - 1.5 for _ in range(decisions)]  # some beyond the bounds


def assert_imagined_as_it_happens(env: RowsEnv, model: OracleModel, decisions: int) -> None:
    """From a moment on: rewards, states, moments and pictures of dream and world are equal."""
    start = clip_of(env.current())
    state = model.encode(start)
    assert state["latent"].shape == (*env.batch_size, model.spec.latent_dim)
    assert not state["reward"].any() and state["continue"].all()
    actions = draws(env, decisions, seed=1)
    path = []
    for action in actions:  # the whole dream first: it must not need the world to stand still
        state = model.imagine(state, action, None)
        path.append(state)
    for number, (action, state) in enumerate(zip(actions, path, strict=True)):
        real = env.step(env.current().set("action", action))["next"]
        assert torch.equal(state["reward"], real["reward"]), number
        assert torch.equal(state["continue"], (~real["terminated"]).float()), number
        assert torch.equal(state["wm", "snapshot"], real["snapshot"]), number
        assert torch.equal(state["latent"], model.encode(clip_of(real))["latent"]), number
        assert torch.equal(state["latent"], model.observe(path[number], action, real)["latent"]), number
        if real["done"].any():
            return
    assert torch.equal(model.decode(path[-1]), real["pixels"])


@pytest.mark.parametrize("name", TASKS)
def test_a_dream_of_the_toy_world_is_what_happens_in_it(name: str) -> None:
    env = toy(name, rows=3, snapshots=True, action_repeat=2, success_bonus=5.0)
    model = model_of(env, "toy", name)
    env.reset()
    assert_imagined_as_it_happens(env, model, 3)
    env.reset()
    for action in draws(env, 4):
        env.step(env.current().set("action", action))
    assert_imagined_as_it_happens(env, model, 6)


@pytest.mark.metaworld
def test_a_dream_of_a_meta_world_task_is_what_happens_in_it() -> None:
    env = metaworld("plate-slide-v3", rows=2, snapshots=True)
    model = model_of(env, "metaworld", "plate-slide-v3")
    env.reset()
    assert_imagined_as_it_happens(env, model, 3)  # right after a reset
    assert_imagined_as_it_happens(env, model, 4)
    env.close()


def test_a_terminal_success_ends_the_dream() -> None:
    env = toy("reach-terminal", rows=2, snapshots=True)
    model = model_of(env, "toy", "reach-terminal")
    now = env.reset()
    state, ended = model.encode(clip_of(now)), torch.zeros(2, 1)
    for _ in range(12):
        experts = torch.stack([_expert(model, snapshot) for snapshot in state["wm", "snapshot"]])
        state = model.imagine(state, experts, None)
        ended = torch.maximum(ended, 1 - state["continue"])
    assert ended.all()


def _expert(model: OracleModel, snapshot: torch.Tensor) -> torch.Tensor:
    model._simulator.restore(snapshot.numpy())
    return torch.from_numpy(model._simulator.expert())


def test_rows_of_a_dream_do_not_meet() -> None:
    env = toy("reach", rows=3, snapshots=True)
    model = model_of(env, "toy", "reach")
    now, action = env.reset(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    together = model.imagine(model.encode(clip_of(now)), action, None)
    for row in range(3):
        alone = model.imagine(model.encode(clip_of(now[row : row + 1])), action[row : row + 1], None)
        for key in ("latent", "reward", ("wm", "snapshot")):
            assert torch.equal(alone[key][0], together[key][row]), key


def test_a_breakdown_gives_what_came_before_it_keeps_the_moment_and_ends_the_dream() -> None:
    broken = SimStep(99.0, terminated=False, success=True, unstable=True)
    env = recorded([Recorder({4: broken})], snapshots=True, action_repeat=2)
    model = OracleModel(Recorder({4: broken}), env.protocol, env.env_spec)
    start = model.encode(clip_of(env.reset()))
    good = model.imagine(start, torch.zeros(1, 3), None)
    after = model.imagine(good, torch.zeros(1, 3), None)
    assert (good["reward"].item(), after["reward"].item()) == (2.0, 1.0)
    assert (good["continue"].item(), after["continue"].item()) == (1.0, 0.0)
    assert torch.equal(after["wm", "snapshot"], good["wm", "snapshot"])
    assert torch.equal(after["latent"], good["latent"])
    for state in (good, after):
        real = env.step(env.current().set("action", torch.zeros(1, 3)))["next"]
        assert torch.equal(real["reward"], state["reward"])


def test_an_agent_reads_decimetres_from_the_first_start() -> None:
    env = toy("reach", rows=1, snapshots=True)
    model = model_of(env, "toy", "reach")
    clip = clip_of(env.reset())
    latent = model.encode(clip)["latent"]
    model._simulator.reset(0)
    origin = torch.from_numpy(model._simulator.state())
    assert latent[0].tolist() == pytest.approx((10 * (clip["state"][0, 0] - origin)).tolist())
    assert model.spec.obs_keys == ("state", "snapshot") and model.spec.latent_dim == 4


def test_there_is_nothing_to_fit() -> None:
    env = toy("reach", rows=1, snapshots=True)
    model = model_of(env, "toy", "reach")
    env.reset()
    assert not model.parameters_of("tokenizer") and not model.parameters_of("dynamics") and not model.state_dict()
    with pytest.raises(TypeError, match="nothing to fit"):
        model.losses(TensorDict({}, batch_size=[1]), "dynamics", step=0, generator=torch.Generator())
