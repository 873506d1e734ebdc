from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from point_world import PointReplay, agent, away, draw, env_spec, played, preset, spec, states
from tensordict import TensorDict
from torch import Tensor

from agents.distributions import ScheduledStdConfig
from agents.dreamer import DreamerConfig
from worldmodel.optim import OptimConfig
from worldmodel.spec import Rollout

SMALL = {"batch_size": 6, "horizon": 5, "units": 8, "layers": 1, "bins": 11}
FASTER = OptimConfig(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-5, weight_decay=0.0, max_grad_norm=100.0, warmup_steps=0)
LEARNS = {
    "dreamer": {"batch_size": 64, "units": 32, "layers": 2, "actor_optim": FASTER, "critic_optim": FASTER},
    "dreamer_cpu": {"batch_size": 32, "units": 32, "actor_tau": 0.2},
}
both_presets = pytest.mark.parametrize("name", ["dreamer", "dreamer_cpu"])
both_actions = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def small(name: str = "dreamer_cpu", **changes: Any) -> DreamerConfig:
    return preset(name, **{**SMALL, **changes})


def replay(discrete: bool = False, **changes: Any) -> PointReplay:
    return PointReplay(2, env_spec(discrete=discrete).action_dim, **changes)


def first_step(rows: int = 3, seed: int = 9) -> TensorDict:
    frames = draw(states(rows, torch.Generator().manual_seed(seed)))
    return TensorDict({"pixels": frames, "is_init": torch.ones(rows, 1, dtype=torch.bool)}, batch_size=[rows])


def next_step(rows: int = 3, seed: int = 10) -> TensorDict:
    return first_step(rows, seed).set("is_init", torch.zeros(rows, 1, dtype=torch.bool))


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])}


@both_presets
@both_actions
def test_learns_to_drive_the_point_in_seconds(name: str, discrete: bool) -> None:
    """Random play earns about -1.05 per decision, driving straight to the goal about -0.2; asked for: half the loss."""
    driver = agent(preset(name, **LEARNS[name]), discrete=discrete)
    random, source = played(None, discrete=discrete), replay(discrete)
    for update in range(100 if name == "dreamer" else 40):
        driver.learn(source, update)
    assert random < -0.95
    assert played(driver, discrete=discrete) > random / 2


def test_an_imitator_does_what_was_demonstrated_even_against_its_reward() -> None:
    state = states(50, torch.Generator().manual_seed(3))
    td = TensorDict({"pixels": draw(state), "is_init": torch.ones(50, 1, dtype=torch.bool)}, batch_size=[50])
    alike, likely = {}, []
    for bc_coef in (0.0, 30.0):
        driver = agent(preset("dreamer_cpu", bc_coef=bc_coef, units=32, batch_size=32, actor_tau=0.2))
        for update in range(60):
            metrics = driver.learn(replay(), update)
            likely.append(metrics.get("agent/bc_loss"))
        action, _ = driver.act(td, None, "evaluate", step=0)
        alike[bc_coef] = float((action * away(state)).mean())
    assert alike[0.0] < 0 < 0.2 < alike[30.0]
    assert likely[59] is None and likely[60] < likely[-1]


@both_actions
def test_calm_episodes_are_greedy_from_their_first_step_to_their_last(discrete: bool) -> None:
    greedily, restless = (agent(small(greedy_episodes=share), discrete=discrete) for share in (0.4, 0.0))
    memory, seen = None, []
    for step in range(4):
        td = first_step(200, seed=step) if step in (0, 3) else next_step(200, seed=step)
        greedy, _ = greedily.act(td, memory, "evaluate", step=step)
        noisy, _ = restless.act(td, memory, "explore", step=step)
        action, memory = greedily.act(td, memory, "explore", step=step)
        seen.append(memory["greedy"][:, 0])
        assert torch.equal(action, torch.where(memory["greedy"], greedy, noisy))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert 0.3 < float(torch.stack([seen[0], seen[3]]).float().mean()) < 0.5


