from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.modules import PercentileValueNorm
from torchrl.objectives.value.functional import vec_td_lambda_return_estimate

from agents.returns import PercentileNormConfig, StdNormConfig, lambda_returns


def trajectory(rows: int = 3, steps: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    reward, value, discount = (torch.randn(rows, steps, generator=generator, dtype=torch.float64) for _ in range(3))
    return reward, value, discount.sigmoid()


def by_definition(reward: torch.Tensor, value: torch.Tensor, discount: torch.Tensor, lambda_: float) -> torch.Tensor:
    """The lambda-weighted mixture of all n-step returns, each summed from its start."""
    rows, steps = reward.shape
    out = torch.zeros_like(reward)
    for b in range(rows):
        for t in range(steps):
            for n in range(1, steps - t + 1):
                n_step, alive = 0.0, 1.0
                for k in range(t, t + n):
                    n_step += alive * reward[b, k]
                    alive *= discount[b, k]
                last = n == steps - t
                weight = lambda_ ** (n - 1) * (1.0 if last else 1 - lambda_)
                out[b, t] += weight * (n_step + alive * value[b, t + n - 1])
    return out


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_equals_its_quadratic_definition(lambda_: float) -> None:
    reward, value, discount = trajectory()
    expected = by_definition(reward, value, discount, lambda_)
    torch.testing.assert_close(lambda_returns(reward, value, discount, lambda_), expected, atol=1e-10, rtol=0)


def test_equals_torchrl() -> None:
    reward, value, _ = trajectory()
    ended = torch.zeros(3, 7, 1, dtype=torch.bool)
    ended[1, 4] = True
    gamma, lambda_ = torch.tensor([0.9, 0.95], dtype=torch.float64)  # as plain numbers they would become float32 inside
    steps = value[..., None], reward[..., None]
    theirs = vec_td_lambda_return_estimate(gamma, lambda_, *steps, done=ended, terminated=ended)
    ours = lambda_returns(reward, value, 0.9 * (~ended[..., 0]).double(), 0.95)
    torch.testing.assert_close(ours, theirs[..., 0], atol=1e-10, rtol=0)


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo() -> None:
    reward, value, discount = trajectory()
    torch.testing.assert_close(lambda_returns(reward, value, discount, 0.0), reward + discount * value)
    alive = torch.cat([torch.ones(3, 1), discount[:, :-1]], 1).cumprod(1)
    whole = (alive * reward).sum(1) + alive[:, -1] * discount[:, -1] * value[:, -1]
    torch.testing.assert_close(lambda_returns(reward, value, discount, 1.0)[:, 0], whole)


def test_an_end_cuts_all_that_is_behind_it() -> None:
    reward, value, discount = trajectory()
    discount[:, 3] = 0
    before = lambda_returns(reward, value, discount, 0.95)
    reward[:, 4:], value[:, 3:] = 1e6, -1e6
    after = lambda_returns(reward, value, discount, 0.95)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_no_gradient_flows_and_half_precision_is_lifted() -> None:
    value = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    out = lambda_returns(torch.ones(2, 3), value, torch.ones(2, 3), 0.5)
    assert out.dtype == torch.float32
    assert not out.requires_grad


def test_wrong_shapes_and_lambda_are_named() -> None:
    good = torch.ones(3, 7)
    with pytest.raises(ValueError, match=r"value \(3, 6\)"):
        lambda_returns(good, good[:, 1:], good, 0.9)
    with pytest.raises(ValueError, match=r"lambda_ must be .*1\.5"):
        lambda_returns(good, good, good, 1.5)


def test_return_range_is_torchrls_without_its_start_at_zero() -> None:
    ours = PercentileNormConfig(low=0.05, high=0.95, rate=0.1, floor=1e-3).build()
    theirs = PercentileValueNorm(quantiles=(0.05, 0.95), rate=0.1, min_scale=1e-3)
    generator = torch.Generator().manual_seed(2)
    for n in range(1, 6):
        returns = 30 * torch.randn(5, 9, generator=generator)
        theirs.update(returns[..., None])
        scaled = ours(returns, torch.ones(5, 9))
        expected = theirs.scale()[0] / (1 - 0.9**n)
        torch.testing.assert_close(ours.scale(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(scaled, 1 / expected.expand(5, 9))


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 1e4), floor=st.floats(1e-3, 10))
def test_return_range_is_equivariant_above_its_floor(factor: float, floor: float) -> None:
    returns = torch.linspace(-1, 1, 33).reshape(3, 11)
    normaliser = PercentileNormConfig(low=0.05, high=0.95, rate=0.5, floor=floor).build()
    normaliser(factor * returns, returns)
    torch.testing.assert_close(normaliser.scale(), torch.tensor(max(floor, 1.8 * factor)), rtol=1e-4, atol=0)


def test_advantage_spread_brings_to_unit_spread_and_clips() -> None:
    normaliser = StdNormConfig(rate=0.1, floor=1e-3, clip=4.0).build()
    advantage = 50 * torch.randn(5, 200, generator=torch.Generator().manual_seed(3))
    advantage[0, 0] = 1e4
    scaled = normaliser(advantage, advantage)
    torch.testing.assert_close(scaled[1:], advantage[1:] / advantage.std(correction=0))
    assert scaled.max() == 4.0
    assert normaliser(advantage, 0 * advantage).abs().max() == 0


@pytest.mark.parametrize(
    "config",
    [
        PercentileNormConfig(low=0.05, high=0.95, rate=0.1, floor=1.0),
        StdNormConfig(rate=0.1, floor=1e-3, clip=4.0),
    ],
    ids=lambda config: type(config).__name__,
)
def test_normalisers_resume_exactly(config: PercentileNormConfig | StdNormConfig) -> None:
    first, second = config.build(), config.build()
    batches = [10 * torch.randn(3, 5, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    for batch in batches[:2]:
        first(batch, batch)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batches[2], batches[2]), second(batches[2], batches[2]))
    assert torch.equal(first.scale(), second.scale())
