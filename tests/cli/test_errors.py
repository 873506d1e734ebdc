"""Whatever ends a command is one line: whose code it was in, where, and when; our own bugs keep their traceback."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mbrl.cli.errors import BadInput, guarded
from mbrl.cli.main import main
from mbrl.envs.simulator import decide
from mbrl.files import DamagedFile
from mbrl.memory import asking, sizes_in
from mbrl.run.collect import Collector
from mbrl.run.evaluate import Evaluator
from mbrl.run.own_policy import OneForEachRow
from mbrl.rundir.build import make
from tests.envs.worlds import config
from worldmodel.training.updater import Updater

MODULE = """
import sys
from dataclasses import dataclass

import numpy
import torch

from agents.baselines import Random, RandomConfig
from mbrl.envs.toy import Toy, ToyTask
from tests.residents.conv import ConvModel, ConvModelConfig

KINDS = {
    "zero": lambda: 1 // 0,
    "value": lambda: int("x"),
    "library": lambda: torch.zeros(2) @ torch.zeros(3),
    "file": lambda: open("nowhere/x"),
    "disk": lambda: raised(OSError(28, "No space left on device")),
    "memory": lambda: raised(MemoryError()),
    "torch": lambda: torch.empty(2**60),
    "numpy": lambda: numpy.ones(2**58),
    "leaves": lambda: sys.exit(0),
}
ASKED = {"kind": "zero", "at": ""}


def raised(error):
    raise error


def fail(at):
    if ASKED["at"] == at:
        KINDS[ASKED["kind"]]()


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    batch_size: int

    def build(self, *, env_spec, seeds):
        fail("build")
        return Mine(RandomConfig(hold=1, noise=0.1), env_spec, seeds)


class Mine(Random):
    def act(self, td, memory, mode, *, step):
        fail("act")
        return super().act(td, memory, mode, step=step)

    def learn(self, replay, update):
        fail("learn")
        return {}


@dataclass(frozen=True, kw_only=True)
class WorldConfig(ToyTask):
    def build(self, *, protocol, rows):
        worlds = super().build(protocol=protocol, rows=rows)
        for world in worlds:
            world.__class__ = World
        return worlds


class World(Toy):
    def step(self, action):
        fail("step")
        return super().step(action)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ConvModelConfig):
    def build(self, *, env_spec, seeds):
        model = super().build(env_spec=env_spec, seeds=seeds)
        model.__class__ = Model
        return model


class Model(ConvModel):
    def losses(self, *args, **kwargs):
        fail("losses")
        return super().losses(*args, **kwargs)


class Policy:
    def __call__(self, pixels, proprio):
        fail("policy")
        return numpy.zeros(2)