@both_presets
@both_actions
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name: str, discrete: bool) -> None:
    source = replay(discrete)
    straight, first = (agent(small(name, greedy_episodes=0.5), discrete=discrete) for _ in range(2))
    for driver in (straight, first):
        driver.act(first_step(), None, "explore", step=2000)
        for update in range(2):
            driver.learn(source, update)
    resumed = agent(small(name, greedy_episodes=0.5), discrete=discrete)
    resumed.learn(source, 9)  # what it was before must not matter
    resumed.load_state_dict(copied(first.state_dict()))
    metrics = straight.learn(source, 2), resumed.learn(source, 2)
    assert not differing(straight.state_dict(), resumed.state_dict())
    timeless = [{k: v for k, v in m.items() if not k.startswith("time/")} for m in metrics]
    assert timeless[0] == timeless[1]


def test_all_randomness_is_counted() -> None:
    torch.manual_seed(0)
    first = agent(small())
    torch.manual_seed(1)
    second = agent(small())
    before = torch.random.get_rng_state()
    for driver in (first, second):
        driver.learn(replay(), 0)
        driver.act(first_step(), None, "explore", step=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not differing(first.state_dict(), second.state_dict())
    assert differing(first.state_dict(), agent(small(), seed=6).state_dict())


@both_presets
@both_actions
def test_actions_are_legal_and_memory_is_plain_tensors(name: str, discrete: bool) -> None:
    driver = agent(small(name), discrete=discrete)
    action, memory = driver.act(first_step(), None, "explore", step=0)
    width = 4 if discrete else 2
    assert action.shape == (3, width)
    assert action.dtype == torch.float32
    assert action.abs().max() <= 1
    if discrete:
        assert torch.equal(action.sum(-1), torch.ones(3))
        assert set(action.unique().tolist()) == {0.0, 1.0}
    assert memory is not None
    assert all(isinstance(tensor, Tensor) and tensor.shape[0] == 3 for tensor in memory.values())


@both_actions
def test_evaluation_is_deterministic_and_draws_nothing(discrete: bool) -> None:
    driver = agent(small(), discrete=discrete)
    driver.act(first_step(), None, "explore", step=40)
    before = copied(driver.state_dict())
    actions = [driver.act(first_step(), None, "evaluate", step=step)[0] for step in (0, 41)]
    assert torch.equal(*actions)
    assert not differing(before, driver.state_dict())


@both_actions
def test_exploration_noise_is_a_function_of_the_step(discrete: bool) -> None:
    driver = agent(small(), discrete=discrete)
    rows = 40
    at = {step: driver.act(first_step(rows), None, "explore", step=step)[0] for step in (3, 4)}
    assert torch.equal(driver.act(first_step(rows), None, "explore", step=3)[0], at[3])
    assert not torch.equal(at[3], at[4])


def test_a_saved_memory_gives_the_same_action() -> None:
    driver = agent(small())
    _, memory = driver.act(first_step(), None, "explore", step=0)
    assert memory is not None
    saved = {name: tensor.clone() for name, tensor in memory.items()}
    action, _ = driver.act(next_step(), memory, "explore", step=1)
    again, _ = driver.act(next_step(), TensorDict(saved, batch_size=[3]), "explore", step=1)
    assert torch.equal(action, again)


def test_noise_is_correlated_in_time_and_forgotten_where_an_episode_begins() -> None:
    driver, rows = agent(small()), 4000
    _, before = driver.act(first_step(rows), None, "explore", step=0)
    step = next_step(rows)
    step["is_init"][: rows // 2] = True
    _, after = driver.act(step, before, "explore", step=1)
    pairs = torch.stack([before["noise"][..., 0], after["noise"][..., 0]])
    assert torch.corrcoef(pairs[:, rows // 2 :])[0, 1] == pytest.approx(0.7, abs=0.05)
    assert torch.corrcoef(pairs[:, : rows // 2])[0, 1] == pytest.approx(0.0, abs=0.05)
    assert float(after["noise"].std()) == pytest.approx(1.0, abs=0.03)


def test_the_schedule_of_the_real_world_is_that_of_the_dream() -> None:
    driver = agent(small())
    assert driver.learn(replay(), 0)["agent/std"] == pytest.approx(0.8)
    std = small().std
    assert isinstance(std, ScheduledStdConfig)
    driver.act(first_step(), None, "explore", step=std.after + std.decisions // 2)
    assert driver.learn(replay(), 1)["agent/std"] == pytest.approx((std.start + std.end) / 2)
    assert "agent/std" not in agent(small(), discrete=True).learn(replay(True), 0)


@both_presets
def test_no_gradient_reaches_the_dream(name: str) -> None:
    driver = agent(small(name))
    driver.learn(replay(), 0)
    action, _ = driver.act(first_step(), None, "explore", step=0)
    assert driver._dream.weight.grad is None
    assert not action.requires_grad


def test_training_and_acting_ask_for_clips_of_one_form() -> None:
    driver = agent(small())
    _, memory = driver.act(first_step(), None, "explore", step=0)
    driver.act(next_step(), memory, "explore", step=1)
    driver.learn(replay(), 0)
    acting, learning = driver._dream.clips[-2:]
    assert acting["pixels"].shape[1] == learning["codes"].shape[1] == spec().burn_in
    assert acting["action"].shape[1:] == learning["action"].shape[1:]


def test_what_lies_behind_a_predicted_end_counts_for_nothing() -> None:
    updates = []
    for behind in (0.0, 1e4):
        driver = agent(small(horizon=6, normaliser=preset("dreamer").normaliser))
        driver._dream.end = 2
        rollout = driver._dream.rollout

        def spoiled(*args: Any, rollout=rollout, behind=behind, **kwargs: Any) -> Rollout:
            found = rollout(*args, **kwargs)
            found.path["next", "reward"][:, 3:] += behind
            return found

        driver._dream.rollout = spoiled
        imagined = driver._imagined(replay(), 0)
        assert torch.equal(imagined.weight[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
        updates.append(imagined.returns[:, :3])
        losses = driver._critic_loss(imagined)
        assert torch.isfinite(losses)
    assert torch.equal(*updates)


def test_starts_where_the_real_episode_had_ended_count_for_nothing() -> None:
    driver = agent(small())
    before = copied(dict(driver.actor.named_parameters()))
    driver.learn(replay(alive=0.0), 0)
    assert not differing(before, dict(driver.actor.named_parameters()))


def test_one_epoch_is_reinforce() -> None:
    driver = agent(small(epochs=1, ratio_clip=None, entropy_coef=0.0))
    imagined = driver._imagined(replay(), 0)
    log_prob = driver.actor(imagined.latent, 0.8).log_prob(imagined.action)
    parameters = list(driver.actor.parameters())
    ours = torch.autograd.grad(
        driver._surrogate(log_prob - log_prob.detach(), imagined.advantage).mean(), parameters, retain_graph=True
    )
    reinforce = torch.autograd.grad((log_prob * imagined.advantage).mean(), parameters)
    for a, b in zip(ours, reinforce, strict=True):
        torch.testing.assert_close(a, b)


def test_the_target_critic_lags_and_is_there_only_where_it_is_used() -> None:
    driver = agent(small("dreamer"))
    start = copied(dict(driver.critic.named_parameters()))
    driver.learn(replay(), 0)
    assert driver.target_critic is not None
    for name, slow in driver.target_critic.named_parameters():
        fast = driver.critic.get_parameter(name)
        torch.testing.assert_close(slow, start[name] + 0.02 * (fast - start[name]), atol=1e-7, rtol=1e-5)
    assert agent(small()).target_critic is None


def test_the_average_of_the_actors_weights_plays_in_evaluations_and_nowhere_else() -> None:
    driver, plain = agent(small(actor_tau=0.4)), agent(small(actor_tau=None))
    expected: dict[str, Tensor] = {}
    for update in range(4):  # the mean of the first two updates, then 0.4 of the newest
        for one in (driver, plain):
            one.learn(replay(), update)
        now = copied(dict(driver.actor.named_parameters()))
        share = (1.0, 0.5, 0.4, 0.4)[update]
        expected = now if not update else {k: w + share * (now[k] - w) for k, w in expected.items()}
    assert not differing(now, dict(plain.actor.named_parameters())), "learning is the same without"
    assert driver.averaged_actor is not None and plain.averaged_actor is None
    for name, weight in driver.averaged_actor.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=1e-7, rtol=1e-5)
    played_BA, newest_BA = (one.act(first_step(), None, "evaluate", step=0)[0] for one in (driver, plain))
    assert not torch.equal(played_BA, newest_BA)
    explored = [one.act(first_step(), None, "explore", step=0)[0] for one in (driver, plain)]
    assert torch.equal(*explored)


def test_an_update_that_is_not_finite_is_skipped_and_ten_in_a_row_end_the_run() -> None:
    driver = agent(small())
    driver.learn(replay(), 0)
    before = copied(driver.state_dict())
    driver._dream.poison = math.nan
    for update in range(1, 10):
        assert driver.learn(replay(), update) == {"agent/skipped": 1.0}
    assert differing(before, driver.state_dict()) == {"count.failed"}
    with pytest.raises(FloatingPointError, match=r"10 agent updates in a row .* number 10: imagined returns"):
        driver.learn(replay(), 10)
    driver._dream.poison = 0.0
    assert driver.learn(replay(), 11)["agent/skipped"] == 0.0
    assert int(driver.state_dict()["count.failed"]) == 0


def test_acting_on_a_latent_that_is_not_finite_raises() -> None:
    driver = agent(small())
    driver._dream.weight = torch.tensor(math.nan)
    with pytest.raises(FloatingPointError, match="policy mean"):
        driver.act(first_step(), None, "explore", step=0)


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    driver = agent(small())
    before = copied(driver.state_dict())
    with pytest.raises(ValueError, match="other sizes"):
        driver.load_state_dict(agent(small(units=9), seed=6).state_dict())
    with pytest.raises(ValueError, match="averaged_actor"):
        driver.load_state_dict(agent(small("dreamer", layers=1), seed=6).state_dict())
    assert not differing(before, driver.state_dict())


def test_the_state_is_flat_tensors_with_everything_in_it() -> None:
    driver = agent(small("dreamer"))
    driver.learn(replay(), 0)
    state = driver.state_dict()
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    parts = {name.split(".")[0] for name in state}
    assert parts == {"actor", "critic", "target_critic", "actor_optim", "critic_optim", "normaliser", "count"}


def test_a_policy_sees_each_row_alone() -> None:
    driver = agent(small())
    rows = 1000 * torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    together = driver.actor(rows, 0.5).mode
    alone = torch.cat([driver.actor(row[None], 0.5).mode for row in rows])
    torch.testing.assert_close(together, alone)
    assert (together[0] - driver.actor(rows[:1] * 3, 0.5).mode[0]).abs().max() > 0  # the latent's size is not lost


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 1.0),
        ("bins", 100),
        ("epochs", 0),
        ("tau", 0.1),
        ("ratio_clip", None),
        ("unimix", 1.0),
        ("lambda_", -0.1),
    ],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        small(**{field: value})


def test_a_horizon_that_does_not_fit_and_foreign_actions_are_named() -> None:
    with pytest.raises(ValueError, match=r"horizon must be <= 18.*got 19"):
        agent(small(horizon=19))
    model = spec(action_dim=2)
    with pytest.raises(ValueError, match=r"2 action dimensions, the environment 4"):
        replace(small()).build(spec=model, env_spec=env_spec(discrete=True), dream=None, seeds=None, device="cpu")  # type: ignore[arg-type]
