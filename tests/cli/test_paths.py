"""What is printed can be pasted, whatever folders are called; and what a message proposes is accepted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

import mbrl.run.train
from mbrl.cli.compose import compose
from mbrl.cli.main import COMPOSED, main
from mbrl.cli.words import paths_in
from mbrl.program import command
from tests.cli.test_compose import NAMES

MINE = "_target_: agents.baselines.RandomConfig\nhold: 4\nnoise: 0.3\n"


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is stopped before its first step."""

    def stopped(state: Any) -> None:
        state.stop.requested = True
        state.finish()

    monkeypatch.setattr(mbrl.run.train, "train", stopped)


def printed(capsys: pytest.CaptureFixture[str], before: str) -> list[str]:
    """The words of the command line that was printed behind `before`, as a shell would split them."""
    line = next(line for line in capsys.readouterr().out.splitlines() if before in line)
    program, *words = shlex.split(line.partition(before)[2])
    assert program == "mbrl"
    return words


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize("name", ["Müller (2) = neu, ok", "it's", "世界 [x]"])
def test_continue_with_works_as_it_stands_with_an_agent_of_ones_own(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / name / "configs"
    (own / "agent").mkdir(parents=True)
    (own / "agent" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path / name)
    line = ["train", "experiment=debug", "agent=mine", "worldmodel=none", "--config-dir", "configs", f"run_dir={name}"]
    assert main(line) == 75
    again = printed(capsys, "continue with: ")
    assert f"--config-dir={own}" in again and f"run_dir={tmp_path / name / name}" in again
    monkeypatch.chdir(tmp_path)
    assert main(again) == 75
    assert printed(capsys, "continue with: ") == again
    assert main(["eval", f"run={tmp_path / name / name}", f"--config-dir={own}", "episodes=1"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_is_one_word_for_each_word(name: str) -> None:
    folder = Path("/tmp") / name
    words = shlex.split(command("train", folder, run_dir=folder, episodes=3))
    assert words[1:] == ["train", f"--config-dir={folder}", f"run_dir={folder}", "episodes=3"]


@pytest.mark.usefixtures("stopping")
def test_the_proposed_start_of_a_run_works_and_is_made_only_where_one_may_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run (1)").mkdir()
    assert main(["eval", f"run={tmp_path / 'run (1)'}"]) == 2
    proposed = capsys.readouterr().err.split("`")[1]
    assert main([*shlex.split(proposed)[1:], "experiment=debug"]) == 75
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    capsys.readouterr()
    assert main(["eval", f"run={tmp_path / 'taken'}"]) == 2
    assert "`" not in capsys.readouterr().err


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize("pair", [("demos", "proprio"), ("proprio", "demos")])
def test_experiments_combine_as_the_message_proposes(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *(f"experiment={name}" for name in pair)]) == 2
    proposed = f"experiment=[{pair[0]},{pair[1]}]"
    assert f"write {proposed}" in capsys.readouterr().err
    assert main(["train", proposed, "--cfg"]) == 0
    plain: Any = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert plain["demos"] == 5
    assert plain["worldmodel"]["proprio"] is True


@pytest.mark.parametrize("word", ["seed=1,2", "agent.gamma=0.9,0.99", "task.name=a,b"])
def test_several_values_of_one_key_are_not_said_to_be_a_list(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", word]) == 2
    said = capsys.readouterr().err
    assert "which only mbrl bench takes; give one" in said and "[" not in said


@pytest.mark.parametrize("verb", COMPOSED)
def test_the_help_of_a_verb_lists_groups_variants_and_keys(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    wanted = {
        "train": "experiment|toy|demos: 0",
        "pretrain": "recipe|oxe64_dynamics|load:",
        "predict": "data|horizon: 0",
    }
    assert [part for part in wanted.get(verb, "data|episodes: 5").split("|") if part not in said] == []


def test_the_composed_configuration_is_printed_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=toy", "--cfg", "seed=3"]) == 0
    plain: Any = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert (plain["seed"], plain["task"]["name"]) == (3, "reach")
    assert main(["train", "--cfg", "sed=3"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_stand_in_lists_and_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / name
    (home / "in" / "clip").mkdir(parents=True)
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(home / "in" / "clip" / f"{place}.png")
    monkeypatch.chdir(home)
    for there in ("a", f"{name}, b"):
        assert main(["data", "convert", f"from={home / 'in'}", f"to={home / there}", "format=frames"]) == 0
    sets = [str(home / "a"), str(home / f"{name}, b")]
    assert main(["data", "check", *sets]) == 0
    assert main(["data", "preview", *sets, "out=a.png"]) == 0 and (home / "a.png").is_file()
    for text in (",".join(sets), ", ".join(sets), f"[{','.join(sets)}]"):
        assert paths_in(text) == sets
    if not set("\"'{$") & set(name):
        assert compose("train", [f"rehearsal=[{','.join(sets)}]"]).rehearsal == sets
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [("a,b", ["a", "b"]), ("[a, b]", ["a", "b"]), ("a,", ["a"]), (",", []), ("", []), ("a,b,c", ["a,b", "c"]),
     ("c,a,b", ["c", "a,b"]), ("a, b", ["a, b"]), ("a, b,c", ["a, b", "c"])],
)  # fmt: skip
def test_a_comma_in_a_name_parts_nothing_where_the_whole_name_is_there(
    text: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if len(found) < text.count(",") + 1 and found not in (["a"], []):
        Path(next(name for name in found if "," in name)).mkdir()
    assert paths_in(text) == found
