"""MBPO: what is dreamt when and by whom, what of it is kept, and what of a batch is real."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from agents.api import Policy
from agents.imagined import ImaginedReplay
from agents.mbpo import MBPO, MBPOConfig
from agents.memory import FrameStack
from worldmodel.seeds import Seeds
from worldmodel.spec import CodeSpec, ModelSpec, Rollout

OBSERVED, HORIZON, ACTIONS = 3, 4, 2
SPEC = ModelSpec(
    image=4,
    context_frames=1,
    action_dim=ACTIONS,
    max_frames=OBSERVED + HORIZON,
    context="first_frame",
    burn_in=2,
    codes=CodeSpec(context=1, future=1, vocab_context=40_000, vocab_future=40_000),
)


class Numbered:
    """A dream in which start s has context s and frame f of it code 10 s + f; frames show their code."""

    def __init__(self) -> None:
        self.spec, self.seen, self.draws = SPEC, [], []  # type: ignore[var-annotated]

    def encode(self, clip: TensorDict) -> TensorDict:
        return clip

    def codes_of(self, state: TensorDict) -> tuple[Tensor, Tensor]:
        return state["context_codes"], state["codes"]

    def detokenize(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        assert torch.equal(codes_BFK[..., 0] // 10, context_BN.expand(-1, codes_BFK.shape[1])), "of one trajectory"
        return codes_BFK[..., None, None].expand(-1, -1, 3, 4, 4).to(torch.uint8)

    def rollout(self, policy: Policy, state: TensorDict, memory: Any, horizon: int, **how: Any) -> Rollout:
        self.draws.append(how)
        codes_BFK, steps = state["codes"], []
        for frame in range(horizon):
            pixels = self.detokenize(state["context_codes"], codes_BFK[:, -1:])[:, 0]
            action, memory = policy(TensorDict({"pixels": pixels}, batch_size=[len(pixels)]), memory)
            self.seen.append(memory["frames"])
            codes_BFK = torch.cat([codes_BFK, codes_BFK[:, -1:] + 1], 1)
            reward = codes_BFK[:, -1].float() / 10
            alive = torch.full_like(reward, 0.5 if frame == 2 else 1.0)
            steps.append(TensorDict({"action": action, "next": {"reward": reward, "continue": alive}}, [len(pixels)]))
        after = TensorDict({**state, "codes": codes_BFK}, batch_size=state.batch_size)
        return Rollout(torch.stack(steps, 1), after, memory)


class Starts:
    """A replay whose clips number their starts, and whose real transitions are all -1."""

    def __init__(self) -> None:
        self.starts = 0

    def __len__(self) -> int:
        return 5

    def clips(self, n: int, length: int, *, stream: str, draw: int, codes: bool) -> TensorDict:
        assert (length, stream, draw, codes) == (OBSERVED, "mbpo", self.starts // n, True)
        start = torch.arange(self.starts, self.starts + n)[:, None]
        self.starts += n
        frames = (10 * start + torch.arange(length))[..., None]
        return TensorDict({"context_codes": start, "codes": frames}, batch_size=[n])

    def transitions(self, n: int, **how: Any) -> TensorDict:
        then = {
            "pixels": torch.zeros(n, 9, 4, 4, dtype=torch.uint8),
            "reward": -torch.ones(n, how["n_step"]),
            "continue": torch.ones(n, how["n_step"]),
            "steps": torch.full((n,), how["n_step"]),
        }
        return TensorDict({"pixels": then["pixels"], "action": torch.zeros(n, ACTIONS), "next": then}, batch_size=[n])


@dataclass(frozen=True)
class InnerConfig:
    def build(self) -> Inner:
        return Inner()


class Inner:
    """An off-policy agent that keeps the batches it is given."""

    def __init__(self) -> None:
        self.frames, self.weight, self.batches = FrameStack(3), torch.zeros(()), []  # type: ignore[var-annotated]

    def policy(self, generator: torch.Generator) -> Policy:
        def policy(td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
            noise = torch.rand(len(td), ACTIONS, generator=generator)
            return noise, self.frames.see(td, memory)

        return policy

    def learn(self, replay: Any, update: int) -> dict[str, float]:
        self.batches.append(replay.transitions(8, n_step=3, stack=3, stream="inner", draw=update))
        self.weight = self.weight + 1
        return {"agent/loss": 0.0}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def load_state_dict(self, state: Any) -> None:
        self.weight = state["weight"].clone()


def config(**changes: Any) -> MBPOConfig:
    values = {"rollouts": 2, "horizon": HORIZON, "initial": 3, "every": 5, "real_ratio": 0.25, "capacity": 7}
    return MBPOConfig(inner=InnerConfig(), **{**values, **changes})


def agent(**changes: Any) -> MBPO:
    return config(**changes).build(runtime={}, spec=SPEC, dream=Numbered(), seeds=Seeds(1), device="cpu")  # type: ignore[arg-type]


def test_dreams_are_made_at_first_and_then_for_every_so_many_updates() -> None:
    driver, replay = agent(), Starts()
    made = []
    for update in range(11):
        metrics = driver.learn(replay, update)  # type: ignore[arg-type]
        made.append(metrics.imagined_frames)  # type: ignore[attr-defined]
    assert made == [3 * 8, 0, 0, 0, 0, 8, 0, 0, 0, 0, 8]
    assert len(driver.imagined) == 7 * HORIZON, "the oldest made room"
    kept = driver.imagined.held["context"][:, 0].tolist()
    assert sorted(kept) == list(range(3, 10))


def test_a_dream_begins_with_a_whole_stack_of_real_frames() -> None:
    driver = agent()
    driver.learn(Starts(), 0)  # type: ignore[arg-type]
    stacks = torch.stack(driver._dream.seen[:HORIZON])[:, 1, ::3, 0, 0]  # type: ignore[attr-defined]
    assert stacks.tolist() == [[10 + f, 11 + f, 12 + f] for f in range(HORIZON)]


def test_a_batch_has_its_share_of_real_rows_first() -> None:
    driver = agent()
    driver.learn(Starts(), 0)  # type: ignore[arg-type]
    (batch,) = driver.inner.batches
    assert (batch["next", "reward"][:2] == -1).all() and (batch["next", "reward"][2:] > -1).all()
    assert driver.learn(Starts(), 1) is not None  # type: ignore[arg-type]
    driver = agent(real_ratio=1.0)
    driver.learn(Starts(), 0)  # type: ignore[arg-type]
    assert (driver.inner.batches[0]["next", "reward"] == -1).all()


@given(n_step=st.integers(1, 6), stack=st.integers(1, 4), draw=st.integers(0, 10**6))
def test_imagined_transitions_are_those_of_a_slow_reading(n_step: int, stack: int, draw: int) -> None:
    driver = agent(capacity=20)
    driver.learn(Starts(), 0)  # type: ignore[arg-type]
    held, dreams = driver.imagined.held, 6
    found = driver.imagined.transitions(16, n_step=n_step, stack=stack, stream="x", draw=draw)
    for row in found:
        newest = int(row["pixels"][-1, 0, 0])
        start, decision = newest // 10, newest % 10 - (OBSERVED - 1)
        assert 0 <= start < dreams and 0 <= decision < HORIZON
        end = min(decision + n_step, HORIZON)
        real = OBSERVED - 1
        assert row["pixels"][::3, 0, 0].tolist() == [
            10 * start + max(0, decision + real - back) for back in reversed(range(stack))
        ]
        assert row["next", "pixels"][::3, 0, 0].tolist() == [
            10 * start + max(0, end + real - back) for back in reversed(range(stack))
        ]
        steps = range(decision, end)
        rewards = [(10 * start + real + 1 + k) / 10 for k in steps] + [0.0] * (n_step - len(steps))
        alive = [0.5 if k == 2 else 1.0 for k in steps] + [1.0] * (n_step - len(steps))
        torch.testing.assert_close(row["next", "reward"], torch.tensor(rewards))
        torch.testing.assert_close(row["next", "continue"], torch.tensor(alive))
        assert row["next", "steps"] == len(steps)
        assert torch.equal(row["action"], held["action"][start, decision])


def test_an_imagined_decision_is_drawn_by_the_chance_that_its_dream_went_on_until_then() -> None:
    driver = agent(capacity=20)
    driver.learn(Starts(), 0)  # type: ignore[arg-type]
    newest = driver.imagined.transitions(21_000, n_step=1, stack=1, stream="x", draw=0)["pixels"][:, 0, 0, 0]
    counts = newest.long().bincount()
    counts = counts[counts > 0].view(6, HORIZON)
    expected = torch.tensor([1000.0, 1000.0, 1000.0, 500.0])  # `continue` is 1/2 on arriving in the third frame
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_a_saved_agent_goes_on_with_the_same_dreams() -> None:
    driver, other, replay = agent(), agent(), Starts()
    for update in range(6):
        driver.learn(replay, update)  # type: ignore[arg-type]
    other.load_state_dict(copy.deepcopy(driver.state_dict()))
    again = copy.deepcopy(replay)
    for update in range(6, 11):
        driver.learn(replay, update)  # type: ignore[arg-type]
        other.learn(again, update)  # type: ignore[arg-type]
    one, two = driver.state_dict(), other.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(driver.inner.batches[-1]["pixels"], other.inner.batches[-1]["pixels"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rollouts": 0}, r"rollouts must be >= 1 \(got 0\)"),
        ({"real_ratio": 1.5}, r"real_ratio must be in \[0, 1\] \(got 1.5\)"),
        ({"capacity": 1}, r"capacity must be >= rollouts=2 \(got 1\)"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        config(**changes)


def test_what_does_not_go_together_is_refused_in_one_line() -> None:
    @dataclass(frozen=True)
    class NoPolicy:
        def build(self) -> object:
            return object()

    with pytest.raises(ValueError, match="learns from imagined rewards"):
        config().build(
            runtime={},
            spec=replace(SPEC, rewards=False),
            dream=Numbered(),
            seeds=Seeds(1),
            device="cpu",  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"agent\.inner must be an off-policy agent from pixels"):
        MBPOConfig(inner=NoPolicy(), rollouts=1, horizon=1, initial=1, every=1, real_ratio=0.5, capacity=1).build(
            runtime={}, spec=SPEC, dream=Numbered(), seeds=Seeds(0), device="cpu"
        )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kept as codes, and this world model has none"):
        ImaginedReplay(
            1,
            spec=ModelSpec(image=4, context_frames=1, action_dim=1, max_frames=3, context="first_frame", burn_in=1),
            num_observed=1,
            horizon=1,
            dream=Numbered(),
            seeds=Seeds(0),
        )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing was imagined yet"):
        agent().imagined.transitions(1, n_step=1, stack=1, stream="x", draw=0)
    with pytest.raises(ValueError, match="no subsets"):
        agent().imagined.transitions(1, n_step=1, stack=1, stream="x", draw=0, subset="demos")
