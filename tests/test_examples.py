"""The examples of the documents, as their readers would run them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchrl.envs import check_env_specs

from mbrl.cli.compose import own_folder, packaged_configs
from mbrl.cli.data_collect import protocol_of, tasks_of
from mbrl.data.dataset import DataSet, EpisodeCache, read_card
from mbrl.envs.make import make_envs
from worldmodel.seeds import Seeds

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
TINY = ["experiment=debug", "schedule.total=150", "evaluation.rows=2", "task=point_mass"]


def mbrl(home: Path, *words: str) -> str:
    """What a verb says; run in `home`, whose modules are not on its path."""
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; from mbrl.cli.main import console; console()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--config-dir", str(EXAMPLES / "configs")],
        cwd=home,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MOST_LINES = {"point_mass": 60, "sac_in_the_dream": 105, "td3": 120}
SCRIPTS = {"torchrl_in_the_dream": 60, "vector_env": 60, "search": 60}
"""Tested in tests/test_inside_the_dream.py and tests/test_example_search.py."""


def test_every_example_is_one_short_file_that_a_yaml_or_the_shell_names() -> None:
    texts = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert texts.keys() == (most := MOST_LINES | SCRIPTS).keys()
    assert not {name: count for name, text in texts.items() if (count := text.count("\n")) > most[name]}
    targets = [path.read_text() for path in (EXAMPLES / "configs").rglob("*.yaml")]
    assert all(any(f"_target_: {name}." in text for text in targets) for name in MOST_LINES)
    assert all(f"python docs/examples/{name}.py" in texts[name] for name in SCRIPTS)


def test_a_world_of_ones_own_is_trained_scored_and_gone_on_with(tmp_path: Path) -> None:
    said = mbrl(tmp_path, "train", *TINY, "run_dir=run", "compute.workers=2")
    last = [line for line in said.splitlines() if "trained agent" in line]
    assert len(last) == 1 and "return -" in last[0] and "success" not in last[0]
    with (tmp_path / "run" / "eval.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert rows and all(not row.get("success") and float(row["return"]) < 0 for row in rows), "unknown, not 0"
    assert "success" not in "".join(line for line in said.splitlines() if line.startswith("env steps"))
    assert "return" in mbrl(tmp_path, "eval", "run=run", "episodes=2")
    scored = json.loads((tmp_path / "run" / "evaluation.json").read_text())["final"]
    assert scored["success"] is scored["success_last"] is None and len(scored["returns"]) == 2
    mbrl(tmp_path, "train", "run_dir=run", "schedule.total=200")
    assert (tmp_path / "run" / "eval.csv").read_text().splitlines()[-1].startswith("200,")


def test_doctor_tasks_and_data_collect_know_it(tmp_path: Path) -> None:
    assert mbrl(tmp_path, "tasks", "task=point_mass").split() == ["light", "heavy"]
    said = mbrl(tmp_path, "doctor", *TINY, "protocol.decisions=7")
    assert "light of 2 tasks: 2 actions, proprioception 0, state 0, no success: ranked by returns" in said
    assert "light 32x32" in said
    mbrl(
        tmp_path,
        "data",
        "collect",
        "task=[light,heavy]",
        "protocol=toy",
        "policy=random",
        "episodes=3",
        "to=set",
        "workers=2",
    )
    assert read_card(tmp_path / "set" / "heavy").protocol["name"] == "toy"
    data = DataSet(tmp_path / "set" / "heavy", cache=EpisodeCache(0))
    assert [data.episode(place).state.shape[1] for place in range(len(data))] == [0, 0, 0]


def test_its_rows_keep_their_specs_under_the_first_protocol_that_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folders = [packaged_configs(), own_folder(EXAMPLES / "configs")]
    (task,) = tasks_of("heavy", folders)
    protocol = protocol_of(None, task, folders)
    assert protocol.camera is None
    check_env_specs(make_envs(task, protocol, seeds=Seeds(0), stream="env", rows=2), seed=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demos=5"], "demos=5 needs a scripted expert, and light has none; leave demos out"),
        (["prefill=scripted"], "prefill asks a scripted expert, and light has none"),
        (["worldmodel.proprio=true"], "worldmodel reads proprio, which light does not tell"),
        (["worldmodel=oracle"], "worldmodel reads state, which light does not tell"),
        (["protocol=default"], "protocol.camera must be null for a point mass (got protocol default)"),
        (["protocol.success_bonus=2.0"], "protocol.success_bonus=2.0 needs a success, which light knows none of"),
    ],
)
def test_what_it_lacks_is_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mbrl.cli.main import main

    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ["--config-dir", str(EXAMPLES / "configs"), f"run_dir={tmp_path / 'run'}"]
    base = [word for word in TINY if word != "evaluation.rows=2"]
    assert main(["train", *base, *words, *own]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_experts_cannot_be_collected_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mbrl.cli.main import main

    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["task=light", "policy=noisy", f"to={tmp_path / 'set'}", "--config-dir", str(EXAMPLES / "configs")]
    assert main(["data", "collect", *words]) == 2
    assert "policy=noisy needs a scripted expert, and light has none" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
