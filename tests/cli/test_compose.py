"""Composition of a command line: what is taken, and what is refused in one line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

import mbrl.cli.compose as module
from mbrl.cli.compose import compose, composed, parse
from mbrl.cli.errors import BadInput

FILES = {
    "train": "defaults:\n  - task: a\n  - agent: x\n  - agent@prefill: y\n  - _self_\n  - experiment: null\n"
    "seed: 0\nrun_dir: null\nlr: 1.0e-3\nlog: runs/${seed}\n",
    "task/a": "name: reach\nimage: 64\nsides: [1, 2]\nbox: {p: 1.5, q: false}\n",
    "agent/x": "_target_: p.X\nhorizon: 1\n",
    "agent/y": "_target_: p.Y\nk: 1\n",
    "experiment/e": "# @package _global_\ndefaults:\n  - override /agent: y\nseed: 7\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    """Lays configuration files down."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write(tmp_path / "packaged", FILES)
    monkeypatch.setattr(module, "packaged_configs", lambda: folder)
    return folder


def test_values_and_variants_are_taken_in_any_order() -> None:
    cfg = compose("train", ["task.image=32", "agent=y", "lr=1", "task.box={p: 2}", "task.sides=[3]", "run_dir=/a/b"])
    plain = OmegaConf.to_container(cfg)
    assert plain == {
        "task": {"name": "reach", "image": 32, "sides": [3], "box": {"p": 2.0, "q": False}},
        "agent": {"_target_": "p.Y", "k": 1},
        "prefill": {"_target_": "p.Y", "k": 1},
        "seed": 0,
        "run_dir": "/a/b",
        "lr": 1.0,
        "log": "runs/0",
    }
    assert isinstance(cfg.lr, float)


def test_no_experiment_may_be_said_aloud() -> None:
    assert compose("train", ["experiment=null"]) == compose("train", [])


def test_the_result_takes_no_new_keys() -> None:
    with pytest.raises(ConfigAttributeError, match="nonsense"):
        compose("train", []).nonsense = 1


def test_hidden_files_are_no_variants_and_one_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "._td3.yaml").write_bytes(b"\x00\x05\x16\x07\xa3")
    assert compose("train", ["seed=3"], tmp_path)["seed"] == 3
    with pytest.raises(BadInput, match="agent must be one of"):
        compose("train", ["agent=._td3"], tmp_path)
    (tmp_path / "agent" / "mine.yaml").write_bytes(b"\xa3")
    with pytest.raises(BadInput, match=r"agent/mine.yaml is no text"):
        compose("train", ["seed=3"], tmp_path)


@pytest.mark.parametrize("word", ["experiment=[null]", "experiment=[toy,null]", "experiment=debgu"])
def test_an_experiment_that_is_none_is_refused_whatever_else_is_wrong(word: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="experiment must be one of") as told:
        compose("train", [word, f"run_dir={tmp_path}"], tmp_path)
    assert "broken.yaml" not in str(told.value)


@pytest.mark.parametrize("word", ["agent@prefill=x", "prefill=x", "+prefill=x"])
def test_a_group_that_serves_twice_is_chosen_at_each_place(word: str) -> None:
    cfg = compose("train", [word])
    assert (cfg.prefill._target_, cfg.agent._target_) == ("p.X", "p.X")
    assert composed("train", [word, "agent=y"])[1] == {"task": "a", "agent": "y", "agent@prefill": "x"}


def test_an_experiment_changes_variants_and_values_and_the_command_line_has_the_last_word() -> None:
    assert (compose("train", ["experiment=e"]).seed, compose("train", ["experiment=e", "seed=3"]).seed) == (7, 3)
    assert compose("train", ["experiment=e"]).agent._target_ == "p.Y"


def test_a_user_s_own_folder_adds_variants(tmp_path: Path) -> None:
    own = write(tmp_path / "own", {"agent/mine": "_target_: my_pkg.Mine\nw: 3\n"})
    for words in (["--config-dir", str(own)], [f"--config-dir={own}"]):
        assert compose("train", ["agent=mine", *words, "agent.w=4"]).agent == {"_target_": "my_pkg.Mine", "w": 4}
    assert compose("train", ["agent=mine"], config_dir=own).agent.w == 3
    with pytest.raises(BadInput, match=r"agent must be one of x, y \(got mine\)"):
        compose("train", ["agent=mine"])


def test_a_broken_file_of_the_user_is_named_in_one_line(tmp_path: Path) -> None:
    own = write(tmp_path / "own", {"agent/mine": "a: [1\n", "task/lost": "defaults: [nothing]\n"})
    for word in ("agent=mine", "task=lost"):
        with pytest.raises(BadInput, match=f"{word}.*(mine|nothing)") as caught:
            compose("train", [word], config_dir=own)
        assert "\n" not in str(caught.value)


