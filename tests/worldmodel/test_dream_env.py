"""A dream as a TorchRL environment: static specs, the bits of `Dream.rollout`, and nothing of the model registered."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs
from torchrl.modules import CEMPlanner, ValueOperator
from torchrl.objectives import DreamerActorLoss

from tests.envs.worlds import toy
from tests.residents.conv import ConvModelConfig
from tests.worldmodel.test_dream import WORDS, actions
from tests.worldmodel.test_ivideogpt import SIDE, A, B, build, cut
from tests.worldmodel.test_ivideogpt import Q as PROPRIO
from tests.worldmodel.test_oracle import clip_of, model_of
from worldmodel.dream.env import DreamEnv
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import EnvSpec, ModelSpec

HORIZON, STREAM = 4, "dream/env"
ENV_SPEC = EnvSpec(image=SIDE, action_dim=A, discrete=False, action_repeat=1, decisions=9, terminates=False)


@pytest.fixture(scope="module", params=WORDS.values(), ids=WORDS)
def dream(request: pytest.FixtureRequest) -> Dream:
    return Dream(build(*request.param), seeds=Seeds(1))


@pytest.fixture(scope="module")
def small() -> Dream:
    return Dream(build(terminates=True), seeds=Seeds(1))


class Starts:
    """Other clips at every draw, the same ones at the same draw; remembers which were drawn."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.draws: list[int] = []

    def __call__(self, rows: int, draw: int) -> TensorDict:
        self.draws.append(draw)
        random, frames = Seeds(9).torch("clips", draw), self.spec.burn_in

        def u8(n: int) -> Tensor:
            return torch.randint(256, (rows, n, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)

        held = {
            "context": u8(self.spec.context_frames),
            "pixels": u8(frames),
            "action": torch.rand(rows, frames, A, generator=random) * 2 - 1,
            "proprio": torch.randn(rows, frames, PROPRIO, generator=random),
        }
        return TensorDict(held, batch_size=[rows])


def env_of(dream: Dream, **how: Any) -> DreamEnv:
    return DreamEnv(dream, ENV_SPEC, **{"horizon": HORIZON, "starts": Starts(dream.spec), "rows": B} | how)


def doing(plans: Tensor) -> Any:
    """The policy of a TorchRL rollout that takes these actions [..., H, A]."""
    coming = iter(plans.unbind(-2))
    return lambda td: td.set("action", next(coming))


def test_what_happens_is_what_the_specs_say(dream: Dream) -> None:
    env = env_of(dream, keys=("latent", "pixels", *dream.spec.latent))
    check_env_specs(env, seed=3)
    assert env.batch_locked and env.batch_size == torch.Size([B])
    reset = env.reset()
    assert set(reset.keys()) == {"dream", "continue", "done", "terminated", "truncated", "latent", "pixels"} | set(
        dream.spec.latent
    )
    assert torch.equal(torch.cat([reset[name] for name in dream.spec.latent], -1), reset["latent"])


@pytest.mark.parametrize("draw", [0, 5])
def test_it_is_the_dream_s_own_rollout_bit_for_bit(dream: Dream, draw: int) -> None:
    keys, action_BHA = ("latent", "pixels"), actions(HORIZON)
    env = env_of(dream, keys=keys)
    env.draw = draw
    found = env.rollout(HORIZON, doing(action_BHA))
    start = dream.encode(Starts(dream.spec)(B, draw))
    wanted = dream.rollout(fixed_actions(action_BHA), start, 0, HORIZON, stream=STREAM, draw=draw, keys=keys).path
    for key in ("latent", "pixels", "action", *(("next", key) for key in (*keys, "reward", "continue"))):
        assert torch.equal(found[key], wanted[key]), key
    other = dream.rollout(fixed_actions(action_BHA), start, 0, HORIZON, stream=STREAM, draw=draw + 1).path
    assert not torch.equal(found["next", "latent"], other["next", "latent"])


def test_it_is_cut_at_the_horizon_and_ends_are_soft(small: Dream) -> None:
    found = env_of(small).rollout(2 * HORIZON + 1, break_when_any_done=False)["next"]
    assert not found["terminated"].any() and torch.equal(found["done"], found["truncated"])
    assert found["truncated"][..., 0].tolist() == [[False, False, False, True] * 2 + [False]] * B
    assert ((found["continue"] > 0) & (found["continue"] < 1)).all()


def act(latent: Tensor) -> Tensor:
    return latent[..., :A].sin()


POLICY = TensorDictModule(act, in_keys=["latent"], out_keys=["action"])


def collected(env: DreamEnv, dreams: int) -> TensorDict:
    collector = Collector(env, POLICY, frames_per_batch=dreams * HORIZON * B, total_frames=dreams * HORIZON * B)
    (data,) = [batch.clone() for batch in collector]
    return data


def test_what_a_policy_says_beside_its_action_is_kept(small: Dream) -> None:
    policy = TensorDictModule(
        lambda latent: (act(latent), latent.sum(-1)), in_keys=["latent"], out_keys=["action", "log_prob"]
    )
    found = env_of(small).rollout(HORIZON, policy)
    assert torch.equal(found["log_prob"], found["latent"].sum(-1)) and found["log_prob"].shape == (B, HORIZON)


def test_a_collector_put_back_to_a_draw_gets_the_same_bits(small: Dream) -> None:
    whole, again = env_of(small), env_of(small)
    data = collected(whole, 4)
    again.draw = 2
    rest = collected(again, 2)
    for key in ("latent", "action", ("next", "latent"), ("next", "reward"), ("next", "dream", "wm", "codes")):
        assert torch.equal(data[:, 2 * HORIZON :][key], rest[key]), key
    assert not torch.equal(data[:, :HORIZON]["latent"], data[:, HORIZON : 2 * HORIZON]["latent"])


def test_a_collector_reads_a_start_once_and_then_only_what_is_new(
    small: Dream, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend, read = KVCache.extend, []

    def reading(cache: KVCache, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> Any:
        read.append((layer == 0) * len(k_BHTC) * k_BHTC.shape[2])
        return extend(cache, layer, k_BHTC, v_BHTC)

    monkeypatch.setattr(KVCache, "extend", reading)
    env, layout = env_of(small, keys=("latent", "pixels")), small.model.layout
    starts = env.session._starts
    collected(env, 3)
    begun, stepped = len(starts.draws), 3 * HORIZON
    assert starts.draws == list(range(begun)) and begun == 4, "the collector resets behind its last step too"
    assert sum(read) == B * (begun * layout.length(small.spec.burn_in) + stepped * layout.stride)


def test_a_seed_names_draws_of_its_own(small: Dream) -> None:
    env, found = env_of(small), {}
    for seed in (0, 1, 0):
        env.set_seed(seed)
        path = env.rollout(2, POLICY)
        assert seed not in found or torch.equal(path["next", "latent"], found[seed]["next", "latent"])
        found[seed] = path
    assert env.session._starts.draws == [0, 2**32, 0] and env.draw == 0
    assert not torch.equal(found[0]["latent"], found[1]["latent"])


# -- planners ----------------------------------------------------------------------------------------------------------


def test_from_given_states_of_any_batch_it_goes_on_as_the_dream_does(dream: Dream) -> None:
    env = env_of(dream, starts=None, rows=None)
    root = dream.encode(Starts(dream.spec)(B, 0))
    state = dream.step(root, actions(1)[:, 0]).select(*dream.spec.state)  # somewhere on the way
    check_env_specs(env, tensordict=env.reset(TensorDict({"dream": state}, [B]), set_state=True))
    assert not env.batch_locked and env.batch_size == torch.Size([])
    copies = 4
    many = state.repeat_interleave(copies, 0).reshape(B, copies)
    plans, env.draw = actions(2, rows=B * copies), 7
    begun = env.reset(TensorDict({"dream": many}, many.batch_size), set_state=True)
    found = env.rollout(2, doing(plans.unflatten(0, (B, copies))), tensordict=begun, auto_reset=False)
    wanted = dream.rollout(fixed_actions(plans), many.reshape(-1), 0, 2, stream=STREAM, draw=7).path
    for key in (("next", "latent"), ("next", "reward"), "action"):
        assert torch.equal(found[key].flatten(0, 1), wanted[key]), key


def test_torchrl_s_planner_plans_in_it_and_finds_what_pays(small: Dream) -> None:
    env = env_of(small, starts=None, rows=None)
    begun = env.reset(TensorDict({"dream": small.encode(Starts(small.spec)(B, 0))}, [B]), set_state=True)
    planner = CEMPlanner(env, planning_horizon=HORIZON, optim_steps=3, num_candidates=32, top_k=4)
    assert list(planner.parameters()) == []

    def worth(first_BA: Tensor) -> Tensor:
        return small.step(begun["dream"], first_BA, env.session.dream.generator(begun["dream"], stream=STREAM, draw=0))

    with seeded_globally(torch.Generator().manual_seed(0)):
        planned_BA = planner(begun.clone())["action"]
    assert planned_BA.shape == (B, A) and planned_BA.abs().max() <= 1
    assert worth(planned_BA)["reward"].mean() > worth(torch.zeros(B, A))["reward"].mean()


def test_a_model_without_codes_is_an_environment_too() -> None:
    model = ConvModelConfig(burn_in=2, max_frames=7, width=8, noise=0.5).build(env_spec=ENV_SPEC, seeds=Seeds(0))
    check_env_specs(env_of(Dream(model, seeds=Seeds(0)), horizon=5, keys=("hidden", "pixels")), seed=0)


def test_the_simulator_itself_is_an_environment_too_and_choices_are_made_one_hot() -> None:
    world = toy("reach-discrete", rows=2, snapshots=True)
    dream = Dream(model_of(world, "toy", "reach-discrete"), seeds=Seeds(0))
    starts = clip_of(world.reset()).set("action", torch.zeros(2, 1, 5))
    env = DreamEnv(dream, world.env_spec, horizon=3, keys=("state",), starts=lambda rows, draw: starts, rows=2)
    check_env_specs(env, seed=0)
    said = torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]])
    step = env.step(env.reset().set("action", said))
    assert step["action"].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    real = world.step(world.current().set("action", said))["next"]
    assert torch.equal(step["next", "reward"], real["reward"])


