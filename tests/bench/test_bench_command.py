"""`mbrl bench`: what a command line plans, what it refuses, and a small benchmark from its first run to its last."""

from __future__ import annotations

import io
import signal
from collections.abc import Sequence
from pathlib import Path

import metaworld.env_dict
import pytest
import yaml

from mbrl.bench.plan import (
    PLAN,
    Cell,
    Pace,
    State,
    cell_in,
    extend_plan,
    joined,
    read_plan,
    state_of,
    write_failure,
)
from mbrl.bench.queue import Queue
from mbrl.bench.suite import Suite
from mbrl.bench.table import Screen, counted, left, progress_of, states_of
from mbrl.cli.bench import cells_of, read
from mbrl.cli.compose import packaged_configs
from mbrl.cli.errors import BadInput
from mbrl.cli.main import main
from mbrl.files import DamagedFile
from mbrl.rundir.result import read_result
from mbrl.rundir.schema import write_json
from tests.bench.cells import Notes, cells, fake
from tests.bench.finished import finished
from tests.children import run_child
from tests.rundir.test_result import GOOD

SUITES = {path.stem: yaml.safe_load(path.read_text()) for path in (packaged_configs() / "suite").glob("*.yaml")}
TWO = Suite(task="toy", tasks=("reach", "reach-terminal"), words=("experiment=toy", "schedule.total=9"))


def plan(*rest: str, seeds: int = 1, suite: Suite = TWO) -> list[Cell]:
    return cells_of(Path("b"), suite, rest, seeds=seeds, more=[])


def test_the_suites_are_those_of_meta_world_and_of_the_papers() -> None:
    tasks = {name: set(suite["tasks"]) for name, suite in SUITES.items()}
    groups = [tasks[f"mw_{name}"] for name in ("easy", "medium", "hard", "very_hard")]
    assert [len(group) for group in groups] == [28, 11, 6, 5]
    assert set().union(*groups) == tasks["mt50"] == set(metaworld.env_dict.ALL_V3_ENVIRONMENTS)
    assert tasks["mt10"] == set(metaworld.env_dict.MT10_V3)
    assert tasks["ml45_test"] == set(metaworld.env_dict.ML45_V3["test"])
    assert len(tasks["mw6"]) == 6
    assert len(tasks["cpu5"]) == 5
    assert tasks["mw6"] | tasks["cpu5"] < tasks["mt50"]


def test_several_values_of_a_word_are_an_axis_and_name_the_method() -> None:
    found = plan("agent=dreamer_toy,random", "agent.gamma=0.9,0.99", "keep=3", seeds=2)
    assert len(found) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in found] == [0] * 8 + [1] * 8
    names = {cell.method for cell in found}
    assert names == {f"{a}-agent.gamma_{g}" for a in ("dreamer_toy", "random") for g in ("0.9", "0.99")}
    first = found[0]
    assert first.folder == Path("b/reach/dreamer_toy-agent.gamma_0.9/seed-0")
    assert first.words[:2] == ("experiment=toy", "schedule.total=9")
    assert set(first.words[2:]) == {
        *(
            "agent=dreamer_toy",
            "agent.gamma=0.9",
            "keep=3",
            "compute.threads=1",
            "task=toy",
            "task.name=reach",
            "seed=0",
        )
    }


def test_a_word_replaces_the_suite_s_and_a_list_is_one_value() -> None:
    (cell, other), _ = plan("experiment=[demos,proprio],mbpo", "compute.threads=2")[:2], None
    assert "experiment=toy" not in cell.words
    assert {"experiment=[demos,proprio]", "compute.threads=2", "schedule.total=9"} < set(cell.words)
    assert (cell.method, other.method) == ("demos+proprio", "mbpo")
    assert plan()[0].method == "default"


