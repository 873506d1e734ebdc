"""Planners: what they find, what it costs, what they remember, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensordict import TensorDict
from torch import Tensor

from agents.api import build as built
from agents.planner import CEMConfig, MPPIConfig, Planner, read_goal
from tests.envs.worlds import toy
from tests.worldmodel.test_ivideogpt import build
from tests.worldmodel.test_oracle import model_of
from worldmodel.dream.imagine import Dream
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, ModelSpec, Rollout

CEM = {
    **{"horizon": 2, "candidates": 64, "elites": 8, "iterations": 5, "std": 1.0, "noise_correlation": 0.0},
    **{"noise": 0.3, "gamma": 0.9, "objective": "reward", "goal": None, "proposals": 0, "inner": None},
}
MPPI = {**CEM, "temperature": 0.1, "min_std": 0.02}
ENV = EnvSpec(image=8, action_dim=2, discrete=False, action_repeat=1, decisions=9, terminates=False)


def planner(dream: Any, *, seed: int = 0, env_spec: EnvSpec = ENV, mppi: bool = False, **changes: Any) -> Planner:
    config = MPPIConfig(**(MPPI | changes)) if mppi else CEMConfig(**(CEM | changes))
    runtime = {"env_spec": env_spec, "dream": dream, "seeds": Seeds(seed), "device": "cpu"}
    made: Planner = built(config, runtime)
    return made


class Shade:
    """A dream of one grey: a state's `codes` and its frame are the first action that led into it, as a shade.

    The reward is closeness of that action to 0.5; the episode ends after the first step, and behind the end is a trap.
    """

    spec = ModelSpec(
        image=8, context_frames=1, action_dim=2, max_frames=9, context="first_frame", burn_in=1,
        latent={"codes": 1, "hidden": 2},
    )  # fmt: skip

    def __init__(self) -> None:
        self.decoded = 0

    def state(self, shade_B1: Tensor) -> TensorDict:
        return TensorDict({"latent": torch.cat([shade_B1, 0 * shade_B1, 0 * shade_B1], 1)}, batch_size=[len(shade_B1)])

    def encode(self, clip: TensorDict) -> TensorDict:
        return self.state(clip["pixels"][:, -1, 0, 0, :1].float() / 127.5 - 1)

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        return state.repeat_interleave(copies, 0)

    def decode(self, state: TensorDict) -> Tensor:
        self.decoded += 1
        grey_B1 = ((state["latent"][:, :1] + 1) * 127.5).round().to(torch.uint8)
        return grey_B1[..., None, None].expand(-1, 3, 8, 8)

    def rollout(
        self,
        policy: Any,
        state: TensorDict,
        memory: Any,
        horizon: int,
        *,
        keys: tuple[str, ...] = ("latent",),
        **_: Any,
    ) -> Rollout:
        steps = []
        for step in range(horizon):
            action, memory = policy(state.select("latent"), memory)
            state = self.state(action[:, :1])
            reward = 9 * action[:, :1] if step else -(action[:, :1] - 0.5).abs()
            after = {"reward": reward, "continue": torch.full_like(reward, float(step > 0))}
            after |= {"codes": action[:, :1]} if "codes" in keys else {}
            after |= {"pixels": self.decode(state)} if "pixels" in keys else {}
            steps.append(TensorDict({"action": action, "next": after}, batch_size=state.batch_size))
        return Rollout(torch.stack(steps, 1), state, memory)


def seen(first: bool, rows: int, side: int = 8) -> TensorDict:
    pixels = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    return TensorDict({"pixels": pixels, "is_init": torch.full((rows, 1), first)}, batch_size=[rows])


# -- what is planned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mppi", [False, True], ids=["cem", "mppi"])
def test_the_best_action_is_found_nothing_counts_behind_an_end_and_the_last_plan_opens_the_next_search(
    mppi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, td = planner(Shade(), mppi=mppi), seen(True, 3)
    action_EA, memory = agent.act(td, None, "evaluate", step=0)
    torch.testing.assert_close(action_EA[:, 0], torch.full((3,), 0.5), atol=0.03, rtol=0)
    begun: list[Tensor] = []
    refined = agent._refined
    monkeypatch.setattr(agent, "_refined", lambda mean, *rest: begun.append(mean.clone()) or refined(mean, *rest))
    td["is_init"][:] = torch.tensor([[True], [False], [False]])
    _, after = agent.act(td, memory, "evaluate", step=1)
    warm = torch.cat(begun)  # rows that are filled alike come together: the fresh one first
    assert not warm[0].any(), "an episode begins without a plan"
    for row in (1, 2):
        assert torch.equal(warm[row], torch.stack([memory["plan"][row, 1], torch.zeros(2)]))
    assert after["plan"].shape == memory["plan"].shape == (3, 2, 2)


def test_it_explores_with_counted_noise_and_evaluates_the_plan_itself() -> None:
    agent, td = planner(Shade()), seen(True, 4)
    greedy, memory = agent.act(td, None, "evaluate", step=3)
    assert torch.equal(greedy, memory["plan"][:, 0])
    noisy, memory = agent.act(td, None, "explore", step=3)
    assert torch.equal(memory["plan"][:, 0], greedy) and torch.equal(memory["action"], noisy)
    assert (noisy - greedy).abs().max() > 0.1 and noisy.abs().max() <= 1
    assert torch.equal(noisy, agent.act(td, None, "explore", step=3)[0])
    assert not torch.equal(noisy, agent.act(td, None, "explore", step=4)[0])
    quiet = planner(Shade(), noise=0.0)
    assert torch.equal(quiet.act(td, None, "explore", step=3)[0], greedy)


def test_candidates_deviate_alike_at_successive_decisions_as_far_as_they_are_told_to() -> None:
    drawn: list[Tensor] = []
    agent = planner(Shade(), horizon=6, candidates=4000, elites=2, iterations=1, std=0.1, noise_correlation=0.7)
    scores = agent._scores
    agent._scores = lambda plans, *rest: drawn.append(plans) or scores(plans, *rest)  # type: ignore[method-assign]
    agent.act(seen(True, 1), None, "evaluate", step=0)
    found = torch.corrcoef(drawn[0][:, :, 0].T)
    apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    torch.testing.assert_close(found, 0.7**apart, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn[0].std(0), torch.full((6, 2), 0.1), atol=0.01, rtol=0)


@given(
    scores=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    temperature=st.floats(0.05, 20),
    seed=st.integers(0, 99),
)
def test_path_integrals_weigh_elites_by_the_exponent_of_their_scores(
    scores: list[float], temperature: float, seed: int
) -> None:
    elites = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    found = [MPPIConfig(**(MPPI | {"temperature": temperature})).refit(elites, torch.tensor([scores]))]
    weights = torch.tensor([(x - max(scores)) / temperature for x in scores]).exp()
    mean = sum(w * e for w, e in zip(weights, elites[0], strict=True)) / weights.sum()
    variance = sum(w * (e - mean) ** 2 for w, e in zip(weights, elites[0], strict=True)) / weights.sum()
    torch.testing.assert_close(found[0][0][0], mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1][0], variance.sqrt().clamp(0.02, 1.0), atol=1e-4, rtol=0)
    mean, std = CEMConfig(**CEM).refit(elites, torch.tensor([scores]))
    alike = MPPIConfig(**(MPPI | {"temperature": 1e9, "min_std": 0.0, "std": 9.0})).refit(
        elites, torch.tensor([scores])
    )
    torch.testing.assert_close(torch.stack([mean, std]), torch.stack(alike), atol=1e-4, rtol=0)


# -- goals ------------------------------------------------------------------------------------------------------------


def picture(path: Path, pixels_CHW: Tensor) -> str:
    Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(path)
    return str(path)


@pytest.mark.parametrize(("objective", "decodes"), [("goal_pixels", True), ("goal_codes", False)])
def test_the_actions_that_show_the_goal_are_found(objective: str, decodes: bool, tmp_path: Path) -> None:
    goal, dream = torch.full((3, 8, 8), 38, dtype=torch.uint8), Shade()  # the shade of action -0.7
    agent = planner(dream, objective=objective, goal=picture(tmp_path / "goal.png", goal))
    _, memory = agent.act(seen(True, 2), None, "evaluate", step=0)
    wanted = torch.full((2, 2), 38 / 127.5 - 1)
    torch.testing.assert_close(memory["plan"][..., 0], wanted, atol=0.04, rtol=0)  # at all steps: an end is no escape
    assert bool(dream.decoded) is decodes


def test_in_the_world_itself_the_dot_goes_where_the_picture_shows_it(tmp_path: Path) -> None:
    env = toy("reach", rows=1, snapshots=True)
    dream = Dream(model_of(env, "toy", "reach"), seeds=Seeds(0))
    now, memory = env.reset(), None
    simulator, moment = dream.model._simulator, now["snapshot"][0].numpy().copy()
    moment[:2] = 1 - moment[:2] if abs(moment[:2] - 0.5).max() > 0.25 else 0.1
    simulator.restore(moment)
    goal = torch.from_numpy(simulator.draw().copy())
    size = {"horizon": 6, "candidates": 48, "iterations": 3, "elites": 6, "noise_correlation": 0.8}
    named = {"objective": "goal_pixels", "goal": picture(tmp_path / "goal.png", goal)}
    agent = planner(dream, env_spec=env.env_spec, **size, **named)
    errors = []
    for step in range(12):
        errors.append(float((now["pixels"][0].float() - goal.float()).square().mean()))
        action, memory = agent.act(now, memory, "evaluate", step=step)
        now = env.step_and_maybe_reset(now.set("action", action))[1]
    assert errors[-1] < 0.2 * errors[0]
    assert float(now["state"][0, :2].sub(torch.tensor(moment[:2])).norm()) < 0.1


def test_a_goal_s_codes_are_those_of_the_frame_behind_this_episode_s_context(tmp_path: Path) -> None:
    dream = Dream(build(), seeds=Seeds(1))
    side = dream.spec.image
    frames = torch.randint(256, (3, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    goal = picture(tmp_path / "goal.png", frames[2])
    agent = planner(dream, horizon=3, candidates=6, elites=2, iterations=1, objective="goal_codes", goal=goal)
    td = TensorDict({"pixels": frames[:2], "is_init": torch.ones(2, 1, dtype=torch.bool)}, batch_size=[2])
    _, memory = agent.act(td, None, "evaluate", step=0)
    goals = agent._goals(memory)
    context, codes = dream.model.tokenize(frames[:2, None], frames[2:, None].expand(2, -1, -1, -1, -1))
    assert torch.equal(goals, dream.model.code_features(context, codes)[1][:, 0])


# -- what a decision costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reward", "goal_codes", "inner"])
def test_a_decision_reads_the_world_once_however_many_plans_it_tries(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dream, counts = Dream(build(), seeds=Seeds(1)), {"encoded": 0, "positions": 0}
    side, layout = dream.spec.image, dream.model.layout
    goal = picture(tmp_path / "goal.png", torch.zeros(3, side, side, dtype=torch.uint8))
    more = {
        "reward": {},
        "goal_codes": {"objective": "goal_codes", "goal": goal},
        "inner": {"inner": PolicyConfig(0.3), "proposals": 3},
    }
    agent = planner(dream, horizon=3, candidates=8, elites=2, iterations=2, **more[how])
    encode, extend = dream.model.tokenizer.encode_context, KVCache.extend

    def encoding(context: Tensor) -> Any:
        counts["encoded"] += len(context)
        return encode(context)

    def reading(cache: KVCache, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> Any:
        counts["positions"] += (layer == 0) * len(k_BHTC) * k_BHTC.shape[2]
        return extend(cache, layer, k_BHTC, v_BHTC)

    monkeypatch.setattr(dream.model.tokenizer, "encode_context", encoding)
    monkeypatch.setattr(KVCache, "extend", reading)
    memory = None
    for step in range(3):
        pixels = torch.randint(256, (1, 3, side, side), dtype=torch.uint8)
        td = TensorDict({"pixels": pixels, "is_init": torch.tensor([[step == 0]])}, batch_size=[1])
        before = dict(counts)
        action_EA, memory = agent.act(td, memory, "evaluate", step=step)
        prefill, plans = layout.length(int(memory["filled"][0])), (2 * 8 + 3 * (how == "inner")) * 3 * layout.stride
        prefill += layout.length(1) * (how == "goal_codes")
        assert counts["encoded"] - before["encoded"] == 1 + (how == "goal_codes")
        assert counts["positions"] - before["positions"] == prefill + plans
        assert action_EA.shape == (1, dream.spec.action_dim) and torch.equal(action_EA, memory["plan"][:, 0])


def test_a_picture_s_context_is_decoded_once_for_all_candidates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dream, rows = Dream(build(), seeds=Seeds(1)), []
    side, decode = dream.spec.image, dream.model.tokenizer.decode_context
    monkeypatch.setattr(dream.model.tokenizer, "decode_context", lambda codes: rows.append(len(codes)) or decode(codes))
    goal = picture(tmp_path / "goal.png", torch.zeros(3, side, side, dtype=torch.uint8))
    size = {"horizon": 3, "candidates": 6, "elites": 2, "iterations": 2}
    planner(dream, **size, objective="goal_pixels", goal=goal).act(seen(True, 2, side), None, "evaluate", step=0)
    assert rows == [2]


# -- an inner agent ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyConfig:
    """Proposes one action for ever, and values the last shade by `worth`."""

    action: float
    worth: float = 0.0

    def build(self) -> Policy:
        return Policy(self)


class Policy:
    gamma = 0.9

    def __init__(self, config: PolicyConfig) -> None:
        self.config, self.learned, self.executed = config, torch.zeros(1), []

    def act(self, td: TensorDict, memory: Any, mode: str, *, step: int) -> tuple[Tensor, Any]:
        self.executed.append(None if memory is None else memory["action"])
        action = torch.full((len(td), 2), self.config.action)
        return action, TensorDict({"action": action}, batch_size=[len(td)])

    def dream_policy(self, generator: torch.Generator) -> Any:
        return lambda td, memory: (torch.full((len(td), 2), self.config.action), memory)

    def value(self, latent_BD: Tensor) -> Tensor:
        return self.config.worth * latent_BD[:, 0]

    def learn(self, replay: Any, update: int) -> Mapping[str, float]:
        self.learned = self.learned + 1
        return {"agent/loss": 0.5}

    def state_dict(self) -> dict[str, Tensor]:
        return {"learned": self.learned}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learned = state["learned"]


class Endless(Shade):
    """Without rewards and without an end."""

    def rollout(self, *given: Any, **named: Any) -> Rollout:
        found = super().rollout(*given, **named)
        found.path["next", "reward"].zero_()
        found.path["next", "continue"].fill_(1)
        return found


def test_the_inner_agent_s_value_closes_the_horizon_and_its_policy_is_among_the_candidates() -> None:
    td = seen(True, 2)
    for worth in (1.0, -1.0):
        agent = planner(Endless(), inner=PolicyConfig(0.0, worth))
        _, memory = agent.act(td, None, "evaluate", step=0)
        assert (worth * memory["plan"][:, -1, 0] > 0.9).all(), "the last state is what counts"
    narrow = {"std": 0.01, "iterations": 1, "elites": 2, "candidates": 10}  # what it draws itself stays near 0
    alone, _ = planner(Shade(), **narrow).act(td, None, "evaluate", step=0)
    told, _ = planner(Shade(), **narrow, inner=PolicyConfig(0.5), proposals=2).act(td, None, "evaluate", step=0)
    assert alone.abs().max() < 0.1 and torch.equal(told, torch.full((2, 2), 0.5))


def test_the_inner_agent_learns_is_saved_under_its_name_and_remembers_what_was_executed() -> None:
    agent, td = planner(Shade(), inner=PolicyConfig(0.3)), seen(True, 2)
    assert agent.learn(None, 0) == {"agent/loss": 0.5}  # type: ignore[arg-type]
    assert {name: x.tolist() for name, x in agent.state_dict().items()} == {"inner.learned": [1.0]}
    other = planner(Shade(), inner=PolicyConfig(0.3))
    other.load_state_dict(agent.state_dict())
    assert other.state_dict()["inner.learned"] == 1
    with pytest.raises(ValueError, match="must hold its own names"):
        planner(Shade()).load_state_dict(agent.state_dict())
    _, memory = agent.act(td, None, "explore", step=0)
    executed = memory["action"] / 2  # as if the world had limits of its own
    agent.act(seen(False, 2), memory.set("action", executed), "explore", step=1)
    assert agent._inner is not None and agent._inner.executed[0] is None  # type: ignore[attr-defined]
    assert torch.equal(agent._inner.executed[1], executed)  # type: ignore[attr-defined]


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_a_dream_without_rewards_or_codes_says_so_itself() -> None:
    silent = SimpleNamespace(spec=SimpleNamespace(**vars(Shade.spec) | {"rewards": False}))
    silent.spec.require_horizon = Shade.spec.require_horizon
    with pytest.raises(ValueError, match="needs a world model that predicts rewards"):
        planner(silent)
    assert not build("worldmodel.heads={reward:none,bins:0,low:0,high:0,width:0}").spec.rewards and build().spec.rewards


def test_scores_that_are_no_numbers_end_the_run() -> None:
    class Broken(Shade):
        def rollout(self, *given: Any, **named: Any) -> Rollout:
            found = super().rollout(*given, **named)
            found.path["next", "reward"][0] = float("nan")
            return found

    with pytest.raises(FloatingPointError, match="scores of plans must be finite"):
        planner(Broken()).act(seen(True, 1), None, "evaluate", step=0)


def test_a_goal_is_read_as_rgb_whatever_png_it_is(tmp_path: Path) -> None:
    for mode, colour in (("RGBA", (9, 8, 7, 255)), ("L", 9), ("P", 3)):
        Image.new(mode, (8, 8), colour).save(tmp_path / f"{mode}.png")
        goal = read_goal(tmp_path / f"{mode}.png", side=8)
        assert goal.dtype == torch.uint8 and goal.shape == (3, 8, 8)
    assert read_goal(tmp_path / "RGBA.png", side=8)[:, 0, 0].tolist() == [9, 8, 7]
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png", format="JPEG")
    with pytest.raises(ValueError, match="must be a PNG file"):
        read_goal(tmp_path / "photo.png", side=8)
