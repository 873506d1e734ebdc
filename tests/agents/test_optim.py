from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from worldmodel.optim import OptimConfig, Optimizer


def config(**changes: float) -> OptimConfig:
    values = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": math.inf,
        "warmup_steps": 0,
    }
    return OptimConfig(**{**values, **changes})


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return {
        "w": nn.Parameter(torch.randn(3, 5, generator=generator)),
        "b": nn.Parameter(torch.randn(3, generator=generator)),
        "unused": nn.Parameter(torch.ones(2)),
    }


def loss(named: dict[str, nn.Parameter], step: int) -> torch.Tensor:
    return ((named["w"].sum(1) + named["b"] - step) ** 2).sum()


def run(named: dict[str, nn.Parameter], optim: Optimizer, steps: range) -> None:
    for step in steps:
        optim.step(loss(named, step))


def test_equals_plain_adamw() -> None:
    ours, theirs = parameters(), parameters()
    run(ours, config(weight_decay=0.3).build(ours), range(7))
    groups = [{"params": [theirs["w"]], "weight_decay": 0.3}, {"params": [theirs["b"]], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99), eps=1e-8, fused=False, foreach=False)
    for step in range(7):
        plain.zero_grad()
        loss(theirs, step).backward()
        plain.step()
    for name in ("w", "b", "unused"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_clips_all_gradients_together() -> None:
    named = parameters()
    optim = config(max_grad_norm=0.5, beta1=0.0).build(named)
    norm = optim.step(loss(named, 0))
    assert norm is not None and norm > 0.5
    moments = [
        t for name, t in optim.state_dict().items() if name.endswith(".exp_avg")
    ]  # beta1 0: the clipped gradient
    assert math.isclose(float(sum((m**2).sum() for m in moments)) ** 0.5, 0.5, rel_tol=1e-4)


def test_warms_up_linearly() -> None:
    named = parameters()
    optim = config(warmup_steps=4).build(named)
    rates = []
    for step in range(6):
        rates.append(optim.lr)
        optim.step(loss(named, step))
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    named = parameters()
    optim = config().build(named)
    run(named, optim, range(2))
    before = {name: t.clone() for name, t in [*optim.state_dict().items(), *named.items()]}
    assert optim.step(named["w"].sum() * math.nan) is None
    assert optim.step(named["w"].sum() + math.inf) is None  # the gradient alone is finite here
    after = dict([*optim.state_dict().items(), *named.items()])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert named["w"].grad is None


def test_saved_and_resumed_equals_uninterrupted_bit_for_bit() -> None:
    straight = parameters()
    run(straight, config(warmup_steps=5).build(straight), range(6))
    first = parameters()
    optim = config(warmup_steps=5).build(first)
    run(first, optim, range(3))
    saved = {name: t.clone() for name, t in optim.state_dict().items()}
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    resumed = config(warmup_steps=5).build(second)
    resumed.load_state_dict(saved)
    run(second, resumed, range(3, 6))
    assert all(torch.equal(straight[name], second[name]) for name in straight)


def test_foreign_state_is_refused_and_changes_nothing() -> None:
    named = parameters()
    optim = config().build(named)
    good = {name: t.clone() for name, t in optim.state_dict().items()}
    with pytest.raises(ValueError, match=r"w\.exp_avg"):
        optim.load_state_dict({name: t for name, t in good.items() if name != "w.exp_avg"})
    with pytest.raises(ValueError, match="must be"):
        optim.load_state_dict({**good, "w.exp_avg": torch.ones(5, 3), "updates": torch.tensor(9)})
    assert optim.updates == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("beta1", 1.0), ("max_grad_norm", -1.0), ("warmup_steps", -1), ("eps", math.nan)],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        config(**{field: value})