"""
WORDS = {
    "zero": ("ZeroDivisionError", "integer division or modulo by zero"),
    "value": ("ValueError", "invalid literal for int() with base 10: 'x'"),
    "library": ("RuntimeError", "inconsistent tensor size"),
    "file": ("FileNotFoundError", "nowhere/x"),
    "disk": ("OSError", "No space left on device"),
    "memory": ("MemoryError", ""),
    "torch": ("RuntimeError", "can't allocate memory: you tried to allocate 4611686018427387904 bytes"),
    "numpy": ("MemoryError", "Unable to allocate 2.00 EiB"),
    "leaves": ("SystemExit", "0"),
}


TOY = config("protocol", "toy")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of a user's, whose classes fail as `ASKED`."""
    (tmp_path / "broken_classes.py").write_text(MODULE)
    for group, (target, keys) in {
        "agent": ("MineConfig", "batch_size: 7"),
        "task": ("WorldConfig", "name: reach"),
        "worldmodel": ("ModelConfig", "burn_in: 2\nmax_frames: 10\nwidth: 32\nnoise: 0.1"),
    }.items():
        folder = tmp_path / "my_configs" / group
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text(f"_target_: broken_classes.{target}\n{keys}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("broken_classes")
    sys.modules.pop("broken_classes")


def place_of(kind: str) -> str:
    """The line of a user's code in which an error of this kind is raised."""
    text = "raise error" if kind in ("disk", "memory") else f'"{kind}":'
    number = next(number for number, line in enumerate(MODULE.splitlines(), 1) if text in line)
    return f"broken_classes.py:{number}"


SHORT = ("experiment=debug", "schedule.total=120", "evaluation.episodes=1", "evaluation.rows=1",
         "run_dir=run", "--config-dir=my_configs")  # fmt: skip
TRAIN, EVAL = (
    ("train", "worldmodel=none", *SHORT),
    ("eval", "policy=broken_classes.Policy", "task=toy", "protocol=toy", "episodes=1"),
)
DOORS: dict[str, tuple[str, tuple[str, ...], int, str, str]] = {
    "build": ("zero", (*TRAIN, "agent=mine"), 2, "MineConfig.build raised", ""),
    "act": (
        "library",
        (*TRAIN, "agent=mine"),
        4,
        "Mine.act raised",
        "; at env_step ",
    ),
    "learn": (
        "torch",
        (*TRAIN, "agent=mine"),
        4,
        "Mine.learn raised",
        "; it grows with agent.batch_size=7; at env_step",
    ),
    "losses": ("numpy", ("train", "worldmodel=mine", *SHORT), 4, "Model.losses raised", "; it grows with fit."),
    "step": (
        "file",
        (*TRAIN, "agent=random", "task=mine"),
        4,
        "World.step raised",
        "in row 0 of reach, episode 0, decision 0, at",
    ),
    "policy": ("zero", EVAL, 4, "Policy.__call__ raised", "in row 0, episode 0, at "),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_error_in_a_user_s_class_is_one_line_with_the_class_the_line_and_the_step(
    door: str, own: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, words, code, who, when = DOORS[door]
    own.ASKED.update(kind=kind, at=door)
    assert main(list(words)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {who} {WORDS[kind][0]}") and WORDS[kind][1] in line
    assert f"at {place_of(kind)}" in line and when in line
    assert main(["--debug", *words]) == code
    assert "Traceback" in capsys.readouterr().err


def asked_of_a_policy(policy: Any) -> Any:
    """One decision of a policy."""
    env: Any = SimpleNamespace(env_spec=SimpleNamespace(action_dim=2), episodes=[3])
    seen = TensorDict({"pixels": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "is_init": torch.zeros(1, 1).bool()}, [1])
    return OneForEachRow((policy,), env).act(seen, None, "evaluate", step=0)


CALLS: dict[str, tuple[Callable[[ModuleType], Any], str]] = {
    "act": (lambda own: own.Mine.act(None, None, None, "explore", step=0), "Mine.act raised {}"),
    "learn": (lambda own: own.Mine.learn(None, None, 0), "Mine.learn raised {}"),
    "losses": (lambda own: own.Model.losses(None), "Model.losses raised {}"),
    "step": (lambda own: decide(object.__new__(own.World), None, TOY), "World.step raised {}"),  # type: ignore[arg-type]
    "policy": (lambda own: asked_of_a_policy(own.Policy()), "Policy.__call__ raised {}"),
}


@pytest.mark.parametrize("door", CALLS)
@pytest.mark.parametrize("kind", WORDS)
def test_every_kind_of_error_at_every_door_names_its_place(
    kind: str, door: str, own: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    call, who = CALLS[door]
    own.ASKED.update(kind=kind, at=door)
    assert guarded(lambda: call(own), debug=False) == 4
    (line,) = capsys.readouterr().err.splitlines()
    name, words = WORDS[kind]
    assert line.startswith(f"error: {who.format(name)}") and words in line and f"at {place_of(kind)}" in line


@pytest.mark.parametrize("text", ["1 // 0", "import nothing.at.all", "def f(:"])
def test_a_module_of_a_user_s_that_cannot_be_imported_is_bad_input(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_module.py").write_text(f"\n{text}\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def work() -> int:
        make({"_target_": "broken_module.X"}, "agent", trusted=True)
        return 0

    assert guarded(work, debug=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken_module" in line


@pytest.mark.parametrize("name", ["named_package", "other_package"])
def test_an_installed_package_counts_as_the_user_s_where_it_was_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / f"{name}.py").write_text("class X:\n    def act(self):\n        return 1 // 0\n")
    monkeypatch.syspath_prepend(str(site))
    own = importlib.import_module(name).X()
    if name == "named_package":
        with pytest.raises(ValueError, match="must be a dataclass"):
            make({"_target_": f"{name}.X"}, "agent", trusted=True)
    assert guarded(own.act, debug=False) == (4 if name == "named_package" else 1)
    said = capsys.readouterr().err
    assert ("Traceback" in said) is (name == "other_package")


# -- the project's own -------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], int]:
    """A function of this project that fails."""

    def fails() -> int:
        raise error

    return fails


OURS: dict[str, tuple[BaseException, int, str]] = {
    "bad input": (BadInput("seed must be"), 2, "error: seed must be"),
    "damaged": (DamagedFile("x is damaged"), 3, "error: x is damaged"),
    "a folder": (OSError(errno.EISDIR, "Is a directory", "runs/x/eval.csv"), 2, "runs/x/eval.csv: Is a directory"),
    "a path": (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "runs/x: No space left on device"),
    "no path": (
        OSError(errno.ENOSPC, "No space left on device"),
        1,
        "No space left on device in raising.<locals>.fails at tests",
    ),
    "memory": (MemoryError(), 1, "error: out of memory in raising.<locals>.fails at tests"),
    "torch": (RuntimeError("can't allocate memory: you tried to allocate 99 bytes"), 1, ": can't allocate memory: you"),
    "CUDA": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), 1, "Tried to allocate 9 GiB"),
}


@pytest.mark.parametrize("name", OURS)
def test_an_error_that_was_foreseen_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, words = OURS[name]
    assert guarded(raising(error), debug=False) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape"), TypeError("f() takes no arguments")])
def test_a_bug_of_this_project_keeps_its_traceback(
    error: BaseException, own: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error), debug=False) == 1
    assert "Traceback" in capsys.readouterr().err
    own.raised = raising(error)  # called by a user's class: it is the project's all the same
    own.KINDS["zero"] = lambda: own.raised()
    own.ASKED.update(kind="zero", at="act")
    assert guarded(lambda: own.Mine.act(None, None, None, "explore", step=0), debug=False) == 1
    assert "Traceback" in capsys.readouterr().err


@dataclass(frozen=True)
class Inner:
    batch: int
    rate: float


@dataclass(frozen=True)
class Outer:
    part: Inner
    horizon: int


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), np.exceptions.AxisError(3)]
)
def test_only_of_memory_is_said_what_asked_for_it(error: Exception) -> None:
    keys = sizes_in(Outer(Inner(16, 0.1), 8), "fit.")
    assert keys == ["fit.part.batch=16", "fit.horizon=8"]
    with pytest.raises(type(error)), asking(*keys):
        raise error
    memory = not isinstance(error, ValueError)
    assert getattr(error, "__notes__", []) == ["it grows with fit.part.batch=16, fit.horizon=8"] * memory


