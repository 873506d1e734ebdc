"""What a class of a user's returns, or how its errors behave, ends in one line that names the class and the method."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from agents.api import action_of, metrics_of
from mbrl.cli.errors import MOST_NOTES, BadInput, guarded, one_line
from mbrl.cli.main import main
from mbrl.envs.row import rows_of
from mbrl.files import DamagedFile
from mbrl.io.checkpoint import Checkpoints
from mbrl.run.assemble import AGENT, MODEL, built
from mbrl.run.learning import Learning
from mbrl.run.validate import worlds
from tests.envs.worlds import config
from worldmodel.answers import MOST, WrongAnswer, said, shown, wrong
from worldmodel.dream.imagine import Dream, asked
from worldmodel.seeds import Seeds
from worldmodel.training.updater import checked

ROWS = TensorDict({"pixels": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, batch_size=[2])
ACTION = torch.zeros(2, 3)
STATE = TensorDict({"latent": torch.zeros(2, 5), "reward": torch.zeros(2, 1), "continue": torch.ones(2, 1)}, [2])
SPEC = SimpleNamespace(latent_dim=5, image=4, parts=("tokenizer", "dynamics"), complaints=lambda protocol: [])


class Loud:
    """Cannot even be looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Mine:
    """Answers whatever is asked with `given`."""

    def __init__(self, given: Any) -> None:
        self.given, self.spec = given, SPEC

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.given

    def act(self, *args: Any, **kwargs: Any) -> Any:
        return self.given

    def policy(self, *args: Any, **kwargs: Any) -> Any:
        return self.given


def learned(mine: Any) -> Any:
    """An update as the loop of a run asks for it."""
    return Learning.learn(cast(Any, SimpleNamespace(agent=mine, drawn=None, model=mine)), 0)


def dreamt(name: str) -> Callable[[Any], Any]:
    """A call of the dream."""
    more: dict[str, tuple[Any, ...]] = {
        "encode": (ROWS,),
        "observe": (STATE, ACTION, ROWS),
        "step": (STATE, ACTION),
        "fork": (STATE, 3),
        "decode": (STATE,),
    }
    return lambda mine: getattr(Dream(mine, seeds=Seeds(0)), name)(*more[name])


