"""`mbrl results`: what is found, written and read again, imported, averaged, and what is refused with two values."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mbrl.bench.published import read_published
from mbrl.bench.results import COLUMNS, Run, check_terms, read_csv, runs_in, write_csv
from mbrl.bench.summary import by_method, by_task, pairs
from mbrl.cli.compose import packaged_configs
from mbrl.cli.main import main
from mbrl.files import DamagedFile
from tests.bench.finished import Make, finished


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(finished, tmp_path / "bench")


def found(folder: Path) -> list[Run]:
    return runs_in(folder.parents[3] if folder.name == "run" else folder)


def test_a_run_is_read_with_its_terms_and_every_evaluation(make: Make) -> None:
    (run,) = found(make(success=0.5))
    assert (run.task, run.method, run.seed) == ("door-close-v3", "dreamer", 0)
    assert run.terms.physics == "metaworld=3.1.1 mujoco=3.3.0"
    assert (run.terms.success_rule, run.terms.obs, run.terms.demos) == ("any", "pixels", 0)
    assert [point.kind for point in run.points] == ["random", "interim", "interim", "final"]
    assert run.curve("success") == ([1000, 2000], [0.0, 0.6])
    assert (run.value("success"), run.value("reward"), run.value("success", "random")) == (0.5, 140.0, 0.05)
    assert run.points[1].agent_step == 500


def test_the_tidy_csv_has_the_columns_of_tdmpc2_and_reads_back(make: Make, tmp_path: Path) -> None:
    make(seed=0)
    runs = found(make(seed=1, success=0.25))
    path = tmp_path / "all.csv"
    path.write_bytes(write_csv(runs))
    header, first, *rest = path.read_text().splitlines()
    assert header.split(",") == list(COLUMNS)
    assert set(COLUMNS) >= {"step", "success", "reward", "seed"}
    assert first.startswith("0.0,0.05,32.0,0,door-close-v3,dreamer,random,0.0,20.0,0.0,5.0,default,")
    assert len(rest) == 7
    assert read_csv(path) == runs
    path.write_text(path.read_text().replace("interim", "final?", 1))
    with pytest.raises(DamagedFile, match="line 3: kind must be one of"):
        read_csv(path)
    path.write_text("step,seed\n1,2\n")
    with pytest.raises(DamagedFile, match="import= reads other files"):
        read_csv(path)


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"result": {"protocol": {"name": "mwm", "sha256": "cd" * 32}}}, "protocol=default and .* has protocol=mwm"),
        (
            {
                "result": {"protocol": {"name": "default", "sha256": "cd" * 32}},
                "protocol": {"decisions": 250},
            },
            "protocol.decisions=100 and .* has protocol.decisions=250",
        ),
        ({"result": {"demos": 5}}, "demos=0 and .* has demos=5"),
        ({"protocol": {"success": "last"}}, "success_rule=any and .* has success_rule=last"),
        ({"result": {"versions": {"metaworld": "3.0.0"}}}, "mujoco=3.3.0 and .* has physics=metaworld=3.0.0"),
        ({"worldmodel": {"proprio": True}}, "obs=pixels and .* has obs=pixels.proprio"),
        ({"worldmodel": {"obs_keys": ["state"]}}, "obs=pixels and .* has obs=state"),
        ({"result": {"rehearsal": ["sets/a"]}}, "rehearsal=False and .* has rehearsal=True"),
    ],
)
def test_what_is_not_averaged_is_refused_with_the_two_values(make: Make, change: dict[str, Any], say: str) -> None:
    make(seed=0)
    runs = found(make(seed=1, **change))
    with pytest.raises(ValueError, match=say):
        check_terms(runs)
    with pytest.raises(ValueError, match="has"):
        by_task(runs, "success")


def test_versions_that_change_nothing_in_the_world_may_differ(make: Make) -> None:
    make(seed=0)
    versions = {"metaworld": "3.1.1", "mujoco": "3.3.0", "torch": "9"}
    check_terms(found(make(seed=1, result={"versions": versions})))


def test_two_configurations_and_a_seed_twice_are_no_repetitions(make: Make, tmp_path: Path) -> None:
    make(seed=0)
    folder = make(seed=1, agent={"gamma": 0.9})
    with pytest.raises(ValueError, match=r"agent.gamma=0.96 and .* has agent.gamma=0.9: they are not runs"):
        by_task(found(folder), "success")
    twins = [found(folder)[0], found(folder)[0]]
    with pytest.raises(ValueError, match="are both seed 0 of dreamer on door-close-v3"):
        by_method(twins, "success")


def test_a_method_has_one_configuration_on_all_tasks_that_are_averaged(make: Make, tmp_path: Path) -> None:
    for task, gamma in (("door-close-v3", 0.9), ("hammer-v3", 0.5)):
        make(task, agent={"gamma": gamma})
    runs = runs_in(tmp_path)
    assert len(by_task(runs, "success")) == 2, "each row is of one configuration"
    with pytest.raises(ValueError, match=r"agent.gamma=0.9 and .* has agent.gamma=0.5: they are not runs of one"):
        by_method(runs, "success")


def test_the_tables(make: Make) -> None:
    first, second = [0.2, 0.4, 0.9], [0.1, 0.4, 0.5]
    for task in ("door-close-v3", "hammer-v3"):
        for seed in range(3):
            make(task, "dreamer", seed, first[seed])
            last = make(task, "mbpo", seed, second[seed], curve=(0.0, 0.4))
    last = make("reach-v3", "mbpo", 0, 1.0)
    runs = found(last)
    rows = by_task(runs, "success")
    assert [(row["task"], row["method"], row["seeds"]) for row in rows][:2] == [
        ("door-close-v3", "dreamer", "3"),
        ("door-close-v3", "mbpo", "3"),
    ]
    assert rows[0]["success"].startswith("0.50 [")
    assert (rows[0]["lowest"], rows[0]["highest"], rows[0]["random"]) == ("0.20", "0.90", "0.05")
    assert rows[0]["env steps to 0.5"] == "3 of 3, 2000 in the median"
    assert rows[1]["env steps to 0.5"] == "0 of 3, more than were run"
    assert rows[-1]["success"] == "1.00 [0.84, 1.00] of 20 episodes"  # Wilson's: there is one seed
    assert by_task(runs, "reward")[-1]["reward"] == "140.00"
    methods = by_method(runs, "success")
    assert [(row["method"], row["tasks"], row["runs"]) for row in methods] == [
        ("dreamer", "2", "6"),
        ("mbpo", "2", "6"),
    ]
    assert methods[0]["iqm"].startswith(f"{stats.trim_mean(first * 2, 0.25):.2f} [")
    assert methods[0]["mean"].startswith("0.50 [")
    (row,) = pairs(runs, "success")
    better = np.mean([(x > y) + (x == y) / 2 for x in first for y in second])
    assert row["P(better)"].startswith(f"{better:.2f} [")
    assert (row["same seeds"], row["wins/ties/losses"]) == ("6", "4/2/0")
    with pytest.raises(ValueError, match="rewards of several tasks"):
        by_method(runs, "reward")
    with pytest.raises(ValueError, match="at least two methods"):
        pairs([run for run in runs if run.method == "mbpo"], "success")
    alone = [run for run in runs if (run.method, run.task) in (("dreamer", "hammer-v3"), ("mbpo", "reach-v3"))]
    with pytest.raises(ValueError, match="no task that all methods have"):
        by_method(alone, "success")


def test_the_verb_lists_filters_and_exports(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(seed=0)
    bench = make(seed=1).parents[3]
    out = tmp_path / "out" / "one.csv"
    assert main(["results", f"from={bench}", "seed=1", f"to={out}"]) == 0
    said = capsys.readouterr().out
    assert "1 run\n" in said
    assert "1 run written to" in said
    assert main(["results", f"from={out},{bench}", "seed=0", "show=tasks"]) == 0
    assert "0.50" in capsys.readouterr().out
    assert main(["results", f"from={out},{bench}", "show=tasks"]) == 2  # seed 1 twice
    assert "are both seed 1" in capsys.readouterr().err
    assert main(["results", f"from={bench}", "method=nobody"]) == 2
    assert "there are task=door-close-v3; method=dreamer; protocol=default" in capsys.readouterr().err


TDMPC2 = "step,success,seed\n0,0.0,1\n100000,0.9,1\n0,0.0,2\n100000,0.7,2\n"


def bring(path: Path, *words: str) -> list[Run]:
    out = path.with_name("imported.csv")
    given = [] if any(word.startswith("success_rule") for word in words) else ["success_rule=last"]
    assert main(["results", f"import={path}", "protocol=theirs", *given, *words, f"to={out}"]) == 0
    return read_csv(out)


def test_files_of_tdmpc2_are_imported_under_a_named_protocol(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "tdmpc2" / "mw-hammer.csv"
    path.parent.mkdir()
    path.write_text(TDMPC2)
    runs = bring(path, "obs=state")
    assert [(run.task, run.method, run.seed, run.value("success")) for run in runs] == [
        ("mw-hammer", "tdmpc2", 1, 0.9),
        ("mw-hammer", "tdmpc2", 2, 0.7),
    ]
    assert (runs[0].terms.protocol, runs[0].terms.obs) == ("theirs", "state")
    assert runs[0].curve("success") == ([0, 100000], [0.0, 0.9])
    ours = found(make("hammer-v3", "dreamer", 0))
    with pytest.raises(ValueError, match=r"protocol=theirs and .* has protocol=default"):
        by_task([*runs, *ours], "success")


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "a, [b]")
    assert main(["results", f"from={tmp_path / 'a, [b]'}"]) == 0
    finished(tmp_path / "c")
    assert main(["results", f"from={tmp_path / 'a, [b]'},{tmp_path / 'c'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs"


def test_an_import_leaves_its_file_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mw-hammer.csv"
    path.write_text(TDMPC2)
    line = ["results", f"import={path}", "protocol=theirs", "success_rule=last", f"to={path}"]
    assert main(line) == 2
    assert "is the file that is imported" in capsys.readouterr().err
    assert path.read_text() == TDMPC2


def test_files_of_dreamerv3_are_imported(tmp_path: Path) -> None:
    lines = tmp_path / "metrics.jsonl"
    rows = [{"step": 10, "episode/score": 1.5}, {"step": 20, "train/loss": 3}, {"step": 30, "episode/score": 2.5}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = bring(lines, "task=walker-walk", "method=dreamerv3", "seed=4", "success_rule=none")
    assert (run.task, run.method, run.seed) == ("walker-walk", "dreamerv3", 4)
    assert run.curve("reward") == ([10, 30], [1.5, 2.5])
    scores = tmp_path / "scores.json"
    curves = [{"task": "dmc_a", "method": "m", "seed": s, "xs": [1, 2], "ys": [s, 2.0]} for s in ("0", "1")]
    scores.write_text(json.dumps(curves))
    assert [(r.task, r.seed, r.value("reward")) for r in bring(scores, "success_rule=none")] == [
        ("dmc_a", 0, 2.0),
        ("dmc_a", 1, 2.0),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "step,seed\n1,2\n"),
        ("a.csv", ""),
        ("a.json", "[1]"),
        ("a.jsonl", "{"),
        ("a.csv", "step,success\n1,x\n"),
    ],
)
def test_a_file_that_holds_no_curves_is_damaged(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    out = tmp_path / "out.csv"
    assert main(["results", f"import={path}", "protocol=theirs", "success_rule=any", f"to={out}"]) == 3
    assert not out.exists()


def test_what_papers_report_is_shown_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    published = read_published(packaged_configs() / "published")
    assert all(one.source and one.protocol for one in published.values())
    figure = {(s.task, s.method, s.env_steps): s.success for s in published["ivideogpt_figure7"].scores()}
    assert figure["plate-slide", "mbpo_pretrained", 50000] == 0.99
    at_50k = [value for (_, method, step), value in figure.items() if (method, step) == ("mbpo_pretrained", 50000)]
    assert np.mean(at_50k) == pytest.approx(0.622, abs=0.005)  # the six-task mean
    tables = {(s.task, s.method, s.env_steps): s.success for s in published["ncrl_tables"].scores()}
    means = {
        m: np.mean([v for (_, n, step), v in tables.items() if (n, step) == (m, 150000)]) for m in ("ncrl", "drqv2")
    }
    assert means == pytest.approx({"ncrl": 0.938, "drqv2": 0.633}, abs=0.005)
    assert main(["results", "show=published", "task=hammer-v3", "method=ncrl"]) == 0
    said = capsys.readouterr().out
    assert "NCRL" in said
    assert "iVideoGPT" not in said.splitlines()[0]
    assert said.splitlines()[-1].split() == ["hammer", "ncrl", "150000", "1.00"]
    assert main(["results", "show=published", "task=hamer"]) == 2
    assert "nothing is published here on these tasks by these methods; there are task=" in capsys.readouterr().err
