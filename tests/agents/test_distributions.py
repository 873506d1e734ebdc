from __future__ import annotations

import math

import pytest
import torch
import torchrl.modules  # noqa: F401  (importing it switches torch's validation off: our checks must hold nevertheless)
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.modules import SymExpTwoHot

from agents.distributions import BoundedNormal, OneHot, ScheduledStdConfig
from worldmodel.twohot import TwoHot, symexp, symlog

INSIDE = st.floats(-4e8, 4e8, width=32)
ANY = st.floats(allow_nan=False, width=32)
PUBLISHED = TwoHot(low=-20.0, high=20.0, bins=255)


@settings(max_examples=100, deadline=None)
@given(a=st.floats(-1e30, 1e30), b=st.floats(-1e30, 1e30))
def test_symlog_is_odd_monotone_and_inverted_by_symexp(a: float, b: float) -> None:
    x = torch.tensor([a, b, -a], dtype=torch.float64)
    y = symlog(x)
    assert y[2] == -y[0]
    assert (a <= b) == bool(y[0] <= y[1]) or y[0] == y[1]
    torch.testing.assert_close(symexp(y), x, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(value=ANY)
def test_two_hot_has_at_most_two_adjacent_weights_that_sum_to_one(value: float) -> None:
    weights = PUBLISHED.encode(torch.tensor([value]))[0]
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    used = torch.nonzero(weights)[:, 0]
    assert len(used) == 1 or (len(used) == 2 and used[1] == used[0] + 1)


@settings(max_examples=200, deadline=None)
@given(value=INSIDE)
def test_decoding_inverts_encoding(value: float) -> None:
    back = PUBLISHED.decode(PUBLISHED.encode(torch.tensor([value])).log())
    assert float(back) == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_bins_are_exact_and_what_is_outside_is_clamped() -> None:
    bins = PUBLISHED.bins
    assert torch.equal(PUBLISHED.encode(bins), torch.eye(255))
    assert torch.equal(bins, -bins.flip(0))
    far = torch.tensor([-1e30, 1e30, -math.inf, math.inf])
    assert torch.equal(PUBLISHED.encode(far), torch.eye(255)[[0, -1, 0, -1]])


def test_two_hot_equals_torchrls() -> None:
    theirs = SymExpTwoHot(num_bins=255)
    generator = torch.Generator().manual_seed(4)
    values = symexp(30 * torch.rand(3, 7, generator=generator) - 15)
    logits = torch.randn(3, 7, 255, generator=generator)
    torch.testing.assert_close(PUBLISHED.bins, theirs.bins)
    torch.testing.assert_close(PUBLISHED.encode(values), theirs.encode(values), atol=2e-5, rtol=0)
    torch.testing.assert_close(PUBLISHED.loss(logits, values), theirs.loss(logits, values))
    torch.testing.assert_close(PUBLISHED.decode(logits), theirs.decode(logits), rtol=1e-4, atol=1.0)


def test_the_loss_is_least_at_the_target_and_sends_it_no_gradient() -> None:
    target = torch.tensor([3.7], requires_grad=True)
    best = PUBLISHED.encode(target.detach()).clamp_min(1e-20).log()
    worse = PUBLISHED.encode(torch.tensor([30.0])).clamp_min(1e-20).log().requires_grad_()
    assert PUBLISHED.loss(best, target) < PUBLISHED.loss(worse, target)
    PUBLISHED.loss(worse, target).sum().backward()
    assert target.grad is None
    assert worse.grad is not None


@pytest.mark.parametrize("limit", [8.0, 20.0])
def test_both_ways_to_start_have_the_value_zero(limit: float) -> None:
    twohot = TwoHot(low=-limit, high=limit, bins=101)
    assert float(twohot.decode(torch.zeros(101))) == 0.0
    peaked = twohot.peak_at_zero()
    assert float(twohot.decode(peaked)) == 0.0
    assert torch.softmax(peaked, -1)[twohot.bins.abs() > 5].sum() < 1e-3


def test_two_hot_keeps_the_mean_and_clamps_also_between_bins_that_are_not_symmetric() -> None:
    twohot, value = TwoHot(low=-2.0, high=4.0, bins=13), torch.tensor([-9.0, -6.0, -0.3, 0.0, 3.99, 53.0, 70.0])
    weights = twohot.encode(value)
    clamped = value.clamp(float(twohot.bins[0]), float(twohot.bins[-1]))
    torch.testing.assert_close(weights @ twohot.bins, clamped)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(twohot.decode((weights + 1e-9).log()), clamped, atol=1e-3, rtol=1e-3)


def test_two_hot_refuses_bins_without_a_zero() -> None:
    with pytest.raises(ValueError, match=r"bins must be .*odd.*100"):
        TwoHot(low=-20.0, high=20.0, bins=100)


def policy(std: float) -> BoundedNormal:
    mean = torch.tensor([-1.0, -0.6, 0.0, 0.3, 0.98])[:, None]
    return BoundedNormal(mean, torch.full_like(mean, std))


@pytest.mark.parametrize("std", [0.1, 0.25, 0.8, 1.0])
def test_bounded_density_integrates_to_one_and_gives_the_entropy(std: float) -> None:
    x = torch.linspace(-1, 1, 20001)
    log_density = policy(std).log_prob(x[None, :, None].expand(5, -1, 1).transpose(0, 1)).T  # [5, x]
    density = log_density.exp()
    torch.testing.assert_close(torch.trapezoid(density, x), torch.ones(5), atol=2e-4, rtol=0)
    entropy = -torch.trapezoid(density * log_density, x)
    torch.testing.assert_close(policy(std).entropy(), entropy, atol=1e-3, rtol=0)
    assert (policy(std).entropy() <= math.log(2) + 1e-6).all()


@pytest.mark.parametrize("std", [0.1, 0.8])
def test_bounded_samples_have_the_density_that_is_claimed(std: float) -> None:
    noise = torch.randn(40000, 5, 1, generator=torch.Generator().manual_seed(5))
    actions = policy(std).sample(noise)
    assert actions.abs().max() <= 1
    edges = torch.linspace(-1, 1, 9)
    fine = torch.linspace(-1, 1, 8 * 500 + 1)
    density = policy(std).log_prob(fine[:, None, None].expand(-1, 5, 1)).exp()  # [x, 5]
    for row in range(5):
        share = torch.histogram(actions[:, row, 0], edges).hist / 40000
        expected = torch.stack(
            [torch.trapezoid(density[i : i + 501, row], fine[i : i + 501]) for i in range(0, 4000, 500)]
        )
        torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


def test_log_prob_and_entropy_add_up_over_action_dimensions() -> None:
    mean, std = torch.tensor([[0.1, -0.5, 0.9]]), torch.tensor([[0.2, 0.5, 1.0]])
    action = torch.tensor([[0.3, -0.9, 0.2]])
    singles = [BoundedNormal(mean[:, i : i + 1], std[:, i : i + 1]) for i in range(3)]
    whole = BoundedNormal(mean, std)
    torch.testing.assert_close(
        whole.log_prob(action), sum(s.log_prob(action[:, i : i + 1]) for i, s in enumerate(singles))
    )
    torch.testing.assert_close(whole.entropy(), sum(s.entropy() for s in singles))


@settings(max_examples=100, deadline=None)
@given(raw=st.floats(-1e4, 1e4), std=st.floats(0.05, 1.0), noise=st.floats(-30, 30))
def test_every_finite_input_gives_a_finite_action_in_bounds(raw: float, std: float, noise: float) -> None:
    bounded = BoundedNormal(torch.tensor([[raw]]).tanh(), torch.tensor([[std]]))
    action = bounded.sample(torch.tensor([[noise]]))
    assert -1 <= float(action) <= 1
    assert bool(torch.isfinite(bounded.log_prob(action) + bounded.entropy()))


def test_one_hot_frequencies_log_prob_and_entropy() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 50.0]])
    chosen = OneHot(logits, unimix=0.1)
    probability = 0.9 * torch.softmax(logits, -1) + 0.1 / 3
    eye = torch.eye(3)[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(chosen.log_prob(eye).T.exp(), probability)
    torch.testing.assert_close(chosen.entropy(), -(probability * probability.log()).sum(-1))
    noise = torch.randn(40000, 2, 3, generator=torch.Generator().manual_seed(6))
    drawn = chosen.sample(noise)
    assert torch.equal(drawn.sum(-1), torch.ones(40000, 2))
    torch.testing.assert_close(drawn.mean(0), probability, atol=0.01, rtol=0)
    assert torch.equal(chosen.mode, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_policies_that_are_not_finite_raise_although_torchrl_is_loaded(bad: float) -> None:
    assert torch.distributions.Distribution._validate_args is False
    with pytest.raises(FloatingPointError, match="logits must be finite"):
        OneHot(torch.tensor([[0.0, bad]]), unimix=0.01).check()
    with pytest.raises(FloatingPointError, match="mean must be finite"):
        BoundedNormal(torch.tensor([[bad]]), torch.ones(1, 1)).check()
    with pytest.raises(FloatingPointError, match="std must be finite"):
        BoundedNormal(torch.zeros(1, 1), torch.tensor([[bad]])).check()


def test_the_schedule_waits_falls_and_stays() -> None:
    std = ScheduledStdConfig(start=0.8, end=0.2, after=100, decisions=300)
    assert [std.at(n) for n in (0, 100, 250, 400, 9999)] == pytest.approx([0.8, 0.8, 0.5, 0.2, 0.2])
