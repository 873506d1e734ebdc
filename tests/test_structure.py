"""The shape of the code: imports run downhill, files stay small, nothing opens a pickle, configs fit their classes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from mbrl.cli.compose import packaged_configs

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("worldmodel", "agents", "mbrl", "benchmarks")

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
LONG_FUNCTIONS: dict[str, int] = {}
"""`path::function` -> lines. This list may only shrink: a function that got shorter must be entered anew or leave."""

# From lowest to highest; a module may import what stands strictly lower, or its own folder.
WORLDMODEL_RANKS = (
    ("answers", "attention", "spec", "layout", "seeds", "optim", "processes", "twohot"),
    ("sequence", "microbatch"),
    ("augment",),
    ("tokenizer",),
    ("api", "proprio", "transformer"),
    ("rollout", "dream"),
    ("evaluation",),
    ("losses",),
    ("imagination",),
    ("ivideogpt", "none"),
    ("weights",),
    ("published",),
    ("training",),
    ("",),  # worldmodel/__init__.py
)
STRANGERS = {frozenset(("tokenizer", other)) for other in ("transformer", "rollout", "dream", "training")}
AGENTS_GROUND = (
    *("api", "nets", "pixel_nets", "distributions", "returns", "memory", "exploration", "parts", "imagined"),
)
AGENTS_MAY_SEE = tuple(
    f"worldmodel.{name}" for name in ("answers", "spec", "seeds", "optim", "processes", "twohot", "augment")
)
# other files of mbrl/: 0
MBRL_RANKS = {
    **{"envs": 1, "replay": 1, "io": 1, "oracle": 2, "rundir": 2, "data": 3, "measure": 3},
    **{"run": 4, "predict": 4, "collection": 5, "pretrain": 5, "report": 5, "bench": 6, "cli": 7, "__main__": 8},
}
FOREIGN = {  # who may import a library that must not spread; benchmarks may import anything
    "torchrl": ("worldmodel.spec", "worldmodel.dream.env", "agents.distributions", "mbrl.envs"),
    "gymnasium": ("worldmodel.dream.vector", "mbrl.envs.gymnasium"),
    "hydra": ("mbrl.cli",),
    "omegaconf": ("mbrl.cli",),
    "metaworld": ("mbrl.envs.metaworld",),
    "dm_control": ("mbrl.envs.dmc",),
    "mujoco": ("mbrl.envs", "mbrl.envs.gl"),
    "wandb": ("mbrl.io",),
}


def sources() -> dict[str, str]:
    """Module name -> source text, of every Python file of ours outside tests."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(module: str, text: str, modules: set[str]) -> Iterator[str]:
    """Every module that `module` imports anywhere, inside functions and `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else str(node.module)


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether `module` is one of `names` or inside one."""
    return any(module == name or module.startswith(name + ".") for name in names)


def part(module: str) -> str:
    """The folder or file below the package: `worldmodel.rollout.engine` -> `rollout`."""
    return module.split(".")[1] if "." in module else ""


def rank(module: str) -> int:
    """Where a worldmodel module stands; higher ones see lower ones."""
    return next(i for i, row in enumerate(WORLDMODEL_RANKS) if part(module) in row)


def forbidden(module: str, target: str) -> bool:
    """Whether `module` must not import `target`; both are ours."""
    home, away = module.split(".")[0], target.split(".")[0]
    if home == "benchmarks" or (home == away and part(module) == part(target)):
        return False
    if (home, away) == ("worldmodel", "worldmodel"):
        return rank(target) >= rank(module) or frozenset((part(module), part(target))) in STRANGERS
    if (home, away) == ("agents", "agents"):
        return part(target) not in AGENTS_GROUND
    if (home, away) == ("agents", "worldmodel"):
        return target not in AGENTS_MAY_SEE
    if (home, away) == ("mbrl", "mbrl"):
        return MBRL_RANKS.get(part(target), 0) >= MBRL_RANKS.get(part(module), 0)
    if (home, away) == ("mbrl", "agents"):
        return target != "agents.api"
    return (home, away) != ("mbrl", "worldmodel")


def uphill(code: dict[str, str], modules: set[str]) -> list[str]:
    """Every import in `code` that the tables forbid, as `module -> target`; `modules` are the names of all of ours."""
    wrong = []
    for module, text in code.items():
        for target in imports(module, text, modules):
            top = target.split(".")[0]
            ours = top in PACKAGES and forbidden(module, target)
            foreign = top in FOREIGN and not within(module, (*FOREIGN[top], "benchmarks"))
            if ours or foreign:
                wrong.append(f"{module} -> {target}")
    return wrong


