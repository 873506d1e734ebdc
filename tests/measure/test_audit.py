"""The audit: a simulator finds itself perfect, and each fault of a model shows in the number that is named after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Memory, Policy
from agents.baselines import Random, RandomConfig
from mbrl.collection.collect import episode
from mbrl.collection.policies import Played
from mbrl.collection.starts import gathered, rested
from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv
from mbrl.envs.toy import ToyTask
from mbrl.measure.audit import PER_EPISODE, Rows, SideBySide, Start, compared, ranking, starts_in
from mbrl.measure.verdict import (
    ACTIONS,
    CHECKS,
    FRAMES,
    LEAVING,
    PICTURES,
    RANKING,
    REST,
    RETURN,
    SCHEMA,
    Check,
    audited,
    findings,
    leaving,
)
from mbrl.oracle import OracleModel
from worldmodel.dream.imagine import Dream
from worldmodel.seeds import Seeds

TOY = ProtocolConfig(
    name="toy", image=16, camera=None, flip="none", quality="fast", action_repeat=1, decisions=12, success_bonus=0.0,
    success="any", zero_action_first=False, deviations=(),
)  # fmt: skip
HORIZON, SEQUENCES, STARTS = 4, 6, 8
INFO: dict[str, Any] = {
    "task": "reach",
    "protocol": {"name": "toy", "sha256": "ab"},
    "run_seed": 1,
    "agent": "a.B",
    "model": "c.D",
    "env_steps": 9,
    "weights": "best",
    "weights_step": 8,
    "seed": 0,
    "starts": STARTS,
    "sequences": SEQUENCES,
    "horizon": HORIZON,
    "restores": True,
    "device": "cpu",
    "threads": 1,
    "matmul": "ieee",
    "versions": {},
    "commit": "",
}


class Contrary(OracleModel):
    """Knows the states, and takes every action for its opposite."""

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        return super().imagine(state, -action_BA, generator)


class Frozen(OracleModel):
    """Imagines that nothing ever changes."""

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        return state.clone()


class Deaf(OracleModel):
    """Imagines that somebody always pushes to the right, whatever was done."""

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        return super().imagine(state, torch.tensor([[0.7, 0.0]]).expand_as(action_BA), generator)


class Misled(OracleModel):
    """Knows what happens, and takes what is bad for good."""

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        arrived = super().imagine(state, action_BA, generator)
        return arrived.set("reward", 1 - arrived["reward"])


class Blurred(OracleModel):
    """Knows what happens, and draws it with half of the contrast."""

    def decode(self, state: TensorDict) -> Tensor:
        return (super().decode(state).float() / 2 + 60).to(torch.uint8)


class Daring(Random):
    """An agent that learns in dreams: there it goes up."""

    gamma = 0.9

    def dream_policy(self, generator: torch.Generator) -> Policy:
        def policy(td: TensorDict, memory: Memory) -> tuple[Tensor, Memory]:
            noise_BA = 0.1 * torch.randn(len(td), 2, generator=generator)
            return (torch.tensor([[0.0, -0.8]]) + noise_BA).clamp(-1, 1), memory

        return policy

    def value(self, latent_BD: Tensor) -> Tensor:
        return latent_BD[:, 0]


Build = Callable[..., OracleModel]
Audit = dict[str, Any]


@pytest.fixture(scope="module")
def audit_of() -> Callable[..., tuple[Audit, Rows]]:
    """The audit of a model of this class in the toy world; `restores=False`: as if the world could not go back."""

    def audit(kind: Build, task: str = "reach", *, restores: bool = True) -> tuple[Audit, Rows]:
        world, seeds = ToyTask(name=task), Seeds(3)
        env = make_envs(world, TOY, seeds=seeds, stream="audit", rows=1, snapshots=True)
        models = [one(world.build(protocol=TOY, rows=1)[0], TOY, env.env_spec) for one in (kind, OracleModel)]
        model, simulator = (Dream(one, seeds=seeds) for one in models)
        chance = RandomConfig(hold=2, noise=0.1).build(env_spec=env.env_spec, seeds=seeds)
        sides = SideBySide(
            dream=model,
            simulator=simulator if restores else None,
            agent=chance if env.env_spec.discrete else Daring(chance.config, env.env_spec, seeds),
            chance=chance,
            sequences=SEQUENCES if restores else 1,
            horizon=HORIZON,
            seeds=seeds,
        )
        starts = starts_of(env, sides)
        rest, why = rested(env, sides, first=100)
        rows, _ = compared(sides, starts)
        found = findings(rows, rest, kinds=[start.kind for start in starts], own=sides.own)
        left_out = {**({"rest": why} if why else {}), **({} if restores else {"ranking": "no way back"})}
        return audited(INFO | {"sequences": rows.reward.shape[1]}, found, left_out), rows

    return audit


def starts_of(env: RowsEnv, sides: SideBySide) -> list[Start]:
    return gathered(
        env, {"trained": Played(sides.agent, env), "random": Played(sides.chance, env)}, sides, count=STARTS
    )


def verdicts(audit: Audit) -> dict[str, str | None]:
    return {check["name"]: check["verdict"] for check in audit["checks"]}


def value(audit: Audit, check: Check) -> float:
    return next(one["value"] for one in audit["checks"] if one["name"] == check.name)


# -- which fault shows where -------------------------------------------------------------------------------------------


def test_the_simulator_finds_itself_perfect(audit_of: Callable[..., tuple[Audit, Rows]]) -> None:
    audit, rows = audit_of(OracleModel)
    assert audit["verdict"] == "green" and not audit["broken"] and audit["left_out"] == {}
    assert set(verdicts(audit).values()) == {"green"}
    assert rows.error.max() == rows.picture.max() == 0 and torch.equal(rows.reward, rows.imagined_reward)
    assert rows.reward.shape == (STARTS, SEQUENCES, HORIZON)
    assert value(audit, RETURN) == value(audit, LEAVING) == 1 and value(audit, ACTIONS) == value(audit, REST) == 0
    assert math.isclose(value(audit, RANKING), 1, abs_tol=1e-5) and math.isclose(audit["ranking"]["gain"], 1)
    assert audit["leaving"]["median"] is None and audit["leaving"]["left"] == [0.0] * HORIZON
    assert audit["rewards"]["rmse"] == audit["returns"]["bias"] == [0.0] * HORIZON
    assert {kind: part["starts"] for kind, part in audit["by_start"].items()} == {"trained": 4, "random": 4}
    assert {kind: part["sequences"] for kind, part in audit["by_sequence"].items()} == {"trained": 3, "random": 3}


def test_a_model_that_repeats_the_last_frame_is_broken(audit_of: Callable[..., tuple[Audit, Rows]]) -> None:
    audit, rows = audit_of(Frozen)
    assert audit["verdict"] == "red" and audit["broken"] and verdicts(audit)["frames"] == "red"
    assert value(audit, FRAMES) == 0 and torch.equal(rows.error, rows.repeated)
    assert value(audit, ACTIONS) == 1, "and it never asks what was done"
    assert verdicts(audit)["rest"] == "green", "where nothing is done it is right"


def test_a_model_that_takes_every_action_for_its_opposite_is_worse_than_one_that_knows_nothing(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, _ = audit_of(Contrary)
    assert audit["broken"] and value(audit, RANKING) < -0.3 and audit["ranking"]["gain"] < 0
    assert value(audit, FRAMES) < 0 and verdicts(audit)["leaving"] != "green"


def test_a_model_that_never_asks_what_was_done_moves_at_rest(audit_of: Callable[..., tuple[Audit, Rows]]) -> None:
    audit, _ = audit_of(Deaf)
    assert value(audit, ACTIONS) == 1 and verdicts(audit)["actions"] == "red"
    assert value(audit, REST) > 0.5 and verdicts(audit)["rest"] != "green"
    assert audit["rest"]["still"] == 0 and audit["rest"]["imagined_moved"][-1] > 0


def test_broken_rewards_show_in_return_and_ranking_alone(audit_of: Callable[..., tuple[Audit, Rows]]) -> None:
    audit, _ = audit_of(Misled)
    found = verdicts(audit)
    assert audit["verdict"] == found["return"] == found["ranking"] == "red" and not audit["broken"]
    assert audit["parts"] == {"frames": "green", "rewards": "red"}
    assert {found[name] for name in ("frames", "pictures", "actions", "rest", "leaving")} == {"green"}
    assert math.isclose(value(audit, RANKING), -1, abs_tol=1e-5)


def test_pictures_that_lose_contrast_are_told_from_a_model_that_does_not_know_what_happens(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, _ = audit_of(Blurred)
    assert value(audit, FRAMES) > 3 > 0 > value(audit, PICTURES)
    assert audit["verdict"] == verdicts(audit)["pictures"] == "yellow" and not audit["broken"]
    assert audit["parts"] == {"frames": "yellow", "rewards": "green"}


def test_without_a_way_back_each_start_has_one_sequence_and_the_rest_is_measured(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, rows = audit_of(OracleModel, restores=False)
    assert audit["left_out"] == {"ranking": "no way back"} and audit["ranking"] is None
    assert rows.reward.shape == (STARTS, 1, HORIZON) and rows.error.max() == 0 and rows.shuffled.max() > 0
    assert audit["verdict"] == "green" and verdicts(audit)["ranking"] is None and audit["by_sequence"] == {}
    broken, _ = audit_of(Frozen, restores=False)
    assert broken["broken"]


def test_discrete_actions_have_no_rest_and_no_agent_of_dreams_means_chance_alone(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, rows = audit_of(OracleModel, "reach-discrete")
    assert audit["rest"] is None and "do nothing" in audit["left_out"]["rest"]
    assert audit["by_sequence"] == {} and rows.error.max() == 0 and audit["verdict"] == "green"


def test_what_comes_after_the_end_of_the_world_counts_for_nothing(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, rows = audit_of(OracleModel, "reach-terminal")
    assert rows.alive.min() == 0 and rows.alive[..., 0].min() == 1, "some sequences reach the goal"
    assert rows.reward[rows.alive == 0].abs().max() == 0 and torch.equal(rows.reward, rows.imagined_reward)
    assert audit["verdict"] == "green"


# -- parts -------------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_audits_and_others_do_not(audit_of: Callable[..., tuple[Audit, Rows]]) -> None:
    (first, rows), (again, _), (other, _) = audit_of(Contrary), audit_of(Contrary), audit_of(OracleModel)
    assert first == again and first != other
    assert rows.reward.unique().numel() > STARTS * SEQUENCES, "starts, sequences and frames differ"


def test_a_model_that_knows_states_but_not_actions_is_found_out() -> None:
    generator = torch.Generator().manual_seed(0)
    state_M11 = 5 * torch.randn(200, 1, 1, generator=generator)
    effect_MSH, guess_MSH = (torch.randn(200, 6, 4, generator=generator) for _ in range(2))
    found = ranking(state_M11 + effect_MSH, state_M11 + guess_MSH)
    assert found.across > 0.9, "which is all that R2 shows"
    assert abs(found.within) < 3 * found.within_error < 0.15 and abs(found.gain) < 0.1


def test_a_frame_beyond_the_threshold_is_where_a_dream_leaves() -> None:
    zeros = torch.zeros(1, 3, 4)
    rows = dict.fromkeys(Rows.__dataclass_fields__, zeros)
    error = torch.tensor([[[0.1, 0.3, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.9]]])
    found = leaving(Rows(**{**rows, "error": error, "repeated": zeros + 1, "alive": zeros + 1}))
    assert [round(share, 3) for share in found["left"]] == [0, 0, 0.333, 0.667], "who has left does not come back"
    assert found["median"] == 4 and found["stays"] == 0.75
    assert round(found["psnr"], 2) == 3.01
    still = leaving(Rows(**{**rows, "error": error, "alive": zeros + 1}))
    assert still["stays"] is None and still["left"] == [None] * 4, "nothing moved, so there is no threshold"


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (FRAMES, {-1: "red", 0: "red", 0.5: "yellow", 1: "green", 9: "green"}),
        (ACTIONS, {1.1: "red", 0.95: "red", 0.9: "yellow", 0.8: "green", 0: "green"}),
        (PICTURES, {-20: "yellow", 0: "green"}),
    ],
    ids=["larger is better", "smaller is better", "never red"],
)
def test_colours_change_at_the_thresholds(check: Check, values: dict[float, str]) -> None:
    assert {number: check.colour(number) for number in values} == values


def test_starts_have_the_frames_before_them_that_a_model_needs_and_decisions_behind() -> None:
    world, seeds = ToyTask(name="reach"), Seeds(0)
    env = make_envs(world, TOY, seeds=seeds, stream="audit", rows=1, snapshots=True)
    model = OracleModel(world.build(protocol=TOY, rows=1)[0], TOY, env.env_spec)
    agent = RandomConfig(hold=2, noise=0.1).build(env_spec=env.env_spec, seeds=seeds)
    played = episode(env, Played(agent, env), number=0, row=0)
    for left, last in ((1, 11), (10, 2)):
        drawn = [
            starts_in(played, model.spec, kind="random", left=left, generator=np.random.default_rng(n))
            for n in range(30)
        ]
        moments = {start.newest for starts in drawn for start in starts}
        assert moments == set(range(last + 1)) and {len(starts) for starts in drawn} == {PER_EPISODE}
    path = Start(kind="random", episode=played, newest=2).followed(10)
    assert path.shape == (1, 10) and torch.equal(path["action"][0], torch.from_numpy(played.action[2:].copy()))
    assert torch.equal(path["next", "pixels"][0, 0], torch.from_numpy(played.pixels[3].copy()))


def test_a_world_that_moves_by_itself_is_not_asked_how_still_a_dream_is(
    audit_of: Callable[..., tuple[Audit, Rows]],
) -> None:
    audit, _ = audit_of(OracleModel)
    found = {name: audit[name] for name in ("rewards", "returns", "ranking", "by_start", "by_sequence", "frames")}
    found |= {name: audit[name] for name in ("actions", "leaving")}
    moving = audited(INFO, {**found, "rest": audit["rest"] | {"still": 0.4}}, {})
    assert "does not rest" in moving["left_out"]["rest"] and verdicts(moving)["rest"] is None
    assert moving["verdict"] == "green" and list(moving) == list(SCHEMA)
    with pytest.raises(ValueError, match=r"task must be of type str \(got 3\)"):
        audited(INFO | {"task": 3}, {**found, "rest": None}, {})
    with pytest.raises(ValueError, match=r"frames\.psnr\.0 must be a finite number"):
        audited(INFO, {**found, "rest": None, "frames": audit["frames"] | {"psnr": ["high"]}}, {})


def test_every_check_says_what_it_is_and_why() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 7
    assert all(len(check.what) > 20 and len(check.why) > 20 for check in CHECKS)
