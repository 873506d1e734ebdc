"""An agent of the user's own, from two files in a folder: trained, continued and scored; never run unasked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbrl.cli.main import main
from tests.children import run_child

MODULE = """
from dataclasses import dataclass

from agents.baselines import Random, RandomConfig


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    hold: int

    def __post_init__(self):
        if self.hold > 9:
            raise ValueError(f"hold must be <= 9 (got {self.hold})")

    def build(self, *, env_spec, seeds) -> Random:
        return Random(RandomConfig(hold=self.hold, noise=0.1), env_spec, seeds)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """my_agent.py and my_configs/agent/mine.yaml in a folder that Python does not know."""
    (tmp_path / "my_agent.py").write_text(MODULE)
    (tmp_path / "my_configs" / "agent").mkdir(parents=True)
    (tmp_path / "my_configs" / "agent" / "mine.yaml").write_text("_target_: my_agent.MineConfig\nhold: 2\n")
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("my_agent", None)


def test_an_agent_of_ones_own_is_trained_continued_and_scored(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def typed(*words: str) -> tuple[int, str]:
        """Exit code and stderr of a command in `home`, whose modules are not on Python's path there either."""
        code = run_child(list(words), first=lambda: os.chdir(home))
        return code, capfd.readouterr().err

    short = ["experiment=debug", "worldmodel=none", "schedule.total=150", "agent=mine", "agent.hold=3", "run_dir=run"]
    assert typed("train", *short, "--config-dir", "my_configs") == (0, "")
    code, said = typed("eval", "run=run", "episodes=2")
    assert code == 2
    assert "agent._target_=my_agent.MineConfig" in said and "--config-dir" in said
    assert typed("eval", "run=run", "episodes=2", "device=cpu", "--config-dir", "my_configs") == (0, "")
    assert len(json.loads((home / "run" / "evaluation.json").read_text())["final"]["returns"]) == 2
    (home / "run" / "evaluation.json").unlink()
    again = typed("train", "run_dir=run", "schedule.total=160", "--config-dir=my_configs")
    assert again == (0, ""), "continued without naming the agent"


@pytest.mark.parametrize("named", ["os.system", "my_agent.Other"])
def test_a_folder_of_ones_own_vouches_only_for_what_its_files_name(
    named: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mbrl.rundir.folder import allowed_classes, read_config
    from mbrl.rundir.folder import write_run as write

    own = home / "my_configs"
    plain = {"task": {"name": "reach"}, "seed": 0, "agent": {"_target_": "my_agent.MineConfig"}, "more": [{}]}
    write(home / "run", plain, {})
    assert allowed_classes(read_config(home / "run"), own)
    write(home / "run", plain | {"more": [{"deep": {"_target_": named}}]}, {})
    for words in (["eval", f"run={home / 'run'}"], ["train", f"run_dir={home / 'run'}"]):
        assert main([*words, "--config-dir", str(own)]) == 2
        assert f"more.0.deep._target_={named}" in capsys.readouterr().err


def test_a_broken_file_in_the_folder_is_named(home: Path) -> None:
    from mbrl.rundir.folder import allowed_classes

    (home / "my_configs" / "agent" / "broken.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"broken\.yaml is not YAML"):
        allowed_classes({}, home / "my_configs")
