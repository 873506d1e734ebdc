"""Which weights are scored at the end, and that being scored changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.api import Agent
from mbrl.cli.compose import compose
from mbrl.cli.train import as_plain
from mbrl.io.checkpoint import read_newest
from mbrl.run.assemble import Configs, assemble
from mbrl.run.best import Best
from mbrl.run.evaluate import EvaluationConfig, Evaluator, Score
from mbrl.run.run import Run
from mbrl.run.train import train
from mbrl.rundir.folder import run_info
from mbrl.rundir.stop import Stop
from tests.children import laid


class Weights:
    """A part with one number."""

    def __init__(self, number: float) -> None:
        self.number = torch.tensor([number])

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"].clone()


def score(success: int, total: float) -> Score:
    """Of 4 episodes."""
    solved = tuple(i < success for i in range(4))
    steps = tuple(1 if one else None for one in solved)
    return Score((total,) * 4, solved, solved, steps, first=None)  # type: ignore[arg-type]


def test_more_successes_win_then_the_higher_return_then_the_later_one() -> None:
    part = Weights(0)
    best = Best({"model": part})
    assert not best
    for step, (success, total) in enumerate([(1, 9.0), (3, 1.0), (2, 99.0), (3, 2.0), (3, 2.0), (3, 1.5)]):
        part.number.fill_(step)  # in place, as an optimizer does
        best.offer(score(success, total), env_step=10 * step)
    assert best.env_step == 40
    with best.in_place():
        assert part.number.item() == 4
    assert part.number.item() == 5, "what is trained on stays the newest"


def test_the_best_survives_a_checkpoint() -> None:
    one, other = Weights(7), Weights(0)
    best, again = Best({"model": one}), Best({"model": other})
    best.offer(score(2, 1.0), env_step=30)
    again.load_state_dict(best.state_dict())
    again.offer(score(1, 5.0), env_step=40)
    assert again.env_step == 30
    with again.in_place():
        assert other.number.item() == 7


def test_evaluations_of_different_sizes_are_not_compared() -> None:
    best = Best({"model": Weights(0)})
    best.offer(Score((5.0,), (True,), (True,), (1,), first=None), env_step=10)  # type: ignore[arg-type]
    best.offer(score(3, 1.0), env_step=20)
    assert best.env_step == 20, "3 of 4 say more than 1 of 1"


def test_weights_that_are_no_choice_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must be last or best"):
        EvaluationConfig(episodes=1, interim=1, rows=1, weights="middle")  # type: ignore[arg-type]


def assembled(folder: Path, *words: str) -> Run:
    plain = as_plain(compose("train", laid("experiment=debug", f"run_dir={folder}", *words)))
    return assemble(Configs.of(plain, trusted=True), folder, info=run_info(plain, argv=[]), stop=Stop())


@pytest.mark.parametrize(("weights", "scored"), [("best", 200), ("last", 300)])
def test_the_final_score_is_that_of_the_chosen_weights_on_starts_that_chose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, scored: int
) -> None:
    """The first interim evaluation (of env step 200) is made to look the best."""
    run = assembled(tmp_path / "run", f"evaluation.weights={weights}")
    honest, asked, acting = Evaluator.score, [], {}

    def judged(self: Evaluator, agent: Agent, episodes: int, *, stream: str = "evaluate") -> Score:
        asked.append((run.clock.env_steps, stream))
        found = honest(self, agent, episodes, stream=stream)
        acting[run.clock.env_steps, stream] = {k: v.clone() for k, v in agent.state_dict().items() if "actor." in k}
        lucky = run.clock.env_steps == 200
        return Score((9.0 if lucky else 0.0,), (lucky,), (lucky,), (1 if lucky else None,), found.first)

    monkeypatch.setattr(Evaluator, "score", judged)
    with run.logger:
        train(run)
    assert asked == [(0, "evaluate"), (200, "select"), (300, "select"), (300, "evaluate")]
    final, chosen = acting[300, "evaluate"], acting[scored, "select"]
    assert all(torch.equal(final[name], chosen[name]) for name in final)
    other = acting[500 - scored, "select"]
    assert any(not torch.equal(final[name], other[name]) for name in final)
    states = read_newest(tmp_path / "run" / "checkpoints").states
    assert states["best"]["found"]["env_step"] == 200
    for name, tensor in acting[300, "select"].items():
        assert torch.equal(states["agent"][name], tensor), "training goes on from the newest weights"