def test_nothing_is_written_and_the_working_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    compose("train", ["seed=1"])
    assert list(empty.iterdir()) == []
    assert Path.cwd() == empty


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("sed=1", "unknown key sed|sed=1|did you mean seed?"),
        ("task.nmae=b", "unknown key task.nmae|task.nmae=b|task.name"),
        ("image=3", "unknown key image|did you mean task.image?"),
        ("+new=1", "unknown key new|+new=1"),
        ("++task.nmae=b", "unknown key task.nmae|++task.nmae=b"),
        ("task.box={z: 2}", "unknown key task.box.z|task.box.p"),
        ("agent=z", "agent must be one of x, y (got z)"),
        ("task=null", "task must be one of a (got null)"),
        ("agent={a: 1}", "agent must be one of x, y"),
        ("agent@foo=x", "agent@foo=x|agent@prefill=VARIANT"),
        ("task.image=3.5", "task.image must be a whole number (got 3.5)|task.image=64"),
        ("seed=1e3", "seed must be a whole number (got 1000.0)|seed=1000"),
        ("seed=abc", "seed must be a whole number (got abc)|seed=0"),
        ("seed=true", "seed must be a whole number (got true)"),
        ("seed=null", "seed must be a whole number (got null)"),
        ("seed=", "seed must be a whole number (got nothing)"),
        ("lr=fast", "lr must be a number (got fast)|lr=0.001"),
        ("task.box.q=1", "task.box.q must be true or false (got 1)|task.box.q=false"),
        ("task.box=3", "task.box holds several keys|task.box.p, task.box.q"),
        ("task.sides=3", "task.sides must be a list like [a,b] (got 3)|task.sides=[1,2]"),
        ("task.sides=[a]", "task.sides[0] must be a whole number (got a)"),
        ("task.name=[a]", "task.name must be text (got [a])"),
        ("seed=${lr}", "seed must be a whole number (got the reference ${lr})"),
        ("log=${nope}", "log refers to something that is not there|nope|log=..."),
        ("seed=1,2", "seed=1,2 is several values"),
        ("~seed", "~seed would remove seed"),
        ("seed", "seed is not a setting|key=value"),
        ("=3", "=3 has no key"),
        ("task.name=a(", "cannot read task.name=a(|'task.name=\"a(\"'"),
        ("agent._target_=os.system", "agent._target_=os.system|--config-dir"),
        ("hydra.run.dir=x", "hydra.run.dir=x|run_dir=DIR"),
        ("-m", "-m is not known here|mbrl bench"),
        ("--seed=3", "unknown option --seed=3|key=value"),
        ("--config-dir", "--config-dir needs a folder"),
        ("--config-dir=/nowhere", "--config-dir /nowhere is not a folder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_with_key_value_and_mend(word: str, parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        compose("train", [word])
    said = str(caught.value)
    assert [part for part in parts.split("|") if part not in said] == []
    assert "\n" not in said


def test_a_value_that_must_be_given_is_asked_for(packaged: Path) -> None:
    write(packaged, {"train": FILES["train"].replace("lr: 1.0e-3", "lr: ???")})
    with pytest.raises(BadInput, match=r"lr must be given .*add lr=\.\.\."):
        compose("train", [])
    assert compose("train", ["lr=4"]).lr == 4


def test_a_variant_inside_a_variant_is_chosen_by_its_place_and_can_be_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    holder = "defaults:\n  - /agent@inner: y\n  - _self_\n_target_: mine.Holder\nshare: 0.5\n"
    (tmp_path / "agent" / "holder.yaml").write_text(holder)
    (tmp_path / "agent" / "other.yaml").write_text("_target_: mine.Other\nsize: 1\n")
    assert compose("train", ["agent=holder"], tmp_path).agent.inner.k == 1
    changed = compose("train", ["agent.inner=other", "agent=holder", "agent.inner.size=3"], tmp_path)
    assert changed.agent == {"inner": {"_target_": "mine.Other", "size": 3}, "_target_": "mine.Holder", "share": 0.5}
    with pytest.raises(BadInput, match=r"agent\.inner=othr: agent\.inner must be one of .*did you mean other"):
        compose("train", ["agent=holder", "agent.inner=othr"], tmp_path)
    with pytest.raises(BadInput, match=r"agent\.inner=other: the files do not compose"):
        compose("train", ["agent.inner=other"], tmp_path)


NAMES = (
    "plain", "with space", "a@b", "100%", "Müller", "run (1)", "lr=0.1", "a,b", "a#b", "it's", 'a"b', "[x]", "世界",
    "Müller (2) = neu, ok", "back\\slash", "{brace}", "-dash", "tilde~", "a:b", "$HOME", "*",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    own = write(tmp_path / name, {"agent/mine": "_target_: my_pkg.Mine\nw: 3\n"})
    run = tmp_path / name / "run"
    cfg = compose("train", ["agent=mine", f"--config-dir={own}", f"run_dir={run}"])
    assert (cfg.agent.w, cfg.run_dir) == (3, str(run))
    assert compose("train", [f"run_dir={name}"]).run_dir == name
    if not set(name) & set(",\"'{$"):  # those want quotes in a list
        assert parse(f"rehearsal=[{run}]", {}).value == [str(run)]


def test_a_quoted_path_and_a_list_of_paths_are_read_as_before() -> None:
    assert compose("train", ['run_dir="/a b/c"']).run_dir == "/a b/c"
    assert compose("train", ["run_dir=null"]).run_dir is None
    assert parse("data.folders=[a b,c/ü (1)]", {}).value == ["a b", "c/ü (1)"]
    assert parse('data.folders=["a,b",c]', {}).value == ["a,b", "c"]
    assert parse("rehearsal=[]", {}).value == []