@pytest.mark.parametrize(
    ("rest", "say"),
    [
        (["seed=1"], "write seeds=N"),
        (["task=toy"], "write suite=NAME"),
        (["task.name=a,b"], r"write suite=NAME suite.tasks=\[...\]"),
        (["run_dir=x"], "write to=DIR"),
        (["agent=a", "agent=b"], "given twice"),
        (["agent"], "is not a setting"),
        (["agent=(("], "cannot read"),
        (["keep=1,1"], "same name"),
    ],
)
def test_words_that_the_plan_decides_are_refused(rest: Sequence[str], say: str) -> None:
    with pytest.raises(BadInput, match=say):
        plan(*rest)


def test_the_keys_of_the_benchmark_are_checked(tmp_path: Path) -> None:
    assert read(["suite=toy", "suite.tasks=[reach]", "seeds=2", f"to={tmp_path}"]).cells[1].seed == 1
    for word, say in (
        ("seeds=0", ">= 1"),
        ("slots=0", ">= 1"),
        ("slots=two", "whole"),
        ("gpus=[x]", "whole numbers"),
        ("gpus=[true]", "whole numbers"),
        ("gpus=[-1]", "whole numbers"),
        ("only=x", "only must be a whole number"),
        ("sbatch=--comment='a b", "sbatch must be options"),
    ):
        with pytest.raises(BadInput, match=say):
            read(["suite=toy", f"to={tmp_path}", "launcher=slurm", word])
    with pytest.raises(BadInput, match="to= is missing: the folder of a benchmark"):
        read(["suite=toy", "to="])
    with pytest.raises(BadInput, match="statsu is not understood; did you mean status"):
        read(["statsu", f"to={tmp_path}"])
    with pytest.raises(ValueError, match="tasks must be one or more"):
        read(["suite=toy", f"to={tmp_path}", "suite.tasks=[]"])
    with pytest.raises(BadInput, match="agent=random needs suite=NAME"):
        read([f"to={tmp_path}", "agent=random"])


