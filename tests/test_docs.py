"""What the documents tell people to type works as it stands there."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import mbrl.run.validate
from mbrl.cli.bench import check
from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.cli.scale import read_sizes
from mbrl.cli.train import as_plain, fitted_to_model
from mbrl.run.assemble import Configs

ROOT = Path(__file__).resolve().parents[1]


def commands(path: Path) -> list[list[str]]:
    """The words of every `mbrl train` line in the shell blocks of a document."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("mbrl train")]


README = [words for words in commands(ROOT / "README.md") if "--config-dir" not in words]
AGENTS = [words for words in commands(ROOT / "docs" / "agents.md") if "compute=gpu" not in words]


def test_the_readme_shows_the_three_uses() -> None:
    assert len(README) >= 5


@pytest.mark.parametrize("words", README + AGENTS, ids=" ".join)
def test_a_command_of_the_readme_and_of_the_agents_is_accepted(words: list[str]) -> None:
    plain: Any = fitted_to_model(as_plain(compose("train", words)), words, trusted=True)
    assert Configs.of(plain, trusted=True).seed >= 0


EXAMPLES = [
    words
    for name in ("adding_an_agent.md", "adding_a_world.md", "inside_the_dream.md")
    for words in commands(ROOT / "docs" / name)
    if "docs/examples/configs" in words or name == "inside_the_dream.md"
]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_a_command_of_the_examples_is_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    plain: Any = fitted_to_model(as_plain(compose("train", words)), words, trusted=True)
    assert Configs.of(plain, trusted=True).groups


BENCH = [
    shlex.split(line.partition("#")[0])[2:]
    for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
    for line in path.read_text().splitlines()
    if line.startswith("mbrl bench suite=")
]
SCALE = [
    shlex.split(line.partition("#")[0])[2:]
    for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
    for line in path.read_text().splitlines()
    if line.startswith("mbrl scale ")
]


@pytest.mark.parametrize("words", BENCH, ids=" ".join)
def test_a_command_of_the_benchmarks_is_accepted(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", SCALE, ids=" ".join)
def test_a_command_about_sizes_is_accepted(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked, _, _ = read_sizes([word for word in words if word != "--dry-run"])
    check(asked.cells)
    assert len({cell.method for cell in asked.cells}) > 1 and not list(tmp_path.iterdir())


def test_every_experiment_is_accepted_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbrl.run.validate, "available_ram", lambda: 2**40)
    for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml")):
        words = [f"experiment={path.stem}"]
        plain: Any = fitted_to_model(as_plain(compose("train", words)), words, trusted=True)
        assert Configs.of(plain, trusted=True).groups


def test_the_agent_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "adding_an_agent.md").read_text()
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    config, *_ = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_agents.py").write_text(code)
    folder = tmp_path / "my_configs" / "agent"
    folder.mkdir(parents=True)
    (folder / "shooter.yaml").write_text(config)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = tmp_path / "run"
    words = ["experiment=debug", "agent=shooter", "schedule.total=150", "protocol.decisions=12"]
    words += ["schedule.evaluate.every=0", "agent.horizon=4", "agent.plans=3"]
    assert main(["train", *words, f"run_dir={run}", "--config-dir", str(folder.parent)]) == 0
    assert (run / "eval.csv").exists()


def test_every_test_that_the_list_of_kinds_names_is_there() -> None:
    text = (ROOT / "docs" / "what_people_have.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line and "held by" not in line]
    assert len(rows) > 35
    for row in rows:
        kind, _, held, more = (cell.strip() for cell in row.replace("\\|", "").strip("| ").split(" | "))
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", held)
        assert named and more, kind
        for path, name in named:
            tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (kind, path)
