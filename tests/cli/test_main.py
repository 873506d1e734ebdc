"""The console script: verbs, help that waits for nothing, exit codes, one line for each error."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mbrl.cli.errors import BadInput, exit_code, nearest, one_line
from mbrl.cli.main import VERBS, main
from mbrl.files import DamagedFile
from mbrl.program import program

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "hydra", "omegaconf", "numpy", "gymnasium", "mujoco")


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_is_answered_within_a_second_and_without_heavy_imports(words: list[str]) -> None:
    code = (
        "import sys; from mbrl.cli.main import main; code = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], code)"
    )
    bare = [sys.executable, "-c", "pass"]
    begin = time.perf_counter()
    subprocess.run(bare, cwd=ROOT, check=True, timeout=60)
    interpreter = time.perf_counter() - begin
    begin = time.perf_counter()
    done = subprocess.run([*bare[:2], code, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    taken = time.perf_counter() - begin
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert taken < 1.0 + 10 * interpreter  # generous: the machine may be busy; torch alone takes several times that


@pytest.mark.parametrize(
    "words", ["data check NONE", "data convert format=drqv2 from=NONE to=x", "data preview from=NONE", "data chek"]
)
def test_a_mistake_in_the_words_of_a_data_verb_is_told_before_torch_is_imported(words: str) -> None:
    code = "import sys; from mbrl.cli.main import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False 2" and len(done.stderr.splitlines()) == 1


def test_the_module_can_be_run_like_the_script() -> None:
    command = [sys.executable, "-m", "mbrl", "trian"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown verb trian; did you mean train?\n"


def test_a_reader_that_closes_early_is_no_error() -> None:
    piped = f"'{sys.executable}' -m mbrl tasks | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "assembly-v3\n0\n"
    assert done.stderr == ""


def test_every_verb_has_help_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listing = capsys.readouterr().out
    for name, module in VERBS.items():
        assert f"  {name} " in listing
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: mbrl {name}")
        assert callable(importlib.import_module(module).run)


def test_a_verb_that_is_like_nothing_gets_the_whole_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err == f"error: unknown verb xyzzy; it is one of {', '.join(VERBS)}\n"


def test_the_fifty_tasks_are_listed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == len(set(names)) == 50
    assert "plate-slide-v3" in names
    assert main(["tasks", "door"]) == 2
    assert "mbrl tasks | grep door" in capsys.readouterr().err


def raising(error: BaseException) -> Callable[[list[str]], int]:
    """A verb's `run` that fails."""

    def run(args: list[str]) -> int:
        raise error

    return run


class DamagedPart(DamagedFile):
    """A subclass, as the parts of the program raise them."""


@pytest.mark.parametrize(
    ("error", "code", "foreseen"),
    [
        (BadInput("seed must be a whole number (got x)"), 2, True),
        (ValueError("two\n  lines"), 2, True),
        (DamagedPart("model.safetensors: its bytes changed"), 3, True),
        (FloatingPointError("dynamics: 10 non-finite losses in a row at update 7"), 4, True),
        (OSError(28, "No space left on device"), 1, True),
        (KeyboardInterrupt(), 130, True),
        (KeyError("a mistake of ours"), 1, False),
        (AssertionError("a mistake of ours"), 1, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_end_in_one_line_and_their_exit_code(
    error: BaseException, code: int, foreseen: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, VERBS["train"], SimpleNamespace(run=raising(error)))
    assert main(["train", "seed=1"]) == code
    said = capsys.readouterr().err
    assert said.endswith(f"error: {one_line(error)}\n")
    assert ("Traceback" in said) is not foreseen
    assert foreseen is (said.count("\n") == 1)


def test_debug_shows_where_a_foreseen_error_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, VERBS["train"], SimpleNamespace(run=raising(BadInput("no"))))
    assert main(["train", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_verb_gets_the_rest_of_the_line_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(args: list[str]) -> int:
        seen.append(args)
        return 75

    monkeypatch.setitem(sys.modules, VERBS["train"], SimpleNamespace(run=run))
    assert main(["train", "--debug", "seed=1", "task.name=reach-v3"]) == 75
    assert main(["train", "--config-dir", "mine", "seed=1"]) == 75
    assert main(["train", "--config-dir"]) == 75
    assert seen == [["seed=1", "task.name=reach-v3"], ["--config-dir=mine", "seed=1"], ["--config-dir"]]


def test_errors_of_heavy_modules_have_their_codes_by_name() -> None:
    from mbrl.envs.back_end import NoRendering
    from mbrl.envs.simulator import EnvDataError, UnknownTask
    from mbrl.io.tree import Diverged

    assert exit_code(EnvDataError("reward nan")) == 4
    assert exit_code(Diverged("model/weight holds 3 numbers that are not finite")) == 4
    assert exit_code(NoRendering("install Mesa")) == 2
    assert exit_code(UnknownTask("Meta-World", "raech-v3", ["reach-v3"])) == 2


def test_a_printed_command_starts_as_this_one_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "env dir" / "bin" / "mbrl"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == "'env dir/bin/mbrl'"
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    assert program() == "mbrl"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "mbrl" / "__main__.py")])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    assert program() == "'env dir/bin/python' -m mbrl"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert program() == "mbrl"


def test_the_last_part_of_a_dotted_key_finds_its_neighbours_too() -> None:
    known = ["agent.horizon", "agent.gamma", "worldmodel.max_frames", "schedule.total"]
    assert nearest("agent.horizn", known)[0] == "agent.horizon"
    assert nearest("horizon", known) == ["agent.horizon"]
    assert nearest("zzz", known) == []
