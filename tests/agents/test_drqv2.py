"""DrQ-v2 against its equations, written out anew; and what its frames, noise and optimisers touch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import pad

from agents.drqv2 import DrQv2, DrQv2Config
from agents.memory import FrameStack
from mbrl.cli.compose import compose
from mbrl.rundir.build import make
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

SIDE, ROWS, STACK, STEPS = 24, 6, 3, 3
WORLD = EnvSpec(image=SIDE, action_dim=2, discrete=False, action_repeat=1, decisions=10, terminates=True)


def config(name: str = "drqv2_cpu", **changes: Any) -> DrQv2Config:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(compose("train", ["experiment=toy", f"agent={name}"]).agent)
    found = make(plain, "agent", trusted=True)
    nets = replace(found.nets, channels=4, feature=5, units=8)
    return replace(found, **{"nets": nets, "batch_size": ROWS, **changes})


def agent(**changes: Any) -> DrQv2:
    return config(**changes).build(env_spec=WORLD, seeds=Seeds(3), device="cpu")


class Rows:
    """A replay of one batch."""

    def __init__(self, batch: TensorDict) -> None:
        self.batch = batch

    def transitions(self, n: int, **how: Any) -> TensorDict:
        assert (n, how) == (ROWS, {"n_step": 3, "stack": STACK, "stream": "drqv2", "draw": how["draw"]})
        return self.batch.clone()


def batch(seed: int = 0) -> TensorDict:
    """Row 0 ends by itself after two decisions, row 1 is cut off after one."""
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (2, ROWS, 3 * STACK, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    reward, goes_on, steps = torch.rand(ROWS, STEPS, generator=draw), torch.ones(ROWS, STEPS), torch.full((ROWS,), 3)
    reward[0, 2], goes_on[0, 1:], steps[0] = 0, 0, 2
    reward[1, 1:], steps[1] = 0, 1
    action = torch.rand(ROWS, 2, generator=draw) * 2 - 1
    then = {"pixels": frames[1], "reward": reward, "continue": goes_on, "steps": steps}
    return TensorDict({"pixels": frames[0], "action": action, "next": then}, batch_size=[ROWS])


def crops(frames: Tensor, by: Tensor, most: int) -> Tensor:
    """The paper's augmentation by its words: pad by repetition, cut out at a random place."""
    wide = pad(frames.float(), (most,) * 4, mode="replicate")
    side = frames.shape[-1]
    return torch.stack(
        [
            row[:, most + y : most + y + side, most + x : most + x + side]
            for row, (y, x) in zip(wide, by.tolist(), strict=True)
        ]
    )


def test_losses_and_target_network_are_those_of_the_equations() -> None:
    driver, rows, update = agent(), batch(), 4
    driver.counts["decisions"] = 3000
    before, c = copy.deepcopy(driver), driver.config
    found = driver.learn(Rows(rows), update)

    # what is random, by name
    shift, noise = Seeds(3).torch("drqv2/shift", update), Seeds(3).torch("drqv2/noise", update)
    most = c.nets.shift
    by = [torch.randint(-most, most + 1, (ROWS, 2), generator=shift) for _ in range(2)]
    sigma = 0.8 + (0.2 - 0.8) * (3000 - 1200) / 6000
    clipped = [(sigma * torch.randn(ROWS, 2, generator=noise)).clamp(-0.3, 0.3) for _ in range(2)]

    encode, actor, q = before.critic["encoder"].convs, before.actor, before.critic["q"]
    x = encode(crops(rows["pixels"], by[0], most) / 255 - 0.5)
    x_next = encode(crops(rows["next", "pixels"], by[1], most) / 255 - 0.5)
    with torch.no_grad():
        a_next = (actor(x_next) + clipped[0]).clamp(-1, 1)
        value = torch.minimum(*before.target(x_next, a_next).unbind(1))
        r, g = rows["next", "reward"], c.gamma
        y = r[:, 0] + g * r[:, 1] + g**2 * r[:, 2] + g**3 * value  # equation 2
        y[0] = r[0, 0] + g * r[0, 1]  # ended: nothing comes after
        y[1] = r[1, 0] + g * value[1]  # cut off: the value of what was seen last
    q1, q2 = q(x, rows["action"]).unbind(1)
    critic_loss = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()  # equation 1, over both critics
    torch.testing.assert_close(found["agent/critic_loss"], critic_loss.item(), rtol=1e-4, atol=1e-6)

    # equation 3, by the critics that have just moved, on the features from before
    moved_q = driver.critic["q"]
    actor_loss = -torch.minimum(*moved_q(x.detach(), (actor(x.detach()) + clipped[1]).clamp(-1, 1)).unbind(1)).mean()
    torch.testing.assert_close(found["agent/actor_loss"], actor_loss.item(), rtol=1e-4, atol=1e-6)

    for name, slow in driver.target.named_parameters():
        old, fast = before.target.get_parameter(name), moved_q.get_parameter(name)
        torch.testing.assert_close(slow, 0.99 * old + 0.01 * fast, rtol=1e-4, atol=1e-7)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}


