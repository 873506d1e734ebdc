"""Run folders that are not what they should be: another run's, damaged, or written by somebody with bad intent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mbrl.run.assemble as assembly
import mbrl.run.train
import mbrl.rundir.folder
from mbrl.cli.main import main
from mbrl.cli.train import resolve_run
from mbrl.run.learning import OWED
from mbrl.rundir.folder import read_config, run_info, write_run
from mbrl.rundir.stop import Stop


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run with two checkpoints, as it lies there after a stop; nobody trained in it."""
    place = tmp_path_factory.mktemp("runs") / "toy"
    resolved = resolve_run(
        ["experiment=toy", "evaluation.rows=1", "compute.threads=1", "schedule.total=12000", f"run_dir={place}"]
    )
    plain, folder = resolved.plain, resolved.folder
    info = run_info(plain, argv=[])
    write_run(folder, plain, info)
    state = assembly.assemble(assembly.Configs.of(plain, trusted=resolved.trusted), folder, info=info, stop=Stop())
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


def changed(folder: Path, **groups: dict[str, Any]) -> None:
    """Rewrites some keys of the stored configuration."""
    path = folder / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    for name, values in groups.items():
        plain[name] |= values
    path.write_text(yaml.safe_dump(plain))


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """Runs a command line whose last word on stderr must be one line without a traceback; returns that line."""
    assert main(words) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_both_ways_to_count_a_success_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"run={folder}", "episodes=2", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "success at any decision, which counts here, " in said
    assert "; at the last decision " in said


def test_a_run_is_scored_on_another_device_and_with_less_memory_than_its_replay_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(
        folder, compute={"device": "cuda:99"}, replay={"capacity": 9_000_000_000}, schedule={"total": 9_000_000_000}
    )
    assert "cuda:99" in refused(["eval", f"run={folder}"], capsys)
    assert main(["eval", f"run={folder}", "episodes=1", "device=cpu"]) == 0


def test_a_run_that_cannot_be_written_to_is_scored_elsewhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.resolve() and real(path, mode))
    (tmp_path / "file").write_text("")
    for to, words in {
        "": "evaluation.json cannot be written; give to=PATH.json",
        f"to={tmp_path}": f"{tmp_path} cannot be written; give to=PATH.json",
        f"to={folder}/deep/er.json": "er.json cannot be written",
        f"to={tmp_path}/file/x.json": f"to={tmp_path}/file cannot be made",
    }.items():
        assert words in refused(["eval", f"run={folder}", "episodes=1000000", *filter(None, [to])], capsys)
    to = tmp_path / "scores" / "mine.json"
    assert main(["eval", f"run={folder}", "episodes=1", f"to={to}"]) == 0
    assert json.loads(to.read_text())["seed"] == 0 and not (folder / "evaluation.json").exists()
    assert "cannot be written" in refused(["eval", f"run={folder}", f"to={tmp_path}"], capsys)


def test_the_newest_checkpoint_is_scored_and_where_it_is_damaged_it_is_named_and_the_older_one_is_scored(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["eval", f"run={folder}", "episodes=1"]) == 0
    assert "weights of env step 525" in capsys.readouterr().out
    name = damage(folder, 525)
    assert main(["eval", f"run={folder}", "episodes=1"]) == 0
    assert "weights of env step 500" in capsys.readouterr().out
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
        "worldmodel.max_frames=8",
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


def test_every_typed_word_is_held_against_the_run_even_where_it_is_the_default(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("seed=0", "compute.rows=1", "task=metaworld", "agent=dreamer_cpu", "experiment=debug"):
        changed(folder, compute={"rows": 10})
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"seed": 5}))
        said = refused(["train", f"run_dir={folder}", word], capsys)
        assert "choose another run_dir" in said, word


def test_what_may_change_is_applied_even_where_it_is_the_default(folder: Path) -> None:
    changed(folder, logger={"_target_": "mbrl.io.logger.WandbConfig", "project": "p", "tags": []}, replay={})
    words = ["schedule.total=30000", "logger=csv", "replay.on_damage=skip", "keep=2"]
    resolved = resolve_run([f"run_dir={folder}", *words])
    assert resolved.plain["schedule"]["total"] == 30000
    assert resolved.plain["replay"]["on_damage"] == "skip"
    assert resolved.plain["logger"] == {"_target_": "mbrl.io.logger.CsvConfig"}, "no key of the old logger stays"
    assert resolved.stored is not None
    assert resolved.stored["schedule"]["total"] == 12000
    assert resolve_run([f"run_dir={folder}", "logger.project=q"]).plain["logger"]["project"] == "q", (
        "its own logger's keys"
    )


