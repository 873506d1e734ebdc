"""Demonstrations open the replay, count nowhere else, stay for ever, and survive any interruption."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mbrl.run.validate
from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.cli.train import as_plain
from mbrl.envs.make import make_envs
from mbrl.envs.toy import Toy, ToyTask
from mbrl.replay.episode import Episode
from mbrl.replay.store import expected_bytes
from mbrl.run.assemble import Configs, assemble
from mbrl.run.run import Run
from mbrl.rundir.folder import default_folder, run_info
from mbrl.rundir.stop import Stop
from tests.children import laid
from tests.run.test_resume import assert_same_run
from worldmodel.seeds import Seeds

Train = Callable[..., int]

SHORT = "schedule.total=100"


def configured(folder: Path, *words: str) -> dict[str, Any]:
    return as_plain(compose("train", laid("experiment=debug", f"run_dir={folder}", *words)))


def assembled(folder: Path, *words: str) -> Run:
    """A run as it is before its first step."""
    plain = configured(folder, *words)
    return assemble(Configs.of(plain, trusted=True), folder, info=run_info(plain, argv=[]), stop=Stop())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """`run(*words, name="run")`: as `assembled`; logs are closed in the end."""
    made: list[Run] = []

    def make(*words: str, name: str = "run") -> Run:
        made.append(assembled(tmp_path / name, *words))
        return made[-1]

    yield make
    for one in made:
        one.logger.close()


def episodes(run: Run) -> list[Episode]:
    return [stored.episode for stored in run.replay.store.stored]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "replay").glob("ep-*.npz"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What the run says, and nobody else hears."""
    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("mbrl")
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    before = logger.level
    logger.setLevel(logging.INFO)
    yield records
    logger.setLevel(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "experiment=debug", f"run_dir={folder}", "demos=2", SHORT]) == 0
    return folder


def test_they_are_whole_successful_episodes_with_the_first_numbers(run: Callable[..., Run]) -> None:
    made = run("demos=3")
    made.demonstrate()
    assert [(episode.number, episode.env, len(episode)) for episode in episodes(made)] == [
        (0, 0, 25), (1, 0, 25), (2, 0, 25),
    ]  # fmt: skip
    for episode in episodes(made):
        first = int(episode.success.argmax())
        assert episode.success.any() and first < 24, "the expert goes on behind its success"
        assert episode.truncated[-1] and np.isfinite(episode.reward).all()


def test_they_begin_where_their_own_seeds_say_and_training_s_episodes_elsewhere(run: Callable[..., Run]) -> None:
    made = run("demos=3")
    made.demonstrate()
    configs = Configs.of(configured(made.folder), trusted=True)
    fresh = make_envs(configs.task, configs.protocol, seeds=Seeds(0), stream="demos", rows=1)
    starts = [fresh.reset()["pixels"][0] for _ in range(3)]
    for episode, start in zip(episodes(made), starts, strict=True):
        assert torch.equal(torch.from_numpy(episode.pixels[0].copy()), start)
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(made.collector.env.reset()["pixels"][0], starts[0])


def test_they_cost_no_env_steps_and_are_no_training_episodes(run: Callable[..., Run]) -> None:
    made = run("demos=3")
    made.demonstrate()
    assert (made.clock.env_steps, made.clock.decisions, made.clock.episodes) == (0, 0, 3)
    assert made.clock.done == {"demos": 3}
    assert not made.progress.recent and not made.progress.sums
    made.demonstrate()
    assert (made.clock.episodes, len(episodes(made))) == (3, 3), "they are made once"


def test_without_them_nothing_is_built_or_played(run: Callable[..., Run]) -> None:
    made = run()
    made.demonstrate()
    assert made.demos is None and made.clock.done == {} and len(made.replay) == 0


def test_training_collects_the_same_data_with_and_without_them(
    run: Callable[..., Run], told: list[logging.LogRecord]
) -> None:
    with_them, without = run("demos=3", name="with"), run(name="without")
    with_them.demonstrate()
    for made in (with_them, without):
        while made.clock.env_steps < 50:
            made.collector.step(made.prefiller)
    assert [episode.number for episode in episodes(with_them)] == [0, 1, 2, 3, 4]
    for mine, other in zip(episodes(with_them)[3:], episodes(without), strict=True):
        assert np.array_equal(mine.pixels, other.pixels) and np.array_equal(mine.action, other.action)
    assert with_them.progress.recent == without.progress.recent
    with_them.report()
    assert told[-1].getMessage().startswith("env steps     50/300 | episode    2 |"), "the two of training only"


