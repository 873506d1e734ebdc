"""The actor's gate: what it asks for, who acts and what is owed while it is closed, and that it survives a stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.dreamer import Dreamer
from mbrl.cli.compose import compose
from mbrl.cli.train import as_plain
from mbrl.measure.instruments import Instruments
from mbrl.replay.episode import Episode
from mbrl.run.assemble import Configs, assemble
from mbrl.run.gate import Gate, GateConfig
from mbrl.run.run import Run
from mbrl.run.train import train
from mbrl.rundir.folder import run_info
from mbrl.rundir.stop import Stop
from tests.children import laid
from tests.run.test_resume import assert_same_run

GATE = ("schedule.gate.episodes=2", "schedule.gate.reward_r2=0.3", "schedule.gate.codes_alive=1")
FITS = ("schedule.tokenizer.initial=2", "schedule.dynamics.initial=2")
NOTHING_TO_FIT = [f"schedule.{part}.{key}=0" for part in ("tokenizer", "dynamics") for key in ("initial", "updates")]
SHORT = ("schedule.total=200", "schedule.evaluate.every=0", *FITS)
R2 = {4: 0.1, 5: 0.4, 6: 0.5}
"""By episode: the mean of two in a row passes 0.3 with episode 6 only, at env step 200 of 200 (two rows, 25 steps)."""


def assembled(folder: Path, *words: str) -> Run:
    plain = as_plain(compose("train", laid("experiment=debug", f"run_dir={folder}", *SHORT, *words)))
    return assemble(Configs.of(plain, trusted=True), folder, info=run_info(plain, argv=[]), stop=Stop())


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Held-out episodes measure what a table says."""

    def script(table: dict[int, float]) -> None:
        def heldout(self: Instruments, episode: Episode, *, own: bool) -> dict[str, float]:
            return {"heldout/reward_r2_5": table.get(episode.number, 0.9)}

        monkeypatch.setattr(Instruments, "heldout", heldout)

    return script


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What the run has said so far."""
    with caplog.at_level(logging.INFO, logger="mbrl"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)


def test_without_a_gate_it_is_open_from_the_beginning() -> None:
    gate = GateConfig(episodes=0, reward_r2=0.0, codes_alive=0).build()
    assert gate.open and not gate.judge(0.9, lambda: 500)


@pytest.mark.parametrize(
    "values", [(-1, 0.0, 0), (3, 1.0, 0), (3, float("nan"), 0), (3, 0.3, -1), (0, 0.3, 0), (0, 0.0, 100)]
)
def test_a_gate_that_cannot_be_meant_is_refused(values: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GateConfig(episodes=values[0], reward_r2=values[1], codes_alive=values[2])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("schedule.gate.codes_alive=5000",), "schedule.gate.codes_alive=5000 must be <= tokenizer.vocab_future="),
        (
            ("worldmodel=oracle", *NOTHING_TO_FIT),
            "schedule.gate.episodes must be 0: the world model has nothing to fit",
        ),
    ],
)
def test_a_gate_that_could_never_open_is_refused(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        assembled(tmp_path / "run", *GATE, *words)


def test_it_opens_when_the_newest_episodes_pass_on_average_and_enough_codes_live_and_stays_open() -> None:
    gate = GateConfig(episodes=2, reward_r2=0.3, codes_alive=100).build()
    assert not gate.judge(0.9, lambda: 120), "one episode of two"
    assert "1 of 2 held-out episodes" in str(gate)
    assert not gate.judge(-0.9, lambda: 120) and "reward R2 0.00" in str(gate) and "needed 0.30" in str(gate)
    assert not gate.judge(None, lambda: 120), "an episode that cannot be measured counts for nothing"
    assert not gate.judge(2.0, lambda: 99) and "99 codes alive, needed 100" in str(gate)
    assert gate.judge(-1.0, lambda: 100) and gate.open
    assert not gate.judge(-9.0, lambda: 0) and gate.open


def test_a_closed_gate_remembers_its_episodes_in_a_checkpoint() -> None:
    config = GateConfig(episodes=2, reward_r2=0.3, codes_alive=0)
    first, second = Gate(config), Gate(config)
    first.judge(0.4, lambda: None)
    second.load_state_dict(first.state_dict())
    assert second.judge(0.5, lambda: None)


def test_while_it_is_closed_the_prefiller_acts_and_the_agent_does_not_learn_then_all_is_caught_up(
    tmp_path: Path, scripted: Callable[..., None], told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(R2)
    acted, learned = [], []
    act, learn = Dreamer.act, Dreamer.learn

    def watched_act(self: Dreamer, td: Any, memory: Any, mode: Any, *, step: int) -> Any:
        acted.append((mode, run.clock.env_steps))
        return act(self, td, memory, mode, step=step)

    def watched_learn(self: Dreamer, replay: Any, update: int) -> Any:
        learned.append((update, run.clock.env_steps))
        return learn(self, replay, update)

    monkeypatch.setattr(Dreamer, "act", watched_act)
    monkeypatch.setattr(Dreamer, "learn", watched_learn)
    run = assembled(tmp_path / "run", *GATE, "schedule.total=250")
    with run.logger:
        train(run)
    assert [at for mode, at in acted if mode == "explore"] == list(range(200, 250, 2))
    assert [update for update, _ in learned] == list(range(8)), "2 initial and 2 at each of 150, 200, 250"
    assert [at for _, at in learned] == [200] * 6 + [250] * 2
    text = told()
    assert "env step 100: the gate is closed, the actor does not learn yet: 0 of 2 held-out episodes" in text
    assert "env step 150: the gate is closed, the actor does not learn yet: reward R2 0.25" in text
    assert "env step 200: the gate is open" in text and "never started" not in text


def test_a_run_whose_gate_never_opens_says_at_the_end_what_fell_short(
    tmp_path: Path, scripted: Callable[..., None], told: Callable[[], str]
) -> None:
    scripted({4: 0.2, 5: 0.1, 6: 0.05, 7: 0.15})
    run = assembled(tmp_path / "run", *GATE)
    with run.logger:
        train(run)
    assert run.clock.done.get("learn", 0) == 0 and run.clock.done["dynamics"] > 4, "the model is fitted all the same"
    (warning,) = [line for line in told().splitlines() if "WARNING" in line]
    assert "the actor never started learning" in warning and "reward R2 0.10" in warning


def test_a_run_that_is_stopped_before_and_behind_the_gate_equals_the_uninterrupted_one(
    tmp_path: Path, scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(R2)
    judge, learn = Gate.judge, Dreamer.learn

    def stopping_judge(self: Gate, *args: Any) -> bool:
        run.stop.requested |= len(self.r2) == 1  # the next episode has ended in the same step, and is judged too
        return judge(self, *args)

    def stopping_learn(self: Dreamer, replay: Any, update: int) -> Any:
        run.stop.requested |= update == 3  # in the middle of what is caught up
        return learn(self, replay, update)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = assembled(whole, *GATE)
    with run.logger:
        train(run)

    done = []
    stops = ((Gate, "judge", stopping_judge), (Dreamer, "learn", stopping_learn), (Dreamer, "learn", learn))
    for owner, name, stopping in stops:
        run = assembled(parts, *GATE)
        with run.logger, monkeypatch.context() as patch:
            assert (run.checkpoints.load(run.parts()) is None) == (not done)
            patch.setattr(owner, name, stopping)
            train(run)
        done.append((bool(run.stop), run.gate.open, run.clock.done.get("learn", 0)))
    assert done == [(True, False, 0), (True, True, 4), (False, True, 6)]
    assert_same_run(whole, parts)
