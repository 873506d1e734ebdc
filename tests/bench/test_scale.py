"""Sizes beside each other: the same runs as a benchmark's, one row each, and a sentence that says no more."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mbrl.bench.scale import Sized, as_csv, sentence
from mbrl.bench.scale_figure import figure
from mbrl.cli.errors import BadInput
from mbrl.cli.main import main
from mbrl.cli.scale import at_equal_compute, audit_runs, counted, read_sizes
from mbrl.cli.train import possible
from mbrl.ranks import current
from mbrl.rundir.folder import write_run
from tests.bench.finished import finished

ROW = Sized(
    size="tiny", seed=0, parameters=10**6, dynamics=10**5, codes=4, update_gflop=3.0, frame_mflop=9.0, env_steps=100,
    score=0.5, second_half=0.4, steps_50=60.0, steps_80=math.nan, cross_entropy=1.0, reward_error=0.3,
    ranking=0.2, return_r2=0.5, wall_s=60.0,
)  # fmt: skip
SIZES = [replace(ROW, size=f"s{n}", seed=seed, parameters=10 ** (5 + n)) for n in range(4) for seed in range(3)]
TOY = ["task=toy", "task.name=reach", "experiment=debug", "transformer=micro,tiny", "schedule.total=150"]
TOY += ["evaluation.episodes=2", "evaluation.interim=1", "evaluation.rows=2", "seeds=1"]


def test_what_changes_with_size_is_said_and_what_does_not_is_not() -> None:
    grown = [replace(row, score=math.log10(row.parameters) / 10 + row.seed / 100) for row in SIZES]
    said = sentence(grown)
    assert said.startswith("100k to 100.0M parameters, 4 sizes, 12 runs: final score 0.51 at the smallest and 0.81 at")
    assert "the final score grows with size (rank correlation +0.9" in said and "12 runs)" in said
    assert "held-out reward error is the same everywhere, or too few have it to tell (12 runs)" in said
    mixed = [replace(row, score=(row.seed + place % 2) / 4) for place, row in enumerate(SIZES)]
    assert "the final score does not change with size, as far as these runs tell" in sentence(mixed)
    assert "0 of 12 runs had 0.8 of the score at an interim evaluation." in said
    assert sentence(SIZES[:3]) == "Fewer than two sizes have finished: nothing follows."


def test_tokenizers_are_compared_by_the_codes_of_a_frame_and_not_by_the_cross_entropy_of_different_codes() -> None:
    rows = [
        replace(ROW, size=f"t{codes}", seed=seed, codes=codes, score=0.1 * seed + codes / 32, cross_entropy=1 / codes)
        for codes in (1, 4, 16)
        for seed in range(3)
    ]
    said = sentence(rows)
    assert said.startswith("1 to 16 codes of a frame, 3 sizes, 9 runs: final score 0.13 at the smallest and 0.60 at")
    assert "the final score grows with size (rank correlation" in said and "cross-entropy" not in said
    with Image.open(io.BytesIO(figure(rows, title="t", follows=said))) as picture:
        assert picture.format == "PNG"


def test_a_table_leaves_empty_what_was_not_reached() -> None:
    first, *_ = csv.DictReader(as_csv([ROW]).splitlines())
    assert (first["size"], first["parameters"], first["steps_50"], first["steps_80"]) == ("tiny", "1000000", "60.0", "")


def test_one_command_trains_what_is_left_and_reports_and_an_audit_fills_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "sizes"
    line = ["scale", *TOY, "starts=0", f"to={to}"]
    first, second = read_sizes(line[1:])[0].cells
    # its configuration is a real one; nothing was learned: 0.05 of the random policy, then two interim evaluations
    ended = finished(to, "reach", first.method, curve=(0.0, 0.6), success=0.9)
    write_run(ended, possible([*first.words, f"run_dir={tmp_path / 'other'}"], current())["plain"], {})
    assert main(line) == 0
    results = [ended / "result.json", second.run / "result.json"]
    before = [path.stat().st_mtime_ns for path in results]
    capsys.readouterr()
    audit_runs([first, second], 2, [])
    said = capsys.readouterr().out
    assert f"{first.name} is not audited: run={first.run} holds no checkpoint" in said
    audit_runs([second], 2, [])
    assert capsys.readouterr().out == "", "that is done already"
    assert main(line) == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    assert "written to" in capsys.readouterr().out
    small, large = csv.DictReader((to / "scale.csv").read_text().splitlines())
    assert [row["size"] for row in (small, large)] == ["debug-micro", "debug-tiny"]
    assert float(small["frame_mflop"]) < float(large["frame_mflop"])
    assert 0 <= float(large["score"]) <= 1 and (small["env_steps"], large["env_steps"]) == ("3000", "150")
    assert (small["ranking"], small["return_r2"]) == ("", "")
    assert (small["steps_50"], small["steps_80"], small["second_half"]) == ("2000.0", "", "0.6")
    assert -1 <= float(large["ranking"]) <= 1 and float(large["return_r2"]) <= 1
    with Image.open(to / "scale.png") as picture:
        assert picture.size == (1800, 840)
    results[0].write_text('{"env_steps": 3000}')
    assert main(line) == 3
    assert capsys.readouterr().err.startswith(f"damaged, left out: {results[0]}")
    assert len((to / "scale.csv").read_text().splitlines()) == 2


def test_at_equal_compute_the_larger_model_has_fewer_env_steps_and_the_plan_is_shown_with_its_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=toy", "task.name=reach", "experiment=toy", "transformer=micro,tiny", "fixed=compute", "seeds=2"]
    words.append("schedule.total=40000")
    assert main(["scale", *words, f"to={tmp_path / 'out'}", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    totals = {
        (found[1], int(found[2])): int(found[3])
        for line in said
        if (found := re.search(r"reach/(toy-\w+)/seed-(\d) .*schedule.total=(\d+)", line))
    }
    assert len(totals) == 4
    assert totals["toy-micro", 0] == totals["toy-micro", 1] == 40_000
    assert 10_000 <= totals["toy-tiny", 0] == totals["toy-tiny", 1] < 40_000
    assert said[0].split("  ")[0] == "size" and said[1].split()[0] == "toy-micro"
    small, large = (line.split() for line in said[1:3])
    assert large[5] == str(totals["toy-tiny", 0]) and small[5] == "40000"
    assert float(small[3]) < float(large[3]), "operations of an update"
    assert float(small[6]) == pytest.approx(float(large[6]), rel=0.05), "those of a run are the same"
    assert said[-1].startswith("4 queued of 4 runs") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["transformer=micro,s"], "debug-s takes more than that for its prefill alone"),
        (
            [
                "transformer=tiny,micro",
                "schedule.tokenizer.every=0",
                "schedule.dynamics.every=0",
                "schedule.learn.every=0",
            ],
            "debug-micro takes no more for more env steps",
        ),
    ],
)
def test_a_size_without_env_steps_of_the_same_operations_is_refused(
    tmp_path: Path, words: list[str], said: str
) -> None:
    asked, _, _ = read_sizes(
        ["task=toy", "task.name=reach", "experiment=debug", *words, "fixed=compute", "seeds=1", f"to={tmp_path}"]
    )
    with pytest.raises(BadInput, match=said):
        at_equal_compute(asked.cells, counted(asked.cells))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["transformer=micro,tiny"], "task.name must be the one task that every size learns (got nothing)"),
        (["task.name=a,b", "transformer=micro,tiny"], "task.name must be the one task"),
        (["task.name=reach"], "one key must have several values, such as transformer=micro,tiny (got none)"),
        (["task.name=reach", "transformer=micro,tiny", "agent=a,b"], "(got transformer, agent)"),
        (["task.name=reach", "transformer=micro,tiny", "starts=1"], "starts must be a whole number >= 2 (got 1)"),
        (["task.name=reach", "transformer=micro,tiny", "fixed=time"], "fixed must be data or compute (got time)"),
        (
            ["task.name=reach", "schedule.total=300,600", "fixed=compute"],
            "schedule.total is what fixed=compute chooses",
        ),
        (["task=toy", "task.name=nothing", "experiment=toy", "transformer=micro,tiny"], "nothing"),
        (["task=toy", "task.name=reach", "experiment=toy", "transformer=micro,tyni"], "tyni"),
    ],
)
def test_what_is_no_comparison_of_sizes_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["scale", *words, f"to={tmp_path / 'out'}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()