def test_run_json_the_folder_s_name_and_the_score_s_file_tell_of_them(finished: Path, tmp_path: Path) -> None:
    assert json.loads((finished / "run.json").read_text())["demos"] == 2
    assert main(["eval", f"run={finished}", "episodes=1"]) == 0
    assert json.loads((finished / "evaluation.json").read_text())["demos"] == 2
    with (finished / "eval.csv").open() as lines:
        assert next(csv.DictReader(lines))["env_step"] == "0"
    variants = {"agent": "mine", "transformer": "s"}
    for words, method in (([], "mine-s"), (["demos=5"], "mine-s-demos5")):
        place = default_folder(configured(tmp_path / "other", *words), variants)
        assert place.parts[:4] == ("runs", "reach", method, "seed-0")


def test_a_finished_run_cannot_be_given_another_number(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"run_dir={finished}", "demos=3"]) == 2
    assert "demos=3 cannot be given to a run that began with demos=2" in capsys.readouterr().err


def test_a_stop_inside_a_demonstration_forgets_that_one_and_the_next_start_makes_it_anew(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("demos=4", name="whole")
    whole.demonstrate()
    made = run("demos=4")
    assert made.demos is not None
    asked, expert = [], made.demos.teacher.env.expert_actions

    def counted() -> torch.Tensor:
        asked.append(1)
        made.stop.requested = len(asked) == 25 + 25 + 7
        return expert()

    monkeypatch.setattr(made.demos.teacher.env, "expert_actions", counted)
    made.demonstrate()
    assert (made.clock.done, made.clock.episodes) == ({"demos": 2}, 2)
    made.measure_random_policy()
    assert not made.going(), "nothing else begins"
    made.finish()
    made.logger.close()

    again = run("demos=4")
    assert again.checkpoints.load(again.parts()) == 0
    again.demonstrate()
    assert again.clock.done.pop("save") == 0
    assert again.clock.state_dict() == whole.clock.state_dict()
    assert again.replay.state_dict() == whole.replay.state_dict(), "same names, same bytes"


def test_a_kill_and_polite_stops_among_the_demonstrations_change_nothing(tmp_path: Path, train: Train) -> None:
    words, whole, folder = ("demos=40", SHORT), tmp_path / "whole", tmp_path / "interrupted"
    assert train(whole, *words) == 0
    assert train(folder, *words, once=lambda: len(files(folder)) >= 3) == -signal.SIGKILL
    assert 3 <= len(files(folder)) < 40, "killed too late to mean anything"
    for more in (5, 12):
        assert train(folder, *words, once=lambda more=more: len(files(folder)) >= more, number=signal.SIGTERM) == 75
        assert more <= len(files(folder)) < 40, "stopped too late to mean anything"
        assert list((folder / "checkpoints").glob("step-00000000?"))
    assert train(folder, *words) == 0
    assert_same_run(whole, folder)


def test_they_stay_when_replay_overflows_and_count_beside_its_capacity(run: Callable[..., Run]) -> None:
    made = run("demos=2", "replay.capacity=60")
    made.demonstrate()
    demo = episodes(made)[0]
    for number in range(2, 7):
        made.replay.append(dataclasses.replace(demo, number=number, env=1))
    assert [episode.number for episode in episodes(made)] == [0, 1, 5, 6], "two demonstrations and 50 of 60 decisions"
    assert len(made.replay) == 100
    state = made.replay.state_dict()
    made.replay.load_state_dict(state)
    assert [episode.number for episode in episodes(made)] == [0, 1, 5, 6]


def test_who_imitates_sees_demonstrations_only(run: Callable[..., Run]) -> None:
    made = run("demos=2")
    made.demonstrate()
    demo = episodes(made)[0]
    for number in range(2, 9):  # nothing that these frames show was demonstrated
        made.replay.append(dataclasses.replace(demo, pixels=demo.pixels * 0, number=number))
    for subset in ("demos", "all"):
        clips = made.replay.clips(40, 3, stream="imitate", draw=1, subset=subset)
        assert bool(clips["pixels"].flatten(1).any(1).all()) is (subset == "demos")
    none = run(name="none")
    none.replay.append(dataclasses.replace(demo, number=0))
    with pytest.raises(ValueError, match="no demonstration has the 3 frames that a clip of 3 needs: there are 0 "):
        none.replay.clips(1, 3, stream="imitate", draw=0, subset="demos")


def test_an_imitator_trains_and_says_how_likely_the_demonstrations_are(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", "experiment=debug", f"run_dir={folder}", "demos=2", "agent.bc_coef=1", SHORT]) == 0
    with (folder / "metrics.csv").open() as lines:
        assert [row["agent/bc_loss"] for row in csv.DictReader(lines)][-2:] != ["", ""]


def test_the_memory_estimate_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = configured(tmp_path / "run", "demos=4")
    widths = {"proprio": 2, "state": 4}
    free = expected_bytes(300 + 3 * 25, image=32, action_dim=2, widths=widths, episode_decisions=25).ram
    monkeypatch.setattr(mbrl.run.validate, "available_ram", lambda: free)
    for name in ("weights", "rollouts"):  # which would not fit either
        monkeypatch.setattr(mbrl.run.validate, name, lambda groups: iter(()))
    with pytest.raises(ValueError, match=r"lower replay.capacity to (27\d)$"):
        Configs.of(plain, trusted=True)
    assert Configs.of(plain | {"demos": 3}, trusted=True).demos == 3
    with pytest.raises(ValueError, match=r"demos=400 needs \d+\.\d MB of memory, .*; lower demos to 1\d$"):
        Configs.of(plain | {"demos": 400}, trusted=True)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("demos=-1", "demos must be a whole number >= 0 (got -1)"),
        ("demos=x", "demos must be a whole number (got x)"),
        ("demos=2.5", "demos must be a whole number (got 2.5)"),
        ("demos=true", "demos must be a whole number (got true)"),
        ("demo=5", "unknown key demo (in demo=5); did you mean demos?"),
        ("demos=100000000", "demos=100000000 needs"),
        ("agent.bc_coef=-1", "agent.bc_coef must be >= 0 (got -1.0)"),
        (
            "agent.bc_coef=1",
            "needs demonstrations to imitate: set demos=5 or demos=DIR; or set agent.bc_coef=0 (got 1.0)",
        ),
    ],
)
def test_a_bad_number_is_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_stored_number_is_not_trusted(tmp_path: Path) -> None:
    plain = configured(tmp_path / "run")
    for bad in ("x", None, True, -3):
        with pytest.raises(ValueError, match="demos must be a whole number >= 0"):
            Configs.of(plain | {"demos": bad}, trusted=False)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("demos=2", "demos=2 needs a scripted expert, and reach has none; leave demos out"),
        (
            "agent=scripted",
            "agent asks a scripted expert, and reach has none; choose another, for example agent=random",
        ),
        ("prefill=scripted", "prefill asks a scripted expert, and reach has none; choose another"),
    ],
)
def test_a_world_without_an_expert_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    facts = dataclasses.replace(ToyTask(name="reach").facts(None), expert=False)  # type: ignore[arg-type]
    monkeypatch.setattr(ToyTask, "facts", lambda self, protocol: facts)
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_an_expert_that_fails_is_told_aloud_and_its_episodes_are_kept(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, told: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(Toy, "expert", lambda self: -np.sign(self._goal - self._dot).astype(np.float32))
    made = run("demos=3")
    made.demonstrate()
    failed = sum(not episode.success.any() for episode in episodes(made))
    assert failed >= 2 and len(episodes(made)) == 3
    (record,) = told
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"WARNING: only {3 - failed} of 3 demonstrations succeeded")


@pytest.mark.metaworld
def test_meta_world_s_expert_solves_a_task_of_the_paper_and_the_other_worlds_go_on(run: Callable[..., Run]) -> None:
    made = run(
        *("task=metaworld", "protocol=default", "task.name=plate-slide-v3", "tokenizer.image=64", "demos=2"),
        *("schedule.prefill=400", *(f"schedule.{part}.start=400" for part in ("tokenizer", "dynamics", "learn"))),
        "schedule.total=400",
    )
    made.demonstrate()
    assert [(len(episode), bool(episode.success.any())) for episode in episodes(made)] == [(100, True), (100, True)]
    assert not np.array_equal(episodes(made)[0].pixels[0], episodes(made)[1].pixels[0])
    before = made.collector.env.reset()["pixels"][0]
    made.collector.step(made.agent)
    assert made.collector.now is not None and made.collector.now["pixels"][0].float().std() > 0
    assert before.float().std() > 0, "the demonstrations' world is closed, the others still draw"
