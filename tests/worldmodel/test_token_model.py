"""The token model: its string, its labels, its heads, and what may and may not be learned from a clip."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.sequence import IGNORED, layout_ids, layout_labels, string_of_ids
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.twohot import symlog

LAYOUT = TokenLayout(context=2, codes_context=5, codes_future=3, vocab_context=11, vocab_future=7)
TRANSFORMER = TransformerConfig(
    hidden=24, layers=2, heads=2, mlp=29, positions=64, rope_theta=1e4, norm_eps=1e-6, dropout=0.0
)
SCALAR = HeadConfig(action="slot", reward="scalar", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
TWOHOT = HeadConfig(action="slot", reward="twohot", bins=13, low=-2.0, high=4.0, width=17, action_recon=0.0)
ROWS, FRAMES, ACTIONS, FEATURE = 3, 4, 2, 6


def make(heads: HeadConfig = SCALAR, *, continues: bool = False, dropout: float = 0.0, seed: int = 0) -> TokenModel:
    return TokenModel(
        dataclasses.replace(TRANSFORMER, dropout=dropout),
        LAYOUT,
        condition_dim=ACTIONS,
        heads=heads,
        feature_dim=FEATURE if heads.reward == "twohot" else 0,
        continues=continues,
        generator=torch.Generator().manual_seed(seed),
    )


def codes(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Context codes, future codes, actions."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(11, (ROWS, 10), generator=generator),
        torch.randint(7, (ROWS, FRAMES, 3), generator=generator),
        torch.randn(ROWS, FRAMES, ACTIONS, generator=generator),
    )


def clip(**changes: Tensor) -> dict:
    _, _, actions = codes()
    arguments = {
        "actions_BFA": actions,
        "features_BFE": None,
        "reward_BF": torch.linspace(-3, 5, ROWS * FRAMES).view(ROWS, FRAMES),
        "reward_mask_BF": torch.ones(ROWS, FRAMES, dtype=torch.bool),
        "continue_BF": torch.ones(ROWS, FRAMES),
        "num_observed": 0,
        "generator": torch.Generator().manual_seed(0),
    }
    return {**arguments, **changes}


def test_the_string_has_codes_offsets_and_separators_in_their_places():
    context = torch.arange(10).expand(1, 10)
    ids = layout_ids(context, torch.arange(6).view(1, 2, 3), LAYOUT)
    scf, sdf = 18, 19
    assert ids.tolist() == [[0, 1, 2, 3, 4, scf, 5, 6, 7, 8, 9, sdf, 11, 12, 13, sdf, 14, 15, 16]]
    assert torch.equal(ids, layout_ids(context.view(1, 2, 5), torch.arange(6).view(1, 2, 3), LAYOUT))
    assert torch.equal(ids, string_of_ids(context, torch.arange(6).view(1, 2, 3) + 11, LAYOUT))
    assert layout_ids(context, torch.empty(1, 0, 3, dtype=torch.int64), LAYOUT).shape == (1, LAYOUT.prelude)


def test_codes_that_do_not_fit_the_layout_are_refused():
    context, future, _ = codes()
    with pytest.raises(ValueError, match=r"context codes \(3, 9\) must be 10 = 2 frames x 5 codes"):
        layout_ids(context[:, :9], future, LAYOUT)
    with pytest.raises(ValueError, match=r"future ids \(3, 4, 2\) must be \[3, F, 3\]"):
        layout_ids(context, future[..., :2], LAYOUT)


@pytest.mark.parametrize("num_observed", [0, 1, 3])
def test_labels_start_behind_the_separator_of_the_first_frame_to_predict(num_observed):
    context, future, _ = codes()
    ids = layout_ids(context, future, LAYOUT)
    labels = layout_labels(ids, LAYOUT, num_observed=num_observed)
    first = LAYOUT.sdf_position(num_observed) + 1
    assert (labels[:, :first] == IGNORED).all()
    assert torch.equal(labels[:, first:], ids[:, first:])


def test_code_loss_is_the_cross_entropy_of_the_supervised_next_ids():
    model, (context, future, actions) = make(), codes()
    ids = layout_ids(context, future, LAYOUT)
    labels = layout_labels(ids, LAYOUT, num_observed=1)
    hidden = model.hidden_states(ids, actions)
    wanted = F.cross_entropy(model.llm.logits(hidden)[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)
    torch.testing.assert_close(model.code_loss(hidden, labels), wanted)
    first = LAYOUT.sdf_position(1)
    torch.testing.assert_close(model.code_loss(hidden[:, first:], labels[:, first:]), wanted)


def test_an_action_acts_from_its_own_separator_on_and_a_fresh_model_ignores_it():
    model, (context, future, actions) = make(), codes()
    ids = layout_ids(context, future, LAYOUT)
    assert torch.equal(model.hidden_states(ids, actions), model.hidden_states(ids, None))
    torch.nn.init.normal_(model.action_linear.weight, generator=torch.Generator().manual_seed(1))
    for frame in range(FRAMES):
        changed = actions.clone()
        changed[:, frame] += 1
        moved = (model.hidden_states(ids, changed) != model.hidden_states(ids, actions)).any(-1)
        assert not moved[:, : LAYOUT.sdf_position(frame)].any()
        assert moved[:, LAYOUT.sdf_position(frame) :].all()
    with pytest.raises(ValueError, match=r"actions \(3, 3, 2\) must be \(3, 4, 2\)"):
        model.hidden_states(ids, actions[:, 1:])


def test_frame_hidden_is_read_at_the_last_code_of_each_frame():
    future = torch.arange(LAYOUT.prelude, LAYOUT.length(FRAMES)).view(1, -1, 1)
    assert make().frame_hidden(future).flatten().tolist() == [LAYOUT.reward_position(j) for j in range(FRAMES)]


def test_an_uncertain_reward_is_its_expectation_in_environment_units():
    """Half of 0 and half of 20 is 10; under symlog it would be 3.6."""
    model = make(TWOHOT)
    torch.nn.init.zeros_(model.reward_head[-1].weight)
    optimizer = torch.optim.Adam([model.reward_head[-1].bias], lr=0.3)
    hidden, feature, reward = torch.zeros(2, 24), torch.zeros(2, FEATURE), torch.tensor([0.0, 20.0])
    for _ in range(300):
        optimizer.zero_grad()
        model.reward_loss(hidden, reward, feature).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.reward(hidden, feature), torch.full((2,), 10.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("heads", [SCALAR, TWOHOT], ids=["scalar", "twohot"])
def test_reward_heads_learn_rewards_in_environment_units(heads):
    model, generator = make(heads), torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, FRAMES, 24, generator=generator)
    feature = torch.randn(ROWS, FRAMES, FEATURE, generator=generator) if heads.reward == "twohot" else None
    reward = torch.linspace(-3, 30, ROWS * FRAMES).view(ROWS, FRAMES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model.reward_loss(hidden, reward, feature).mean().backward()
        optimizer.step()
    assert model.reward_loss(hidden, reward, feature).shape == (ROWS, FRAMES)
    torch.testing.assert_close(model.reward(hidden, feature), reward, atol=0.5, rtol=0.1)


def test_a_fresh_two_hot_head_predicts_nothing_much_and_reads_its_feature_later():
    model = make(TWOHOT)
    hidden, feature = torch.randn(2, 24), torch.randn(2, FEATURE)
    torch.testing.assert_close(model.reward(hidden, feature), torch.zeros(2), atol=0.2, rtol=0)
    torch.nn.init.normal_(model.reward_head[-1].weight, generator=torch.Generator().manual_seed(0))
    assert not torch.isclose(model.reward(hidden, feature), model.reward(hidden, feature + 1)).any()


def test_unknown_rewards_weigh_nothing_whatever_stands_there():
    model, (context, future, _) = make(), codes()
    known = torch.ones(ROWS, FRAMES, dtype=torch.bool)
    known[0, 0] = known[2, 1] = False
    holes = clip()["reward_BF"].masked_fill(~known, 1e6)
    with_holes = model.losses(context, future, **clip(reward_BF=holes, reward_mask_BF=known))["reward"]
    with_holes.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        ids = layout_ids(context, future, LAYOUT)
        hidden = model.frame_hidden(model.hidden_states(ids, clip()["actions_BFA"])[:, LAYOUT.prelude :])
        wanted = model.reward_loss(hidden, clip()["reward_BF"])[known].mean()
    torch.testing.assert_close(with_holes.detach(), wanted)


def test_there_are_as_many_losses_as_heads():
    context, future, _ = codes()
    none = dataclasses.replace(SCALAR, reward="none")
    assert set(make(none).losses(context, future, **clip())) == {"codes"}
    everything = make(dataclasses.replace(SCALAR, action_recon=0.5), continues=True)
    losses = everything.losses(context, future, **clip())
    assert set(losses) == {"codes", "reward", "continue", "action_recon"}
    hidden = everything.hidden_states(layout_ids(context, future, LAYOUT), clip()["actions_BFA"])
    wanted = 0.5 * everything.action_recon_loss(hidden[:, LAYOUT.prelude :], clip()["actions_BFA"])
    torch.testing.assert_close(losses["action_recon"], wanted)
    with pytest.raises(ValueError, match="no reward head"):
        make(none).reward(torch.zeros(3, 24))


def test_continuation_is_one_without_a_head_and_learnable_with_it():
    hidden = torch.randn(ROWS, FRAMES, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make().continues(hidden), torch.ones(ROWS, FRAMES))
    model, goes_on = make(continues=True), (hidden[..., 0] > 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        model.continue_loss(hidden, goes_on).mean().backward()
        optimizer.step()
    assert torch.equal(model.continues(hidden).round(), goes_on)


def test_dropout_is_drawn_from_the_generator_alone():
    model, (context, future, actions) = make(dropout=0.4).train(), codes()
    ids = layout_ids(context, future, LAYOUT)
    before = torch.get_rng_state()
    first, again, other = (
        model.hidden_states(ids, actions, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"dropout is 0\.4 in train mode"):
        model.hidden_states(ids, actions)
    model.eval()
    assert torch.equal(
        model.hidden_states(ids, actions), model.hidden_states(ids, actions, generator=torch.Generator())
    )


def test_a_model_is_made_from_its_generator_alone():
    before = torch.get_rng_state()
    first, again, other = make(TWOHOT), make(TWOHOT), make(TWOHOT, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.llm.lm_head.weight, other.llm.lm_head.weight)
    assert float(first.llm.lm_head.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("target", "learned"), [("arriving", True), ("published", False)])
def test_the_reward_of_a_frame_is_the_one_received_on_arriving_there(target, learned):
    """A world whose reward IS the action taken: only the aligned target can be predicted; a shifted one is noise."""
    generator, model = torch.Generator().manual_seed(0), make()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        action_BTA = torch.rand(16, LAYOUT.context + FRAMES, ACTIONS, generator=generator) * 4 - 2
        reward_BT = action_BTA[..., 0]  # of the transition that the action causes
        actions_BFA = model.into_frames(action_BTA, FRAMES)
        first = LAYOUT.context - (1 if target == "arriving" else 0)  # published: one row late (QUIRK 14)
        reward_BF = reward_BT[:, first : first + FRAMES]
        context = torch.randint(11, (16, 10), generator=generator)
        future = torch.randint(7, (16, FRAMES, 3), generator=generator)
        read_BND = model.hidden_states(layout_ids(context, future, LAYOUT), actions_BFA)
        hidden = model.frame_hidden(read_BND[:, LAYOUT.prelude :])
        loss = model.reward_loss(hidden, reward_BF).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach() / symlog(reward_BF).var()))
    unexplained = sum(losses[-20:]) / 20
    assert unexplained < 0.1 if learned else unexplained > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "loud"}, "reward must be none, scalar or twohot"),
        ({"bins": 3}, "bins must be 0 with reward=scalar"),
        ({"reward": "twohot", "bins": 1, "width": 3, "high": 1.0}, "bins must be at least 2"),
        ({"reward": "twohot", "bins": 5, "width": 0, "high": 1.0}, "width must be at least 1"),
        ({"reward": "twohot", "bins": 5, "width": 3, "high": 0.0}, "low must be below high"),
        ({"action_recon": -1.0}, "action_recon must be >= 0"),
    ],
)
def test_head_configs_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SCALAR, **change)


@pytest.mark.parametrize("change", [{"hidden": 25}, {"layers": 0}, {"rope_theta": 0.0}, {"dropout": 1.0}])
def test_transformer_configs_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} must be"):
        dataclasses.replace(TRANSFORMER, **change)


def test_a_string_longer_than_the_positions_is_refused():
    model = make()
    with pytest.raises(ValueError, match="a sequence of 65 tokens does not fit the transformer's 64 positions"):
        model.llm(torch.zeros(1, 65, 24))