def test_the_same_line_again_and_a_bare_run_dir_continue_the_run_as_it_is(folder: Path) -> None:
    stored = read_config(folder) | {"run_dir": str(folder)}
    same = ["experiment=toy", "evaluation.rows=1", "compute.threads=1", "schedule.total=12000"]
    assert resolve_run([f"run_dir={folder}", *same]).plain == stored
    assert resolve_run([f"run_dir={folder}"]).plain == stored


def test_what_a_killed_start_leaves_does_not_bar_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.lock", "console.log", ".tmp-config.yaml-7"):
        (folder / name).touch()
    assert resolve_run(["experiment=toy", f"run_dir={folder}"]).stored is None
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds no run"):
        resolve_run(["experiment=toy", f"run_dir={folder}"])


def test_a_start_that_fails_removes_what_it_made_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "console.log").write_text("earlier\n")

    def failing(configs: Any, place: Path, **kwargs: Any) -> None:
        assert (place / "config.yaml").is_file()
        (place / "replay").mkdir()
        (place / "replay" / "ep").touch()
        raise ValueError("no room")

    monkeypatch.setattr(assembly, "assemble", failing)
    assert "no room" in refused(["train", "experiment=toy", f"run_dir={folder}"], capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["console.log", "run.lock"]
    assert resolve_run(["experiment=toy", f"run_dir={folder}"]).stored is None


def test_a_run_that_was_begun_in_the_meantime_is_neither_overwritten_nor_deleted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "config.yaml").read_bytes()
    seen = [False, True]  # not there when the line was read, there once the lock is held
    monkeypatch.setattr(mbrl.rundir.folder, "holds_run", lambda place: seen.pop(0))
    monkeypatch.setattr(mbrl.rundir.folder, "is_free", lambda place: True)
    said = refused(["train", "experiment=toy", "seed=3", f"run_dir={folder}"], capsys)
    assert "another process" in said
    assert (folder / "config.yaml").read_bytes() == before
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2


def test_a_resumed_run_that_cannot_be_built_keeps_its_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "config.yaml").read_bytes()

    def failing(*args: Any, **kwargs: Any) -> None:
        raise ValueError("wandb is not installed")

    monkeypatch.setattr(assembly, "assemble", failing)
    refused(["train", f"run_dir={folder}", "logger=wandb"], capsys)
    assert (folder / "config.yaml").read_bytes() == before
    assert (folder / "checkpoints").is_dir()


def test_a_denser_cadence_owes_no_backlog_even_after_a_kill(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[dict[str, int]] = []

    def looking(state: Any) -> None:
        owed = {name: getattr(state.schedule, name).owed(525, state.clock.done.get(name, 0)) for name in OWED}
        counts.append(owed)
        state.stop.requested = True
        state.stopping()

    monkeypatch.setattr(mbrl.run.train, "train", looking)
    denser = [f"schedule.{name}={{every: 1, start: 25}}" for name in ("evaluate", "log", "save")]
    assert main(["train", f"run_dir={folder}"]) == 75
    assert main(["train", f"run_dir={folder}", *denser]) == 75
    assert main(["train", f"run_dir={folder}"]) == 75, "as after a kill: nothing was saved but what the start saved"
    assert counts == [
        {"learn": 0, "evaluate": 0, "log": 1, "save": 0},
        *[dict.fromkeys(OWED, 0)] * 2,
    ]
    assert "continue with: mbrl train run_dir=" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train run_dir", "eval run", "report run", "train init", "predict init"])
@pytest.mark.parametrize("name", ["run.lock", "console.log", "replay/orphans", "checkpoints/quarantine"])
def test_a_link_out_of_a_run_folder_is_refused_by_every_verb_and_nothing_is_written_through_it(
    verb: str, name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "outside" / ("file" if "." in name else ""))
    word, key = verb.split()
    (tmp_path / "x.npz").touch()
    more = [f"data={tmp_path / 'x.npz'}"] if word == "predict" else ["experiment=toy"] if key == "init" else []
    said = refused([word, f"{key}={folder}", *more], capsys)
    assert "symbolic link" in said and name in said
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]
    assert (tmp_path / "outside" / "file").read_text() == "precious"