# -- what is not registered, what is refused ---------------------------------------------------------------------------


def test_whoever_holds_it_holds_nothing_of_the_model(small: Dream) -> None:
    env = env_of(small)
    assert list(env.parameters()) == list(env.buffers()) == [] and not env.state_dict()
    actor = TensorDictModule(nn.Linear(small.spec.latent_dim, A), in_keys=["latent"], out_keys=["action"])
    value = ValueOperator(nn.Linear(small.spec.latent_dim, 1), in_keys=["latent"])
    loss = DreamerActorLoss(actor, value, env)
    assert loss.model_based_env is env
    theirs = {id(tensor) for tensor in (*small.model.parameters(), *small.model.buffers())}
    assert {id(p) for p in loss.parameters()} == {id(p) for p in actor.parameters()}
    assert not theirs & {id(tensor) for tensor in (*loss.parameters(), *loss.buffers())}


def test_actions_are_executed_as_the_real_environment_would(small: Dream) -> None:
    env = env_of(small)
    far = env.step(env.reset().set("action", torch.full((B, A), 7.0)))
    env.draw = 0
    edge = env.step(env.reset().set("action", torch.ones(B, A)))
    assert torch.equal(far["action"], edge["action"]) and torch.equal(far["next", "latent"], edge["next", "latent"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"horizon": 9}, r"horizon must be in \[1, 8\], what fits behind a start of the model \(got 9\)"),
        ({"horizon": 0}, r"horizon must be in \[1, 8\]"),
        ({"rows": None}, r"starts and rows go together: both, or none of them \(got rows=None\)"),
        ({"rows": 0}, r"rows must be >= 1 \(got 0\)"),
        ({"keys": ("latent", "sound")}, r"keys must be some of pixels, latent, .* \(got sound\)"),
        ({"keys": ()}, r"keys must be some of .* \(got none\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(small: Dream, how: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        env_of(small, **how)
    assert "\n" not in str(refused.value)


def test_an_environment_of_another_world_is_refused(small: Dream) -> None:
    choices = replace(ENV_SPEC, action_dim=5, discrete=True)
    without = copy(small)
    without.spec = replace(small.spec, rewards=False)
    with pytest.raises(ValueError, match="this world model predicts none"):
        env_of(without)
    with pytest.raises(ValueError, match=r"env_spec.action_dim must be the world model's, 2 \(got 5\)"):
        DreamEnv(small, choices, horizon=2)


def test_starts_of_another_size_a_part_of_a_reset_and_a_reset_from_nowhere_are_refused(small: Dream) -> None:
    spec = small.spec
    for starts, got in (
        (lambda rows, draw: Starts(spec)(rows - 1, draw), r"\(got 2 of 2\)"),
        (lambda rows, draw: cut(Starts(spec)(rows, draw), 1), r"\(got 3 of 1\)"),
    ):
        with pytest.raises(ValueError, match=f"starts must give 3 clips of 2 frames {got}"):
            env_of(small, starts=starts).reset()
    part = TensorDict({"_reset": torch.tensor([[True], [False], [True]])}, [B])
    with pytest.raises(ValueError, match="dreams begin and end together: reset all rows, or none"):
        env_of(small).reset(part)
    with pytest.raises(ValueError, match="these dreams have no starts"):
        env_of(small, starts=None, rows=None).reset()
    with pytest.raises(ValueError, match="draw must be >= 0"):
        env_of(small).draw = -1
