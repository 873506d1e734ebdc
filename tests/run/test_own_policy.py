"""Anybody's policy is shown the episodes of a run's final score, under the same rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from agents.api import Memory
from mbrl.bench.results import runs_in
from mbrl.cli.main import main
from mbrl.envs.make import make_envs
from mbrl.envs.simulator import EnvDataError
from mbrl.run.evaluate import Evaluator, first_success, solved
from mbrl.run.own_policy import score_policy
from mbrl.rundir.result import read_result
from tests.envs.worlds import config
from worldmodel.seeds import Seeds

ROWS, EPISODES, SEED = 2, 5, 3
OWN = """
import numpy as np

class Still:
    def __call__(self, pixels, proprio):
        return np.zeros(2)

class Moody(Still):
    def reset(self):
        raise KeyError("up")

def wide():
    return lambda pixels, proprio: [1.0, 2.0, 3.0]

def act(pixels, proprio):
    return np.zeros(2)

def nothing():
    return None

def raises():
    def act(pixels, proprio):
        raise KeyError("left")
    return act

def broken():
    return lambda pixels, proprio: [float("nan"), 0.0]
"""


class Bright:
    """Goes where the frame is bright, and counts what it was told."""

    made: list[Bright] = []  # noqa: RUF012 - one list for all

    def __init__(self) -> None:
        self.steps, self.resets = 0, 0
        Bright.made.append(self)

    def reset(self) -> None:
        self.steps, self.resets = 0, self.resets + 1

    def __call__(self, pixels: NDArray[np.uint8], proprio: NDArray[np.float32]) -> list[float]:
        self.steps += 1
        assert pixels.shape[2] == 3 and pixels.dtype == np.uint8 and proprio.dtype == np.float32
        return [float(pixels[..., 0].mean()) / 255, float(self.steps % 2)]


class BrightAgent:
    """The same as an agent."""

    def act(self, td: TensorDict, memory: Memory, mode: str, *, step: int) -> tuple[torch.Tensor, Memory]:
        steps_E = torch.where(td["is_init"].reshape(-1), 0, 0 if memory is None else memory["steps"]) + 1
        first_E = torch.tensor([float(frame[0].numpy().mean()) / 255 for frame in td["pixels"]])
        return torch.stack([first_E, (steps_E % 2).float()], 1), TensorDict({"steps": steps_E}, batch_size=[len(td)])


def test_a_policy_gets_the_episodes_that_an_agent_is_scored_on_and_is_told_where_they_begin() -> None:
    task, protocol = config("task", "toy"), config("protocol", "toy")
    env = make_envs(task, protocol, seeds=Seeds(SEED), stream="evaluate", rows=ROWS)
    scored = Evaluator(env, obs_keys=()).score(BrightAgent(), EPISODES)
    Bright.made.clear()
    score = score_policy(Bright, task, protocol, seed=SEED, episodes=EPISODES, rows=ROWS)
    assert (score.returns, score.success) == (scored.returns, scored.success)
    assert [policy.resets for policy in Bright.made] == [3, 3], "three rounds of two rows"


@pytest.mark.parametrize(
    ("came", "by_any", "by_last", "first"),
    [("0110", True, False, 2), ("0001", True, True, 4), ("000", False, False, None)],
)
def test_an_episode_is_judged_by_any_decision_by_the_last_and_by_when_it_was_first_solved(
    came: str, by_any: bool, by_last: bool, first: int | None
) -> None:
    flags_T1 = torch.tensor([[one == "1"] for one in came])
    steps = TensorDict({"next": {"success": flags_T1}}, batch_size=[len(came)])
    assert (solved(steps, "any"), solved(steps, "last"), first_success(steps)) == (by_any, by_last, first)


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    (tmp_path / "cli_policies.py").write_text(OWN)
    return ["task=toy", "protocol=toy", "episodes=3", "--config-dir", str(tmp_path)]


def test_each_seed_s_result_is_as_a_run_s_and_nothing_is_written_over(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["eval", "policy=cli_policies.Still", "seeds=0,4", f"to={tmp_path / 'out'}", *own]
    assert main(line) == 0
    results: dict[int, Any] = {seed: read_result(tmp_path / "out" / f"seed-{seed}") for seed in (0, 4)}
    assert {one["agent"] for one in results.values()} == {"cli_policies.Still"}
    assert results[4]["seed"] == 4 and len(results[4]["final"]["returns"]) == 3
    assert results[0]["final"] != results[4]["final"]
    said = capsys.readouterr().out
    assert "success at any decision, which counts here" in said
    steps = results[4]["final"]["success_step"]
    assert "by episode: " + " ".join("-" if step is None else str(step) for step in steps) in said
    assert main(line) == 2
    assert "holds seed-0/result.json already" in capsys.readouterr().err


def test_its_results_stand_beside_those_of_runs(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seeds, name in (("0,4", "still"), ("0", "slow")):
        assert main(["eval", "policy=cli_policies.Still", f"seeds={seeds}", f"to={tmp_path / 'all' / name}", *own]) == 0
    runs = runs_in(tmp_path / "all")
    assert [(run.task, run.method, run.seed) for run in runs] == [
        ("reach", "slow", 0), ("reach", "still", 0), ("reach", "still", 4),
    ]  # fmt: skip
    assert {(run.terms.protocol, run.terms.success_rule, run.terms.obs) for run in runs} == {
        ("toy", "any", "pixels+proprio")
    }
    assert runs[0].points[-1].episodes == 3
    capsys.readouterr()
    assert main(["results", f"from={tmp_path / 'all'}", "show=pairs"]) == 0
    assert "slow against still" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["policy=cli_policies.wide"], 4, "must return 2 finite numbers (got (3,) of them) in row 0, episode 0"),
        (
            ["policy=cli_policies.broken"],
            4,
            "must return 2 finite numbers (got some that are not finite) in row 0, episode 0",
        ),
        (["policy=cli_policies.raises"], 4, "raises.<locals>.act raised KeyError: 'left' in row 0, episode 0"),
        (["policy=cli_policies.Moody"], 4, "error: Moody.reset raised KeyError: 'up' in row 0, episode 0, at "),
        (["policy=cli_policies.none"], 2, "policy must be package.module.Name"),
        (["policy=cli_policies.np.pi"], 2, "policy must be package.module.Name"),
        (
            ["policy=cli_policies.act"],
            2,
            "missing a required argument: 'pixels'); a function that is the policy itself",
        ),
        (["policy=cli_policies.nothing"], 2, "a policy must be callable with a frame and proprioception (got None)"),
        (["policy=cli_policies.Still", "seeds=0,0"], 2, "seeds must be whole numbers"),
        (["policy=cli_policies.Still", "protocol=default"], 2, "protocol"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    own: list[str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    kept = [word for word in own if word.partition("=")[0] not in [one.partition("=")[0] for one in words]]
    assert main(["eval", *words, *kept]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_text_is_no_action() -> None:
    task, protocol = config("task", "toy"), config("protocol", "toy")
    with pytest.raises(EnvDataError, match=r"must return 2 numbers \(got 'left'\) in row 0"):
        score_policy(lambda: lambda pixels, proprio: "left", task, protocol, seed=0, episodes=1, rows=1)


def test_the_python_of_the_documents_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert "(20 episodes, 95 % intervals)" in capsys.readouterr().out
