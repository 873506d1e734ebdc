"""A few dozen of the mutations of `python -m benchmarks.fuzz`, always the same ones."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import fuzzed

CASES = 30


def test_mutated_run_folders_end_in_one_line(tmp_path: Path) -> None:
    found = list(fuzzed(CASES, 0, tmp_path))
    assert [(name, ended) for name, ended in found if ended.wrong] == []
    codes = {ended.code for _, ended in found}
    assert len(found) == CASES and 0 in codes and codes & {2, 3}, "some are refused, some harmless"
