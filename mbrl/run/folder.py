"""The run folder: what it holds, how a new one begins, and how an old one is read as data.

config.yaml   the whole composed configuration        run.json     versions, protocol, camera, threads, device, commit
metrics.csv   training, one row per log interval      eval.csv     every evaluation
checkpoints/  step-*: verified before they are read   replay/      one file per finished episode
videos/       evaluation episodes, open-loop clips    console.log  what was printed
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from mbrl.files import write_atomically

PACKAGES = ("tokendream", "torch", "torchrl", "tensordict", "metaworld", "mujoco", "gymnasium", "numpy", "hydra-core")
MAY_CHANGE = (
    "schedule.total",
    "schedule.evaluate.",
    "schedule.log.",
    "schedule.save.",
    "evaluation.",
    "logger.",
    "keep",
    "run_dir",
)
"""Keys (or beginnings of keys) that a continued run may be given anew: none of them changes what was learned so far."""


def default_folder(plain: Mapping[str, Any], variants: Mapping[str, str]) -> Path:
    """runs/<task>/<agent>-<transformer>/seed-<n>/<date-time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    method = f"{variants['agent']}-{variants['transformer']}"
    return Path("runs") / plain["task"]["name"] / method / f"seed-{plain['seed']}" / stamp


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / "config.yaml").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The stored configuration, as data: no reference in it is followed and no tag is obeyed.

    Raises: ValueError where there is none, or it is not one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a run folder: it has no config.yaml; `mbrl train run_dir={folder}` makes one"
        )
    try:
        plain = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or "task" not in plain or "seed" not in plain:
        raise ValueError(f"{path} is not a configuration: task and seed are missing")
    for key, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise ValueError(
                f"{path}: {key} holds a reference ({value}); a stored configuration holds plain values only"
            )
    return plain


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a nested container; lists are values."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, value in node.items():
        yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))


def classes(plain: Mapping[str, Any]) -> set[str]:
    """The classes that a configuration names."""
    found: set[str] = set()
    for key, value in plain.items():
        if key == "_target_":
            found.add(str(value))
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, Mapping):
                found |= classes(node)
    return found


def merge_resumed(stored: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The stored configuration with what the user asked to change on the command line.

    Args:
        before: what the command line composes to without the user's words (beside the run's own).
        after: what it composes to with them.
    Raises: ValueError naming a key that a continued run may not change.
    """
    old, asked, known = dict(leaves(before)), dict(leaves(after)), dict(leaves(stored))
    for key in sorted(asked.keys() | old.keys()):
        if asked.get(key) == old.get(key) or known.get(key) == asked.get(key):
            continue
        if not key.startswith(MAY_CHANGE):
            raise ValueError(
                f"{key}={asked.get(key)} cannot be given to a run that began with {key}={known.get(key)}; "
                f"leave it out, or choose another run_dir (a continued run may change {', '.join(MAY_CHANGE)})"
            )
        node = stored
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = asked[key]
    return stored


def write_run(folder: Path, plain: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Begins (or goes on with) a run folder: config.yaml and run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(dict(plain), sort_keys=False).encode())
    write_atomically(folder / "run.json", (json.dumps(info, indent=2) + "\n").encode())


def run_info(plain: Mapping[str, Any], *, argv: list[str]) -> dict[str, Any]:
    """What one must know to compare this run with another."""
    return {
        "task": plain["task"]["name"],
        "protocol": plain["protocol"]["name"],
        "camera": plain["protocol"]["camera"],
        "seed": plain["seed"],
        "threads": plain["compute"]["threads"],
        "device": device_name(plain["compute"]["device"]),
        "device_kind": plain["compute"]["device"].partition(":")[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": commit(),
        "argv": argv,
    }


def device_name(device: str) -> str:
    """The accelerator's name, or the processor's."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return f"{names[0] if names else platform.machine()} ({len(names) or '?'} cores seen)"


def version_of(package: str) -> str:
    """The installed version, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The checkout's git commit, `-dirty` if files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")
