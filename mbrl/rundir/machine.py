"""The machine that a run is on: which device it may use, and what must be known of it to compare runs."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("tokendream", "torch", "torchrl", "tensordict", "numpy", "hydra-core"),
    *("metaworld", "mujoco", "dm-control", "gymnasium"),
)

MATMUL = ("ieee", "bf16")


def check_device(device: str) -> None:
    """Raises: ValueError unless `device` is `cpu`, `cuda` or `cuda:<n>`, and there."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device must be cpu, cuda or cuda:<n> (got {device})")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be one that is there: cpu or {torch.cuda.device_count()} CUDA devices (got {device})"
        )


def machine_info(compute: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of machine, versions and code; `compute`: device, threads and matmul of the configuration."""
    return {
        "threads": compute["threads"],
        "matmul": compute["matmul"],
        "device": device_name(compute["device"]),
        "device_kind": compute["device"].partition(":")[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": commit(),
    }


def overruled(threads: int) -> str:
    """` (OMP_NUM_THREADS=1 does not count)` where the environment asks for other threads than `compute.threads` has."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    others = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name, str(threads)) != str(threads)]
    return f" ({' and '.join(others)} {'do' if others[1:] else 'does'} not count)" if others else ""


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


def check_matmul(matmul: str) -> None:
    """Raises: ValueError unless `matmul` is a precision that `set_matmul_precision` takes."""
    if matmul not in MATMUL:
        raise ValueError(f"matmul must be {' or '.join(MATMUL)} (got {matmul})")


def set_matmul_precision(matmul: str) -> None:
    """How this process multiplies float32 matrices on a CPU; it holds for all of them, so a run stores it.

    `ieee`: in float32. `bf16`: through oneDNN, 2.4 times faster than MKL on an AMD processor with equal numbers; on a
    processor with matrix units for bfloat16 the factors may be rounded to it, as a GPU rounds them to TF32.
    """
    torch.backends.mkldnn.matmul.fp32_precision = matmul  # type: ignore[attr-defined]