def test_the_critics_train_the_encoder_and_the_actor_does_not() -> None:
    driver = agent()
    before = copy.deepcopy(driver.state_dict())
    driver.actor_optim.step = lambda loss: loss.backward() or 1.0  # type: ignore[method-assign,func-returns-value]
    driver.learn(Rows(batch()), 0)
    assert all(p.grad is None for p in driver.critic.parameters()), "the actor's loss leaves no gradient there"
    moved = changed(before, driver.state_dict())
    assert {"critic.encoder", "critic.q", "target.bottleneck", "target.heads"} <= moved
    assert not any(name.startswith("actor.") for name in moved)


def test_noise_is_scheduled_in_real_decisions_and_off_in_evaluation() -> None:
    driver = agent()
    seen = TensorDict(
        {"pixels": batch()["pixels"][:, :3], "is_init": torch.ones(ROWS, 1, dtype=torch.bool)}, batch_size=[ROWS]
    )
    mean, _ = driver.act(seen, None, "evaluate", step=10**6)
    assert driver.std == 0.8, "evaluation counts nothing"
    noise = torch.randn(ROWS, 2, generator=Seeds(3).torch("explore", 10**6))
    noisy, _ = driver.act(seen, None, "explore", step=10**6)
    assert driver.std == pytest.approx(0.2)
    torch.testing.assert_close(noisy, (mean + 0.2 * noise).clamp(-1, 1))


def test_stacked_frames_are_the_newest_and_begin_anew_with_an_episode() -> None:
    frames = [torch.full((2, 3, 4, 4), number, dtype=torch.uint8) for number in range(6)]
    stack, memory = FrameStack(3), None
    for number, frame in enumerate(frames):
        init = torch.tensor([[number == 0], [number in (0, 4)]])
        memory = stack.see(TensorDict({"pixels": frame, "is_init": init}, batch_size=[2]), memory)
    assert memory is not None
    assert memory["frames"][:, ::3, 0, 0].tolist() == [[3, 4, 5], [4, 4, 5]]
    begun = stack.before(torch.stack(frames[:3], 1))
    assert begun["frames"][:, ::3, 0, 0].tolist() == [[0, 0, 1]] * 2
    assert stack.before(frames[2][:, None])["frames"].unique().tolist() == [2]


def test_updates_that_are_not_finite_change_nothing_and_ten_of_them_end_the_run() -> None:
    driver, bad = agent(), batch()
    bad["next", "reward"][2, 0] = torch.inf
    before = copy.deepcopy(driver.state_dict())
    for update in range(9):
        assert driver.learn(Rows(bad), update)["agent/skipped"] == 1.0
    assert not changed(before, driver.state_dict()) & {"critic.encoder", "critic.q"}
    with pytest.raises(FloatingPointError, match="10 agent updates in a row were not finite, the last is number 9"):
        driver.learn(Rows(bad), 9)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\) \(got 1.0\)"),
        ({"tau": 0.0}, r"tau must be in \(0, 1\] \(got 0.0\)"),
        ({"std_clip": 0.0}, r"std_clip must be > 0 \(got 0.0\)"),
        ({"n_step": 0}, r"n_step must be >= 1 \(got 0\)"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        config(**changes)


def test_choices_and_frames_that_are_too_small_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="DrQ-v2 needs continuous actions"):
        config().build(env_spec=replace(WORLD, discrete=True), seeds=Seeds(0), device="cpu")
    with pytest.raises(ValueError, match=r"strides=\[2, 2, 1, 1\] leave nothing"):
        config().build(env_spec=replace(WORLD, image=8), seeds=Seeds(0), device="cpu")


def test_the_published_sizes_are_those_of_the_paper() -> None:
    found: Any = make(
        __import__("omegaconf").OmegaConf.to_container(compose("train", ["agent=drqv2"]).agent), "agent", trusted=True
    )
    driver = found.build(env_spec=replace(WORLD, image=64, action_dim=4), seeds=Seeds(0), device="cpu")
    assert driver.critic["encoder"].width == 20_000
    assert [p.shape[0] for p in driver.actor.bottleneck[0].parameters()] == [50, 50]
    assert driver.actor.head[0].out_features == driver.critic["q"].heads[1][2].out_features == 1024