@pytest.mark.parametrize("phase", ["fit", "evaluate", "collect"])
def test_memory_that_runs_out_in_training_names_the_keys_of_its_phase(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doors = {
        "fit": (Updater, "update", "fit.tokenizer.batch=3, fit.tokenizer.length=9, fit.dynamics.batch=4"),
        "evaluate": (Evaluator, "score", "evaluation.rows=3"),
        "collect": (Collector, "step", "compute.rows=2"),
    }
    place, name, keys = doors[phase]
    monkeypatch.setattr(place, name, lambda *args, **kwargs: torch.empty(2**60))
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", "evaluation.episodes=1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory in ") and "can't allocate memory" in line
    assert f"it grows with {keys}" in line and "; at env_step " in line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("half a header"),
        ValueError("no header"),
        ZeroDivisionError("division by zero"),
        KeyError("x"),
    ],
    ids=repr,
)
def test_an_item_whose_reader_fails_is_a_row_or_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", image=np.zeros((3, 4, 4, 3), np.uint8))
    monkeypatch.setattr("numpy.load", lambda *args, **kwargs: raising(error)())
    words = ["data", "convert", f"from={tmp_path / 'in'}", f"to={tmp_path / 'out'}", "format=published_npz"]
    assert main(words) == 3
    captured = capsys.readouterr()
    assert "a.npz  it cannot be read" in captured.out and len(captured.err.splitlines()) == 1
