"""The numbers in README.md and docs/*.md are those of the files under docs/results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.published import TABLES
from benchmarks.tables import (
    BEGIN,
    COMMAND,
    END,
    MARKED,
    RESULTS,
    ROOT,
    documents,
    main,
    names_in,
    renewed,
    stale,
    written,
)

HERE = Path("a.md")
DOOR = TABLES["door-close"]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_text_and_files_agree(path: Path) -> None:
    wrong = stale(path.read_text(), TABLES, path)
    where = path.relative_to(ROOT)
    assert not wrong, f"{where}: {', '.join(wrong)} differ from docs/results; write them anew with `{COMMAND}`"


def test_every_declared_table_stands_somewhere_and_the_readme_has_its_three() -> None:
    found = {path.name: names_in(path.read_text(), path) for path in documents()}
    assert sorted({name for names in found.values() for name in names}) == sorted(TABLES)
    assert found["README.md"] == ["door-close-averaged", "prediction-short", "transfer-short"]


def test_the_log_holds_no_table_that_is_not_a_file() -> None:
    text = (ROOT / "docs" / "numbers.md").read_text()
    assert "\n|" not in MARKED.sub("", text)


def test_the_final_score_is_told_and_no_interim_one() -> None:
    *_, last = written(DOOR).splitlines()
    assert last == "| 2 | 0.00 [0.00, 0.16] | 29 +- 14 | 1.00 [0.84, 1.00] | 1342 +- 16 | 19.9 min |"
    rows = (RESULTS / "door-close" / "seed2-eval.csv").read_text().splitlines()
    interim, final = (line.split(",")[5] for line in rows[-2:])
    assert (round(float(interim)), round(float(final))) == (1337, 1342), "both rows are of the last env step"


def test_runs_that_wrote_a_result_are_read_from_it() -> None:
    lines = written(TABLES["door-close-code"]).splitlines()
    assert "| f36aa87 (`counted-*`) | 0 | 0.00 | 0.30 [0.15, 0.52] (8000) | 636 +- 191 |" in lines[3]


def test_a_run_that_was_stopped_has_no_final_score() -> None:
    *_, reach, side = written(TABLES["proprio"]).splitlines()
    assert "| stopped after 25 000 | | 0.25 0.25 0.20 0.20 0.15 |" in reach
    assert "| stopped after 12 000 | | 0.00 0.00 |" in side


def test_means_over_seeds_and_bold_rows() -> None:
    short, whole = (written(TABLES[name]) for name in ("transfer-short", "transfer-fine"))
    assert "| **both parts adapted** | **21.04** | **0.763** | **0.119** |" in short
    assert "| **full fine-tuning** | 3 | **21.04** (0.09) | **0.763** (0.002) | **0.119** (0.005) |" in whole
    assert "| the last frame copied | 18.95 | 0.759 | 0.168 |" in short


def test_a_number_that_somebody_changed_is_found_and_mended() -> None:
    good = f"before\n{BEGIN.format('door-close')}\n{written(DOOR)}{END}\nafter\n"
    bad = good.replace("1342 +- 16", "1337 +- 15")
    assert stale(good, TABLES, HERE) == []
    assert stale(bad, TABLES, HERE) == ["door-close"]
    assert renewed(bad, TABLES, HERE) == good


def test_other_results_make_another_table(tmp_path: Path) -> None:
    folder = tmp_path / "door-close"
    folder.mkdir()
    for seed in range(3):
        for kind in ("eval.csv", "metrics.csv", "run.json"):
            shutil.copy(RESULTS / "door-close" / f"seed{seed}-{kind}", folder)
    assert written(DOOR, tmp_path) == written(DOOR)
    table = folder / "seed1-eval.csv"
    *rows, last = table.read_text().splitlines()
    table.write_text("\n".join([*rows, last.replace(",1.0,", ",0.5,", 1)]) + "\n")
    assert "| 0.50 [0.30, 0.70] |" in written(DOOR, tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{BEGIN.format('door-close')}\n| a |\n", "needs its <!-- end -->"),
        (f"| a |\n{END}\n", "needs its <!-- end -->"),
        (f"{BEGIN.format('door')}\n{BEGIN.format('window')}\n{END}\n", "no table stands inside another"),
        (f"{BEGIN.format('windows')}\n{END}\n", "table windows is not declared"),
    ],
)
def test_marks_that_fit_nothing_are_refused(text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        stale(text, TABLES, HERE)


def test_the_command_writes_only_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.tables.ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    good = f"{BEGIN.format('door-close')}\n{written(DOOR)}{END}\n"
    (tmp_path / "README.md").write_text(good.replace("1342", "1337"))
    (tmp_path / "docs" / "numbers.md").write_text(good)
    assert main([]) == 0
    assert capsys.readouterr().out == "README.md: door-close written anew\n"
    assert (tmp_path / "README.md").read_text() == good
    assert main([]) == 0
    assert capsys.readouterr().out == ""