def test_imports_run_downhill() -> None:
    code = sources()
    assert len(code) > 40
    assert uphill(code, set(code)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("worldmodel.rollout.engine", "from agents.api import Agent"),
        ("worldmodel.rollout.engine", "import mbrl.files"),
        ("worldmodel.rollout.engine", "from worldmodel.ivideogpt import IVideoGPT"),
        ("worldmodel.transformer.llama", "from worldmodel.tokenizer.compressive import TokenizerConfig"),
        ("worldmodel.layout", "from worldmodel.losses.parts import LossConfig"),
        ("worldmodel.losses.parts", "import torchrl.data"),
        ("agents.dreamer", "from worldmodel.ivideogpt import ModelConfig"),
        ("agents.dreamer", "from worldmodel import ivideogpt"),
        ("agents.dreamer", "from agents.baselines import RandomConfig"),
        ("agents.nets", "from agents.dreamer import DreamerConfig"),
        ("agents.dreamer", "from mbrl.run.clock import Clock"),
        ("mbrl.run.train", "from agents.dreamer import DreamerConfig"),
        ("mbrl.run.train", "import hydra"),
        ("mbrl.report.page", "from mbrl.bench.plan import Cell"),
        ("mbrl.bench.queue", "from mbrl.cli.train import run"),
        ("mbrl.run.train", "from mbrl.cli.errors import BadInput"),
        ("mbrl.replay.store", "from mbrl.io.checkpoint import Checkpoints"),
        ("mbrl.envs.rows", "from mbrl.replay.store import EpisodeStore"),
        ("mbrl.files", "from mbrl.run.clock import Clock"),
        ("mbrl.cli.main", "import benchmarks.tasks"),
        ("mbrl.cli.doctor", "import gymnasium"),
        ("mbrl.envs.make", "from dm_control import suite"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_planted_import_that_runs_uphill_is_found_even_inside_a_function(module: str, line: str, depth: int) -> None:
    planted = f"{line}\n" if depth == 0 else f"def planted():\n    {line}\n"
    modules = {module, "worldmodel.ivideogpt"}
    assert len(uphill({module: planted}, modules)) == 1
    assert uphill({module: "import torch\n"}, modules) == []


def python_files() -> list[Path]:
    """Every Python file of ours, tests too."""
    return [path for folder in (*PACKAGES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in python_files() if (n := p.read_text().count("\n")) > MOST_LINES_OF_A_FILE
    }
    assert long == {}


def test_no_function_is_longer_than_sixty_lines_and_the_list_of_exceptions_only_shrinks() -> None:
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long[f"{path.relative_to(ROOT)}::{node.name}"] = lines
    assert long == LONG_FUNCTIONS


HEAVY = ("tensordict", "torchrl", "hydra", "omegaconf", "metaworld", "mujoco", "gymnasium", "wandb", "agents", "mbrl")


def test_the_rollout_engine_needs_torch_only() -> None:
    code = f"import sys, worldmodel.rollout.engine; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


STEPS = {  # who may call what leads one imagined frame further
    "imagine": {"worldmodel.dream.imagine"},
    # the model itself; the published facade, whose protocols count ids and stack frames; clocks for the engine alone
    "sample_frame": {"worldmodel.imagination", "worldmodel.published.model", "mbrl.cli.doctor", "benchmarks.workload"},
}


def steppers(text: str) -> set[str]:
    """Which of `STEPS` a source calls."""
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in STEPS}


def test_there_is_one_loop_over_imagined_steps() -> None:
    found: dict[str, set[str]] = {name: set() for name in STEPS}
    for module, text in sources().items():
        for name in steppers(text):
            found[name].add(module)
    assert found == STEPS
    assert steppers("for a in actions:\n    state = self.model.imagine(state, a, None)") == {"imagine"}


def test_every_example_in_a_docstring_is_run() -> None:
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    shown = [
        p for folder in PACKAGES for p in (ROOT / folder).rglob("*.py") if re.search(r"(?m)^ +>>> ", p.read_text())
    ]
    assert sorted(str(path.relative_to(ROOT)) for path in shown) == sorted(paths[1:])


def dangers(text: str) -> list[str]:
    """What executes foreign bytes: pickle in any form, `torch.load`, `eval`, `exec`, unsafe numpy or YAML loading."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [
                alias.name
                for alias in node.names
                if alias.name in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
            ]
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "cloudpickle", "marshal", "shelve"):
            found.append(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "torch.jit.load"):
                found.append(called)
            found += [
                f"{called}(allow_pickle)"
                for word in node.keywords
                if word.arg == "allow_pickle" and not_false(word.value)
            ]
    return found


def not_false(node: ast.expr) -> bool:
    """Whether an argument may be anything but False."""
    return not (isinstance(node, ast.Constant) and node.value is False)


def test_opening_a_file_executes_nothing() -> None:
    assert {module: found for module, text in sources().items() if (found := dangers(text))} == {}


@pytest.mark.parametrize(
    "line", ["import pickle", "from pickle import loads", "torch.load(f)", "eval('1')", "np.load(f, allow_pickle=True)"]
)
def test_a_planted_danger_is_found(line: str) -> None:
    assert dangers(f"def f():\n    {line}\n")
    assert not dangers("model.eval()\nnp.load(f, allow_pickle=False)\n")


def tracked_texts() -> dict[str, str]:
    """Every text file that git tracks, or, without git, every file that is no product of a tool."""
    names: list[str] = []
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
        names = listed.stdout.splitlines()  # none where git refuses a checkout that another user owns
    if not names:
        folders = (*PACKAGES, "tests", "configs", "docs")
        found = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
        names = [str(path.relative_to(ROOT)) for path in (*found, *ROOT.glob("*.*"))]
    texts = {}
    for name in names:
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content[:8192]:
            texts[name] = content.decode("utf-8", errors="replace")
    return texts


def test_no_text_names_a_place_on_somebody_s_machine() -> None:
    places = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "root", "tmp/v", "Users", "home/[a-z]")) + r")/")
    texts = tracked_texts()
    assert len(texts) > 40
    assert {name: found.group() for name, text in texts.items() if (found := places.search(text))} == {}


CONFIGS = packaged_configs()
INHERITED = 0.85
"""Share of a file's keys that may say what a neighbour says."""
WHOLE = ("protocol", "tokenizer")
"""Groups whose files stand for something published each, and are read one by one."""


def targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a `_target_`, and its key."""
    if isinstance(node, list):
        for place, item in enumerate(node):
            yield from targets(item, f"{key}[{place}]")
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, item in node.items():
            yield from targets(item, f"{key}.{name}")


def variants() -> list[Path]:
    """Every variant file (a root file is a list of them)."""
    return sorted(CONFIGS.glob("*/**/*.yaml"))


def whole(path: Path) -> dict[str, Any]:
    """A variant with what it inherits (`defaults:`); of a file for the whole configuration what it says itself."""
    if path.parent.name in ("experiment", "recipe"):
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    else:
        name = str(path.relative_to(CONFIGS).with_suffix(""))
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            plain = OmegaConf.to_container(hydra_compose(config_name=name), resolve=False)
        for part in path.parent.relative_to(CONFIGS).parts:
            plain = plain[part]  # type: ignore[index, call-overload]
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


@pytest.mark.parametrize("path", variants(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_variant_file_has_exactly_the_fields_of_its_classes(path: Path) -> None:
    plain = whole(path)
    nodes = list(targets(plain, path.stem))
    assert nodes or path.parent.name in ("experiment", "recipe"), "a variant file names the class it is for"
    for key, node in nodes:
        module, _, name = node["_target_"].rpartition(".")
        fields = {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
        assert set(node) - {"_target_"} == fields, key


def test_config_classes_have_no_defaults_in_python() -> None:
    named = {node["_target_"] for path in variants() for _, node in targets(whole(path), "")}
    assert named
    for target in sorted(named):
        module, _, name = target.rpartition(".")
        for field in dataclasses.fields(getattr(importlib.import_module(module), name)):
            nothing = dataclasses.MISSING
            assert (field.default, field.default_factory) == (nothing, nothing), f"{target}.{field.name}"


def test_no_variant_repeats_what_it_could_inherit() -> None:
    """A file that says what a neighbour says, but for a few values, begins with that neighbour instead."""
    said = {path: dict(flat(OmegaConf.to_container(OmegaConf.load(path)))) for path in variants()}
    copies = []
    for path, keys in said.items():
        for other, others in said.items():
            same = {key for key, value in keys.items() if others.get(key) == value}
            neighbour = path > other and path.parent == other.parent and path.parent.name not in WHOLE
            if neighbour and len(keys) > 8 and len(same) > INHERITED * len(keys):
                copies.append((str(path.relative_to(CONFIGS)), other.stem, len(same), len(keys)))
    assert copies == []


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value)."""
    for name, value in node.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
