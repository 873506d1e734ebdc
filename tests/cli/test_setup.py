"""Set-up by make: its order and stamps, what it says where something is missing, and what goes into the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from mbrl.cli import rendering

ROOT = Path(__file__).resolve().parents[2]


def bare_machine(tmp_path: Path, pythons: dict[str, str]) -> dict[str, str]:
    """An environment whose PATH has only the basic tools and these `python` stand-ins (name -> shell script)."""
    tools = tmp_path / "bin"
    tools.mkdir()
    pythons = pythons | {"id": "echo 1000"}
    for tool in ("sh", "printf", "grep", "touch", "rm", "mkdir"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    for name, script in pythons.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return {"PATH": str(tools), "VENV": str(tmp_path / "venv")}


def setup(step: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One step of setup.sh."""
    command = ["sh", str(ROOT / "setup.sh"), step]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_without_a_fitting_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = setup("venv", bare_machine(tmp_path, {"python3": "exit 1"}))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Python 3.11, 3.12 or 3.13 was not found" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_named_python_that_does_not_fit_is_not_replaced_by_another(tmp_path: Path) -> None:
    environment = bare_machine(tmp_path, {"python3": "exit 0", "mine": "exit 1"}) | {"PYTHON": "mine"}
    done = setup("venv", environment)
    assert (done.returncode, done.stderr) == (1, "error: PYTHON=mine is not Python 3.11, 3.12 or 3.13\n")


def test_without_ensurepip_one_line_names_debian_s_package(tmp_path: Path) -> None:
    script = 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac'
    done = setup("venv", bare_machine(tmp_path, {"python3": script}))
    assert done.returncode == 1
    wanted = "sudo apt-get update && sudo apt-get install -y python3.12-venv"
    assert done.stderr == f"error: python3 cannot make virtual environments; type: {wanted}\n"