def test_a_suite_and_an_agent_of_one_s_own(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    (own / "suite").mkdir(parents=True)
    (own / "suite" / "two.yaml").write_text(
        "_target_: mbrl.bench.suite.Suite\ntask: toy\ntasks: [reach]\nwords: [experiment=toy]\n"
    )
    (cell,) = read(["suite=two", "seeds=1", f"to={tmp_path / 'b'}", "--config-dir", str(own)]).cells
    assert cell.words[-1] == f"--config-dir={own}"


def test_a_plan_grows_and_is_never_turned_into_another(tmp_path: Path) -> None:
    one, two, three = cells(tmp_path, ["good", "good", "bad"])
    assert extend_plan(tmp_path, [one, two]) == [one, two]
    assert extend_plan(tmp_path, [two, three]) == [one, two, three] == read_plan(tmp_path)
    other = cells(tmp_path, ["again"])
    with pytest.raises(ValueError, match="planned with good and asked for with again"):
        joined([one], other)
    write_json(tmp_path / PLAN, {"schema": 1, "cells": [{"task": "../..", "method": "a", "seed": 0, "words": []}]})
    with pytest.raises(DamagedFile, match="name of a folder"):
        read_plan(tmp_path)


def test_time_left_is_told_by_ended_runs_of_the_same_kind(tmp_path: Path) -> None:
    todo = cells(tmp_path, ["good"] * 4)
    assert left(states_of(todo), 2, Pace()) == "time left unknown until a run has ended"
    todo[0].run.mkdir(parents=True)
    write_json(todo[0].run / "result.json", GOOD | {"wall_s": 100.0})
    assert Pace().learn(todo).seconds(todo[1]) == 100.0
    assert Pace().seconds(todo[1]) is None
    assert left(states_of(todo), 2, Pace()) == "at most 2m30s left"
    todo[1].folder.mkdir()
    write_failure(todo[1], 2, "error: no")
    assert counted(states_of(todo)) == "1 done, 1 failed, 2 queued of 4 runs"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_over_itself_and_a_file_a_line_per_change(tmp_path: Path) -> None:
    for name, stream in (("live", Terminal()), ("plain", io.StringIO())):
        todo = cells(tmp_path / name, ["good", "bad"])
        screen = Screen(todo, slots=1, stream=stream)
        Queue(todo, slots=1, stop=False, watcher=screen, command=fake).work()
        screen.close()
        said = stream.getvalue()
        assert ("\x1b[J" in said) is (name == "live")
        assert "error: agent.gamma must be < 1" in said
        assert "1 done, 1 failed of 2 runs" in said
        if name == "plain":
            first, second, *_ = said.splitlines()
            assert first == "2 queued of 2 runs; 1 at once; time left unknown until a run has ended"
            assert second == "running: reach/toy/seed-0; 1 running, 1 queued of 2 runs"
            assert len(said.splitlines()) == 5


def test_what_is_said_takes_the_place_of_the_table_and_is_not_drawn_over(tmp_path: Path) -> None:
    stream = Terminal()
    screen = Screen(cells(tmp_path, ["good"]), slots=1, stream=stream)
    screen.look([])
    screen.say("stopping")
    screen.close()
    _, _, rest = stream.getvalue().partition("1 queued of 1 run; time left unknown until a run has ended\n")
    assert rest == "\x1b[1F\x1b[Jstopping\n1 queued of 1 run; time left unknown until a run has ended\n"


def test_time_left_of_a_run_is_told_by_its_pace_since_the_prefill(tmp_path: Path) -> None:
    run = finished(tmp_path, "reach", "toy")  # 1500 of 3000 env steps are the prefill
    cell = cell_in(tmp_path, task="reach", method="toy", seed=0, words=[])
    assert str(progress_of(cell)) == "1000 of 3000 env steps"
    (run / "metrics.csv").write_text("env_step,wall_s\n1000,5\n1500,6\n2000,106\n")
    assert str(progress_of(cell)) == "2000 of 3000 env steps, 3m20s left"


def test_the_plan_is_shown_and_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "new"
    assert main(["bench", "suite=toy", "agent=dreamer_toy,random", "seeds=1", f"to={to}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("unknown  experiment=toy") == 4
    assert "4 queued of 4 runs" in said
    assert not to.exists()
    words = [
        "suite=mw6",
        "agent=dreamer,mbpo",
        "seeds=5",
        f"to={to}",
        "--dry-run",
    ]  # agents as published, no experiment
    assert main(["bench", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("agent=dreamer ") == said.count("agent=mbpo ") == 30
    assert "60 queued of 60 runs" in said


def test_status_retry_and_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = extend_plan(tmp_path, cells(tmp_path, ["good", "bad"]))
    Queue(todo, slots=2, stop=False, watcher=Notes(), command=fake).work()
    assert main(["bench", "status", f"to={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "failed  reach/toy/seed-1  exit code 2: error: agent.gamma must be < 1" in said
    assert said.endswith("1 done, 1 failed of 2 runs\n")
    assert main(["bench", "retry", f"to={tmp_path}"]) == 0
    assert capsys.readouterr().out == "  reach/toy/seed-1: will go on\n1 failed run\n"
    assert state_of(todo[1]) is State.STOPPED
    assert main(["bench", "clean", f"to={tmp_path}"]) == 0
    assert capsys.readouterr().out == "0 failed runs\n"


@pytest.mark.timeout(300)
def test_a_small_benchmark_is_stopped_goes_on_and_ends(tmp_path: Path) -> None:
    to = tmp_path / "with space"
    words = ["bench", "suite=toy", "suite.tasks=[reach]", "experiment=debug", "agent=random", "worldmodel=none"]
    words += ["schedule.total=2000", "schedule.evaluate.every=0", "evaluation.episodes=2", "seeds=1", f"to={to}"]
    begun = to / "reach" / "random-debug-none" / "seed-0" / "run" / "metrics.csv"
    assert run_child(words, once=begun.exists, number=signal.SIGTERM) == 75
    assert state_of(read_plan(to)[0]) is State.STOPPED
    assert run_child(["bench", f"to={to}"]) == 0
    result = read_result(read_plan(to)[0].run)
    assert (result["task"], result["seed"], result["threads"]) == ("reach", 0, 1)
    assert run_child(words) == 0  # nothing is left to do