ASKED: dict[str, Callable[[Any], Any]] = {
    "learn": learned,
    "act": lambda mine: action_of(mine, ROWS, None, "explore", step=0),
    "losses": lambda mine: checked(mine, mine.losses()),
    "policy": lambda mine: asked(mine.policy, ROWS, None),
    **{name: dreamt(name) for name in ("encode", "observe", "step", "fork", "decode")},
}
WITH_GRADIENT = torch.zeros((), requires_grad=True)
ANSWERS: list[tuple[str, Any, str]] = [
    ("learn", None, "Mine.learn must return a mapping from names to numbers, {} for none (got None)"),
    ("learn", [1], "numbers, {} for none (got a list)"),
    ("learn", 0.5, "numbers, {} for none (got 0.5)"),
    ("learn", {"loss": "abc"}, "Mine.learn must return one number as 'loss' (got 'abc')"),
    ("learn", {"loss": torch.ones(3)}, "one number as 'loss' (got Tensor torch.float32 (3,))"),
    ("learn", {"loss": torch.ones(1, dtype=torch.complex64)}, "one number as 'loss' (got Tensor torch.complex64"),
    ("learn", {"loss": np.zeros((1, 2))}, "one number as 'loss' (got ndarray float64 (1, 2))"),
    ("learn", {"loss": [1.0]}, "one number as 'loss' (got a list)"),
    ("learn", {"loss": None}, "one number as 'loss' (got None)"),
    ("learn", {"loss": Loud()}, "one number as 'loss' (got a Loud)"),
    ("learn", {"loss": float("nan")}, "Mine.learn must return finite numbers (got loss=nan)"),
    ("learn", {"loss": torch.tensor(float("inf"))}, "finite numbers (got loss=inf)"),
    ("learn", {3: 1.0}, "Mine.learn must return printable names of columns (got 3)"),
    ("learn", {"a\nb": 1.0}, "printable names of columns (got 'a"),
    ("learn", {"env_step": 3}, "Mine.learn must return names that the run itself does not use"),
    ("learn", {"wall_s": 3}, "as agent/loss (got wall_s)"),
    ("learn", {"train/episode/return": 3}, "as agent/loss (got train/episode/return)"),
    ("learn", {"time/fit_s": 3}, "as agent/loss (got time/fit_s)"),
    ("learn", {"dynamics/loss": 3}, "as agent/loss (got dynamics/loss)"),
    ("act", None, "Mine.act must return an action and a memory (got None)"),
    ("act", ACTION, "an action and a memory (got Tensor torch.float32 (2, 3))"),
    ("act", (ACTION, None, None), "an action and a memory (got 3 values)"),
    ("act", ([[0.0]], None), "Mine.act must return a tensor of actions [2, A] (got a list)"),
    ("act", (ACTION[:1], None), "a tensor of actions [2, A] (got Tensor torch.float32 (1, 3))"),
    ("act", (ACTION, {}), "Mine.act must return None or a TensorDict [2] as memory (got a dict)"),
    ("act", (ACTION, TensorDict({}, [1])), "None or a TensorDict [2] as memory (got one of [1])"),
    ("policy", ACTION, "policy must return an action and a memory (got Tensor torch.float32 (2, 3))"),
    ("policy", (ACTION[0], None), "policy must return a tensor of actions [2, A] (got Tensor torch.float32 (3,))"),
    ("losses", None, "Mine.losses must return a mapping with the key loss (got None)"),
    ("losses", {"mine": WITH_GRADIENT}, "with the key loss (got the keys mine)"),
    ("losses", {"loss": 0.0}, "Mine.losses must return a tensor [] of one number as 'loss' (got 0.0)"),
    ("losses", {"loss": WITH_GRADIENT, "more": torch.zeros(2)}, "a tensor [] of one number as 'more' (got Tensor"),
    ("losses", {"loss": torch.zeros(())}, "Mine.losses must return a loss with a gradient (got one without)"),
    ("encode", None, "Mine.encode must return a TensorDict [2] (got None)"),
    ("encode", {"latent": 1}, "Mine.encode must return a TensorDict [2] (got a dict)"),
    ("observe", STATE[:1], "Mine.observe must return a TensorDict [2] (got one [1])"),
    ("fork", STATE, "Mine.fork must return a TensorDict [6] (got one [2])"),
    ("step", STATE.select("latent"), "Mine.imagine must return a tensor [2, 1] as reward (got None)"),
    ("step", STATE.exclude("latent"), "Mine.imagine must return a tensor [2, 5] as latent (got None)"),
    ("decode", torch.zeros(2, 3, 4, 4), "Mine.decode must return frames uint8 (2, 3, 4, 4) (got Tensor torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "words"), ANSWERS)
def test_what_a_method_returns_is_checked_where_it_comes_in(
    name: str, given: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: ASKED[name](Mine(given)), debug=False) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Mine.") and words in line


def test_what_is_right_comes_through() -> None:
    metrics = {"agent/loss": torch.ones(1), "own/q": np.float32(2), "time/actor_critic_s": 3, "ended": True}
    assert learned(Mine(metrics)) is metrics and metrics_of(Mine({}), cast(Any, None), 0) == {}
    memory = TensorDict({"x": torch.zeros(2, 1)}, [2])
    assert ASKED["act"](Mine((ACTION, memory))) == (ACTION, memory)
    assert ASKED["encode"](Mine(STATE)) is STATE and ASKED["step"](Mine(STATE)) is STATE


@pytest.mark.parametrize(
    "given", [None, [1], {"x": object()}, {3: torch.zeros(1)}], ids=["nothing", "list", "object", "number"]
)
def test_a_state_that_cannot_be_stored_names_its_class(given: Any, tmp_path: Path) -> None:
    found = Checkpoints(tmp_path, keep=2)
    code = guarded(lambda: int(bool(found.save(0, {"agent": Mine(given)}))), debug=False)
    assert code == 4 and not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize("verbs", [AGENT, MODEL])
def test_what_is_no_agent_and_no_model_is_bad_input(verbs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = type("Config", (), {"build": lambda self: None})()
    assert guarded(lambda: int(bool(built(made, {}, verbs))), debug=False) == 2
    assert f"Config.build must return what has {verbs[0]}, " in capsys.readouterr().err


def test_what_a_task_says_of_its_worlds_and_builds_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    facts = Mine(None)
    facts.complaints = lambda protocol: []
    (said_,) = worlds({"task": facts, "protocol": None}, 0)
    assert said_ == "Mine.facts must return WorldFacts (got None)"
    protocol = config("protocol", "toy")
    for given, words in ((None, "got None"), ([], "got 0 of them")):
        with pytest.raises(ValueError, match=rf"Mine\.build must return a list of rows=2 worlds \({words}\)"):
            rows_of(cast(Any, Mine(given)), protocol, numbers=range(2))


# -- errors ------------------------------------------------------------------------------------------------------------

MODULE = """
from dataclasses import dataclass

from agents.baselines import Random, RandomConfig

ASKED = {}


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Wordless(RuntimeError):
    def __str__(self):
        return 3


class Base(BaseException):
    pass


class Circle(ValueError):
    def __init__(self):
        super().__init__("round")
        self.__cause__ = ValueError("and")
        self.__cause__.__cause__ = self


def fail():
    if "call" in ASKED:
        ASKED["call"]()
    raise ASKED["error"]


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    batch_size: int

    def build(self, *, env_spec, seeds):
        if ASKED.get("at") == "build":
            fail()
        return Mine(RandomConfig(hold=1, noise=0.1), env_spec, seeds)


class Mine(Random):
    def learn(self, replay, update):
        if ASKED.get("at") != "learn":
            return ASKED["given"]
        fail()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of a user's, whose agent fails as `ASKED`, or returns `given`."""
    (tmp_path / "odd_classes.py").write_text(MODULE)
    (tmp_path / "my_configs" / "agent").mkdir(parents=True)
    (tmp_path / "my_configs" / "agent" / "mine.yaml").write_text("_target_: odd_classes.MineConfig\nbatch_size: 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("odd_classes")
    sys.modules.pop("odd_classes")


def ours(error: Exception) -> Callable[[], None]:
    """A function of this project that refuses what it is given."""

    def refuse() -> None:
        raise error

    return refuse


ERRORS: dict[str, tuple[Callable[[ModuleType], Any], str]] = {
    "bad input of ours": (lambda own: BadInput("mine"), "BadInput at odd_classes.py:33: mine"),
    "damage of ours": (lambda own: DamagedFile("mine"), "DamagedFile at odd_classes.py:33: mine"),
    "a value": (lambda own: ValueError("mine"), "ValueError at odd_classes.py:33: mine"),
    "no words": (lambda own: own.Silent(), "Silent at odd_classes.py:33: (its __str__ raised RuntimeError)"),
    "a number for words": (lambda own: own.Wordless(), "Wordless at odd_classes.py:33: (its __str__ raised TypeError)"),
    "a generator's end": (lambda own: GeneratorExit(), "GeneratorExit at odd_classes.py:33"),
    "a base": (lambda own: own.Base("b"), "Base at odd_classes.py:33: b"),
    "a circle": (lambda own: own.Circle(), "Circle at odd_classes.py:33: round"),
    "a pipe": (lambda own: BrokenPipeError(32, "Broken pipe"), "BrokenPipeError at odd_classes.py:33: Broken pipe"),
    "a megabyte": (lambda own: ValueError("x" * 2**20 + " the end"), "xxx ... xxx"),
    "a long name": (lambda own: FileNotFoundError(2, "No such file", "y" * 2**20), "yyy ... yyy"),
    "many lines": (lambda own: ValueError("a\n\x1b[31mred\x07 " * 10**5), r"a \x1b[31mred\x07 a \x1b[31mred"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_whatever_a_class_of_a_user_s_raises_is_one_line_of_bounded_length(
    kind: str, own: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    made, words = ERRORS[kind]
    error = made(own)
    error.add_note("at env_step 7")
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "Mine.learn": (4, lambda: own.Mine.learn(None, None, 0)),
        "MineConfig.build": (2, lambda: own.MineConfig(batch_size=1).build(env_spec=None, seeds=None)),
    }
    for who, (code, call) in calls.items():
        own.ASKED.update(error=error, at=who.rpartition(".")[2])
        assert guarded(call, debug=False) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {who} raised ") and words in line and line.endswith("; at env_step 7")
        assert len(line) < MOST + 40 and line.isprintable()
        if kind == "a megabyte":
            assert line.endswith("x the end; at env_step 7")
            assert guarded(call, debug=True) == code and len(capsys.readouterr().err) > 2**20, "--debug shows the rest"


@pytest.mark.parametrize(
    "error", [ValueError("n must be >= 1"), BadInput("no"), IsADirectoryError(21, "a folder", "x")]
)
def test_what_a_function_of_ours_refuses_from_a_user_s_class_is_that_class_s(
    error: Exception, own: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    own.ASKED.update(call=ours(error), at="learn")
    assert guarded(lambda: own.Mine.learn(None, None, 0), debug=False) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Mine.learn raised {type(error).__name__} at odd_classes.py:32: ")
    own.ASKED.update(call=ours(DamagedFile("x is damaged")))  # what lies on the disk is nobody's class
    assert guarded(lambda: own.Mine.learn(None, None, 0), debug=False) == 3
    assert capsys.readouterr().err == "error: x is damaged\n"


def test_an_error_of_an_answer_survives_the_way_from_another_process() -> None:
    error = ForkingPickler.loads(ForkingPickler.dumps(wrong(Mine(None), "act", "an action", "None")))
    assert type(error) is WrongAnswer and str(error) == "Mine.act must return an action (got None)"


def test_notes_are_bounded_and_the_last_one_stays_whole() -> None:
    error = ValueError("short")
    for _ in range(10**4):
        error.add_note("more and more")
    error.add_note("`mbrl train run_dir=runs/x` goes on from there")
    line = one_line(error)
    assert len(line) < MOST_NOTES + 40 and line.endswith("`mbrl train run_dir=runs/x` goes on from there")
    assert said(ValueError("a\tb")) == "a b" and shown(Loud()) == "a Loud" and shown(torch.zeros(())) == "tensor(0.)"


@pytest.mark.parametrize("how", ["given", "error"])
def test_a_run_ends_with_the_step_and_what_was_saved(
    how: str, own: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.ASKED.update(given=None, error=own.Silent(), at="learn" if how == "error" else "")
    words = ["train", "worldmodel=none", "experiment=debug", "schedule.total=120", "evaluation.episodes=1",
             "evaluation.rows=1", "run_dir=run", "agent=mine", "--config-dir=my_configs"]  # fmt: skip
    assert main(words) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Mine.learn must return" if how == "given" else "error: Mine.learn raised Silent at")
    assert "; at env_step 100 decision 100 update 0; no checkpoint was saved yet in " in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["agent"]


@pytest.mark.parametrize(
    "value",
    [np.ones(1), 10**400, torch.ones(1).to_sparse(), torch.ones((), device="meta"), torch.ones((), dtype=torch.cfloat)],
    ids=["array", "large", "sparse", "meta", "complex"],
)
def test_what_float_makes_no_number_of_is_no_metric(value: Any) -> None:
    with pytest.raises(WrongAnswer, match="learn must return one number as"):
        metrics_of(Mine({"agent/x": value}), cast(Any, None), 0)


def test_a_policy_in_dreams_answers_in_any_real_type_and_in_no_other() -> None:
    for dtype in (torch.float64, torch.int64, torch.bool):
        assert asked(lambda td, memory, dtype=dtype: (ACTION.to(dtype), memory), ROWS, None)[0].dtype == dtype
    for action in (ACTION.to(torch.cfloat), ACTION.to_sparse(), ACTION.to("meta")):
        with pytest.raises(WrongAnswer, match=r"a tensor of actions \[2, A\]"):
            asked(lambda td, memory, action=action: (action, memory), ROWS, None)


def test_a_class_is_no_object_of_it() -> None:
    config = SimpleNamespace(build=lambda: Mine)
    with pytest.raises(ValueError, match=r"build must return an object \(got the class Mine itself\)"):
        built(config, {}, AGENT)


def test_an_interrupt_that_arrives_in_a_user_s_class_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("mine")
    exec(compile("def act():\n    raise KeyboardInterrupt", "mine.py", "exec"), module.__dict__)
    assert guarded(module.act, debug=False) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
