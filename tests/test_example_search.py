"""The example of a search: every trial is told once, also after it was stopped in the middle of one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="needs optuna (pip install optuna)")


def test_a_search_that_was_stopped_goes_on_with_the_trial_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs" / "examples"))
    search, seen = importlib.import_module("search"), []

    def value_of(folder: Path, words: tuple[str, ...], chosen: dict[str, Any]) -> float | None:
        seen.append((folder.name, chosen))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return None if folder.name == "trial-3" else chosen["agent.entropy_coef"]

    monkeypatch.setattr(search, "value_of", value_of)
    with pytest.raises(KeyboardInterrupt):
        search.main(tmp_path / "search", 5, "task=toy")
    study = search.main(tmp_path / "search", 5, "task=toy")
    assert [name for name, _ in seen] == [f"trial-{number}" for number in (0, 1, 1, 2, 3, 4)]
    assert seen[1] == seen[2], "the same keys again"
    values = [trial.value for trial in study.trials]
    assert values[3] is None and study.best_value == max(value for value in values if value is not None)
