"""A dream as a vector environment of Gymnasium: spaces, seeds, resets, and the bits of `Dream.rollout`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.performance import benchmark_vector_step
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics, VectorizeTransformObservation

from tests.envs.worlds import toy
from tests.worldmodel.test_dream import actions
from tests.worldmodel.test_dream_env import ENV_SPEC, HORIZON, Starts
from tests.worldmodel.test_ivideogpt import SIDE, A, B, build
from tests.worldmodel.test_oracle import clip_of, model_of
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.dream.vector import DreamVectorEnv
from worldmodel.seeds import Seeds


@pytest.fixture(scope="module")
def dream() -> Dream:
    return Dream(build(terminates=True), seeds=Seeds(1))


def env_of(dream: Dream, **how: Any) -> DreamVectorEnv:
    sizes = {"num_envs": B, "horizon": HORIZON} | how
    return DreamVectorEnv(dream, ENV_SPEC, Starts(dream.spec), **sizes)


class Alone(gymnasium.Env):  # type: ignore[type-arg]
    """One dream as a plain environment, which `check_env` understands."""

    def __init__(self, env: DreamVectorEnv) -> None:
        self.env, self.observation_space, self.action_space = env, env.single_observation_space, env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        frames, infos = self.env.reset(seed=seed, options=options)
        return frames[0], {"continue": infos["continue"][0]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        frames, rewards, terminations, truncations, infos = self.env.step(np.asarray(action)[None])
        return (
            frames[0],
            float(rewards[0]),
            bool(terminations[0]),
            bool(truncations[0]),
            {"continue": infos["continue"][0]},
        )


def test_gymnasium_s_own_checker_has_no_complaint(dream: Dream) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(Alone(env_of(dream, num_envs=1)), skip_render_check=True)


def test_it_is_made_wrapped_and_measured_as_any_vector_environment(
    dream: Dream, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Dream-v0", vector_entry_point=lambda **how: env_of(dream, **how))
    monkeypatch.setitem(gymnasium.registry, "Dream-v0", spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = gymnasium.make_vec("Dream-v0", num_envs=2, vectorization_mode="vector_entry_point")
    assert made.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and made.num_envs == 2
    assert made.observation_space.shape == (2, SIDE, SIDE, 3) and made.action_space.shape == (2, A)
    grey = gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
    watched = VectorizeTransformObservation(
        RecordEpisodeStatistics(made), gymnasium.wrappers.TransformObservation,
        func=lambda frame: frame.mean(-1).astype(np.uint8), observation_space=grey,
    )  # fmt: skip
    frames, _ = watched.reset(seed=3)
    watched.action_space.seed(3)
    total = np.zeros(2)
    for _ in range(HORIZON):
        frames, rewards, _, truncations, infos = watched.step(watched.action_space.sample())
        assert frames in watched.observation_space
        total += rewards
    assert truncations.all()
    np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-6)
    assert infos["episode"]["l"].tolist() == [HORIZON] * 2
    assert benchmark_vector_step(made, target_duration=0, seed=0) > 0
    made.close()


def test_frames_rewards_and_ends_are_those_of_the_dream_and_the_step_behind_the_last_begins_the_next(
    dream: Dream,
) -> None:
    env, action_BHA = env_of(dream), actions(2 * HORIZON)
    env.draw = 5
    seen, infos = env.reset()
    for draw, plan in zip((5, 6), action_BHA.split(HORIZON, 1), strict=True):
        start = dream.encode(Starts(dream.spec)(B, draw))
        how: dict[str, Any] = {"stream": "dream/vector", "draw": draw, "keys": ("pixels", "continue")}
        path = dream.rollout(fixed_actions(plan), start, 0, HORIZON, **how).path
        for step in range(HORIZON):
            at = path[:, step]
            assert env.draw == draw
            assert np.array_equal(seen, hwc(at["pixels"])) and np.array_equal(infos["continue"], row(at["continue"]))
            seen, rewards, terminations, truncations, infos = env.step(plan[:, step].numpy())
            assert np.array_equal(rewards, row(at["next", "reward"])) and rewards.dtype == np.float32
            assert truncations.tolist() == [step == HORIZON - 1] * B and not terminations.any()
            assert set(infos) == {"continue", "_continue"} and infos["_continue"].all()
        assert np.array_equal(seen, hwc(path["next", "pixels"][:, -1])), "the last frame itself is observed"
        seen, rewards, terminations, truncations, infos = env.step(np.ones((B, A)))
        assert not rewards.any() and not truncations.any() and not terminations.any()


def test_a_loop_that_resets_by_itself_loses_no_step(dream: Dream) -> None:
    env = env_of(dream)
    env.reset()
    for _ in range(HORIZON):
        *_, truncations, _ = env.step(np.zeros((B, A)))
    assert truncations.all()
    env.reset()
    assert env.draw == 1
    _, rewards, *_ = env.step(np.zeros((B, A)))
    assert rewards.all() and env.draw == 1


def hwc(pixels_BCHW: torch.Tensor) -> np.ndarray:
    return pixels_BCHW.permute(0, 2, 3, 1).numpy()


def row(value_B1: torch.Tensor) -> np.ndarray:
    return value_B1[:, 0].numpy()


def test_a_seed_begins_the_same_dreams_and_no_seed_the_next_ones(dream: Dream) -> None:
    env = env_of(dream)
    first, again, following = env.reset(seed=4)[0], env.reset(seed=4)[0], env.reset()[0]
    assert np.array_equal(first, again) and not np.array_equal(again, following)
    assert not np.array_equal(first, env.reset(seed=5)[0])
    assert env.session._starts.draws == [4 * 2**32, 4 * 2**32, 4 * 2**32 + 1, 5 * 2**32]


def test_choices_are_numbers_outside_and_one_hot_inside() -> None:
    world = toy("reach-discrete", rows=2, snapshots=True)
    model = Dream(model_of(world, "toy", "reach-discrete"), seeds=Seeds(0))
    starts = clip_of(world.reset()).set("action", torch.zeros(2, 1, 5))
    env = DreamVectorEnv(model, world.env_spec, lambda rows, draw: starts, num_envs=2, horizon=3)
    assert env.single_action_space == gymnasium.spaces.Discrete(5)
    frames, _ = env.reset()
    assert np.array_equal(frames, hwc(world.current()["pixels"]))
    frames, rewards, *_ = env.step(np.array([1, 4]))
    real = world.step(world.current().set("action", torch.eye(5)[[1, 4]]))["next"]
    assert np.array_equal(rewards, row(real["reward"])) and np.array_equal(frames, hwc(real["pixels"]))
    for wrong in (np.array([1, 5]), np.array([-1, 0]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"actions must be whole numbers in \[0, 5\)"):
            env.step(wrong)


def test_what_cannot_be_is_refused_in_one_line_and_nothing_moves(dream: Dream) -> None:
    env = env_of(dream)
    with pytest.raises(ValueError, match="reset comes before the first step"):
        env.step(np.zeros((B, A)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 2\) \(got \(3, 5\)\)"):
        env.step(np.zeros((B, 5)))
    with pytest.raises(ValueError, match="actions must be finite"):
        env.step(np.full((B, A), np.nan))
    with pytest.raises(ValueError, match=r"take no options \(got reset_mask\)"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    after, *_ = env.step(np.zeros((B, A)))
    env.reset(seed=0)
    assert np.array_equal(env.step(np.zeros((B, A)))[0], after)
    with pytest.raises(ValueError, match=r"horizon must be in \[1, 8\]"):
        env_of(dream, horizon=9)
    with pytest.raises(ValueError, match=r"rows must be >= 1 \(got 0\)"):
        env_of(dream, num_envs=0)
    with pytest.raises(ValueError, match=r"action_dim must be the world model's, 2 \(got 5\)"):
        DreamVectorEnv(dream, replace(ENV_SPEC, action_dim=5, discrete=True), Starts(dream.spec), num_envs=1, horizon=1)