def planned(tmp_path: Path, target: str, *, present: Sequence[str], stale: bool = False) -> str:
    """What make would do in a copy of the set-up files where these stamps are there already."""
    for name in ("Makefile", "setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    for age, stamp in enumerate(present):
        (tmp_path / ".venv" / stamp).touch()
        os.utime(tmp_path / ".venv" / stamp, (2e9 + age, 2e9 + age))
    if stale:
        os.utime(tmp_path / "constraints.txt", (2.1e9, 2.1e9))
    command = ["make", "--no-print-directory", "-n", target, "ARGS=task.name=door-close-v3 seed=2"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


STAMPS = (".made", ".installed", ".rendering")


def test_training_prepares_everything_in_order_and_passes_the_overrides_on(tmp_path: Path) -> None:
    plan = planned(tmp_path, "train", present=())
    steps = ["setup.sh venv", "setup.sh install", "mbrl.cli.rendering", "mbrl train task.name=door-close-v3 seed=2"]
    places = [plan.index(step) for step in steps]
    assert places == sorted(places)


def test_a_second_start_goes_straight_to_training(tmp_path: Path) -> None:
    plan = planned(tmp_path, "train", present=STAMPS)
    assert plan.strip() == ".venv/bin/python -m mbrl train task.name=door-close-v3 seed=2"


def test_changed_pins_are_installed_again_but_the_environment_is_kept(tmp_path: Path) -> None:
    plan = planned(tmp_path, "train", present=STAMPS, stale=True)
    assert "setup.sh install" in plan
    assert "setup.sh venv" not in plan


def test_the_check_is_complete_and_pytest_comes_last(tmp_path: Path) -> None:
    lines = planned(tmp_path, "test", present=STAMPS).splitlines()
    assert [
        word for word in ("ruff check", "ruff format --check", "mypy", "pytest -n 2") if word not in "\n".join(lines)
    ] == []
    assert "pytest" in lines[-1]
    assert "OMP_NUM_THREADS=1" in lines[-1]
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "pipefail" in (ROOT / ".ci/run").read_text()


def test_tests_see_an_empty_home_of_their_own_and_nothing_that_the_user_set(tmp_path: Path) -> None:
    planned(tmp_path, "test", present=STAMPS)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$*" in *pytest*) env; echo "inside:$(ls -A "$HOME")"; exit 3;; esac\n')
    python.chmod(0o755)
    theirs = {name: str(tmp_path) for name in ("HOME", "TOKENDREAM_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {"PATH": os.environ["PATH"], "MUJOCO_GL": "egl", "NETRC": "theirs", "COLUMNS": "40", **theirs}
    command = ["make", "--no-print-directory", "test"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, "a failing pytest fails make"
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert str(tmp_path) not in (seen["HOME"], seen["XDG_CACHE_HOME"])
    assert seen["XDG_CACHE_HOME"].startswith(seen["HOME"])
    assert "inside:\n" in done.stdout
    assert not Path(seen["HOME"]).exists(), "it is removed afterwards"
    assert not {"TOKENDREAM_CACHE", "XDG_CONFIG_HOME", "NETRC", "COLUMNS"} & seen.keys()
    assert seen["MUJOCO_GL"] == "egl"


def test_every_package_that_we_ask_for_is_pinned_inside_its_range() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    from packaging.requirements import Requirement

    for text in asked:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.replace("_", "-").lower()]), text
    assert pins["torch"] == "2.13.0"
    assert "wandb" not in pins


def test_no_package_index_is_named_in_any_set_up_file() -> None:
    for name in ("Makefile", "setup.sh", "pyproject.toml", "constraints.txt", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text), name


def test_rendering_that_works_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "probe", lambda: ("egl, Mesa llvmpipe (software)", ""))
    monkeypatch.setattr(rendering, "run_quietly", lambda command: pytest.fail("nothing is to be installed"))
    assert rendering.main() == 0
    assert capsys.readouterr().out == "==> rendering works: egl, Mesa llvmpipe (software)\n"


def machine(monkeypatch: pytest.MonkeyPatch, *, root: bool, tools: Sequence[str]) -> list[list[str]]:
    """A Linux machine with these tools that cannot draw before something was installed; returns what it installs."""
    ran: list[list[str]] = []

    def run(command: Sequence[str]) -> bool:
        ran.append(list(command))
        return True

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering.platform, "system", lambda: "Linux")
    monkeypatch.setattr(rendering.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(rendering.shutil, "which", lambda tool: tool if tool in tools else None)
    monkeypatch.setattr(rendering, "run_quietly", run)
    monkeypatch.setattr(rendering, "probe", lambda: ("egl", "") if len(ran) == 2 else (None, "no libEGL"))
    return ran


def test_root_on_debian_gets_the_libraries_without_being_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = machine(monkeypatch, root=True, tools=["apt-get"])
    assert rendering.main() == 0
    assert [command[:2] for command in ran] == [["apt-get", "update"], ["apt-get", "install"]]
    assert set(rendering.PACKAGES) <= set(ran[1])
    assert "rendering works: egl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tools", "command"),
    [
        (["apt-get"], "  sudo apt-get update && sudo apt-get install -y libegl1 libgl1 libgl1-mesa-dri\n"),
        (["dnf"], "  sudo dnf install -y mesa-libEGL mesa-libGL mesa-dri-drivers\n"),
    ],
)
def test_others_are_told_the_one_command_to_type(
    tools: list[str], command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = machine(monkeypatch, root=False, tools=tools)
    assert rendering.main() == 2
    assert ran == []
    said = capsys.readouterr().err
    assert said.endswith(command)
    assert "no libEGL" in said


def test_a_forced_back_end_is_not_mended_behind_the_user_s_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = machine(monkeypatch, root=True, tools=["apt-get"])
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.main() == 2
    assert ran == []
    assert "MUJOCO_GL=osmesa" in capsys.readouterr().err


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names inside a wheel that was built from a copy of what git tracks (a build leaves traces)."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("source")
    for name in ("worldmodel", "agents", "mbrl", "benchmarks", "configs", "tests"):
        left = ["__pycache__", *(["data"] if name == "tests" else [])]  # recorded numbers, many megabytes of them
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*left))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    code = "import setuptools.build_meta as b; print(b.build_wheel('out'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / "out" / done.stdout.splitlines()[-1]) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_configuration_and_every_module(wheel: set[str]) -> None:
    configs = {f"mbrl/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert configs <= wheel
    ours = [path for name in ("worldmodel", "agents", "mbrl") for path in (ROOT / name).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in ours} <= wheel
    assert {"worldmodel/py.typed", "agents/py.typed", "mbrl/py.typed"} <= wheel


def test_the_wheel_holds_no_tests_and_no_benchmarks(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"worldmodel", "agents", "mbrl"}
