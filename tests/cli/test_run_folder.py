"""Run folders that are not what they should be: another run's, damaged, or written by somebody with bad intent."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mbrl.run.assemble as assembly
from mbrl.cli.main import main
from mbrl.cli.train import settle
from mbrl.run.folder import run_info, write_run
from mbrl.run.stop import Stop


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run with two checkpoints, as it lies there after a stop; nobody trained in it."""
    plain, folder, trusted = settle(
        [
            "experiment=toy",
            "evaluation.rows=1",
            "compute.threads=1",
            f"run_dir={tmp_path_factory.mktemp('runs') / 'toy'}",
        ]
    )
    info = run_info(plain, argv=[])
    write_run(folder, plain, info)
    state = assembly.assemble(assembly.Configs.of(plain, trusted=trusted), folder, info=info, stop=Stop())
    with state.logger:
        for steps in (500, 525):
            state.clock.env_steps = steps
            state.save()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuing a run fails the test."""

    def assembled(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not refused in time")

    monkeypatch.setattr(assembly, "assemble", assembled)


def damage(folder: Path, step: int) -> str:
    """Flips one byte in the middle of a checkpoint's weights; returns the file's name."""
    path = folder / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{path.parent.name}/{path.name}"


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """Runs a command line whose last word on stderr must be one line without a traceback; returns that line."""
    assert main(words) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_the_newest_checkpoint_is_scored_and_where_it_is_damaged_it_is_named_and_the_older_one_is_scored(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("mbrl"), "propagate", True)
    assert main(["eval", f"run={folder}", "episodes=1"]) == 0
    assert "checkpoint 525" in capsys.readouterr().out
    name = damage(folder, 525)
    assert main(["eval", f"run={folder}", "episodes=1"]) == 0
    assert "checkpoint 500" in capsys.readouterr().out
    assert name in caplog.text
    assert (folder / "checkpoints" / "step-000000525").is_dir(), "who only looks moves nothing"


def test_without_a_sound_checkpoint_the_exit_code_says_damaged_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [damage(folder, step) for step in (500, 525)]
    said = refused(["eval", f"run={folder}", "episodes=2"], capsys, code=3)
    assert [name for name in names if name not in said] == []


def test_a_run_without_any_checkpoint_is_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "checkpoints")
    assert "holds no checkpoint" in refused(["eval", f"run={folder}"], capsys)


@pytest.mark.usefixtures("not_continued")
@pytest.mark.parametrize(
    "word",
    [
        "task.name=reach-terminal",
        "seed=5",
        "agent.gamma=0.5",
        "worldmodel.segment=8",
        "schedule.prefill=600",
        "agent=random",
    ],
)
def test_a_run_is_not_continued_as_another_one(word: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["train", "experiment=toy", f"run_dir={folder}", word], capsys)
    key, _, value = word.partition("=")
    assert key in said
    assert value in said or key == "agent"
    assert "run_dir" in said


@pytest.mark.usefixtures("not_continued")
@pytest.mark.parametrize("verb", ["train run_dir", "eval run"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("agent", {"_target_": "os.system", "command": "touch executed"}),
        ("agent", {"_target_": "subprocess.Popen", "args": ["touch", "executed"]}),
        ("seed", "${oc.env:HOME}"),
    ],
)
def test_a_stored_configuration_is_data(
    verb: str, key: str, value: Any, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    name, word = verb.split()
    said = refused([name, f"{word}={folder}"], capsys)
    assert key in said
    assert not (folder / "executed").exists()


@pytest.mark.usefixtures("not_continued")
@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch executed']", "a: [1", "just words", "", "seed: 1", "\x00"]
)
def test_a_configuration_that_is_none_is_refused(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "config.yaml").write_text(text)
    assert "config.yaml" in refused(["eval", f"run={folder}"], capsys)
    assert "config.yaml" in refused(["train", f"run_dir={folder}"], capsys)
    assert not (folder / "executed").exists()


@pytest.mark.usefixtures("not_continued")
def test_training_does_not_settle_in_somebody_else_s_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "thesis.tex").touch()
    file.touch()
    for place in (taken, file):
        said = refused(["train", "experiment=toy", f"run_dir={place}"], capsys)
        assert f"run_dir={place}" in said
        assert "give a new or an empty folder" in said
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
