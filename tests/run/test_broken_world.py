"""A world that breaks in the middle of a run: one line that names the place and what was saved, and exit code 4."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mbrl.cli.main import main
from mbrl.envs.simulator import SimStep
from mbrl.envs.toy import Toy

FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (lambda: 1 // 0, " raised ZeroDivisionError: integer division or modulo by zero"),
    "leaves": (lambda: sys.exit(0), " raised SystemExit: 0"),
    "answers nothing": (lambda: None, " must return a SimStep (got None)"),
    "wrong reward": (lambda: SimStep("much", success=False), ": reward must be a number (got 'much')"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("after", [40, 170])
def test_a_world_that_breaks_ends_the_run_with_one_line(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, said = FAULTS[name]
    steps, whole, words = [0], Toy.step, ["train", "experiment=debug", f"run_dir={tmp_path / 'run'}"]
    short = [*words, "worldmodel=none", "agent=random", "schedule.evaluate.every=0"]
    short += ["evaluation.episodes=1", "evaluation.rows=1"]

    def step(self: Toy, action: Any) -> Any:
        steps[0] += 1
        return fault() if steps[0] > 25 + after else whole(self, action)  # 25: the random policy is judged first

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "step", step)
        assert main(short) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"Toy.step{said} in row 0 of reach, episode {after // 50}, decision {after // 2 % 25}" in line
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    if after < 100:
        assert saved == [] and "no checkpoint was saved yet" in line
    else:
        assert f"saved up to {saved[-1]}; `mbrl train run_dir={tmp_path / 'run'}` goes on from there" in line
        assert main(["train", f"run_dir={tmp_path / 'run'}", "schedule.total=180"]) == 0, "it resumes"
