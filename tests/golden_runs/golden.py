"""Recorded runs: played in a process of their own, written, read and compared."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCENES = ("small", "toy", "ranks")

PINNED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""The arithmetic that every x86 processor of the last ten years has; bfloat16 and matrix units stay out of it."""
ELSEWHERE = (
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
)
"""Stand-ins for other processors: how far they drift says how far a number may be off where bits cannot be equal."""
DRIFTS = 5.0  # a stranger may drift as many times as far as the stand-ins have until then
SHARE = 1e-3  # and this share of a series' largest number: one code that falls to the other side changes a loss by 1e-4

Shown = dict[str, Any]
"""fingerprint: what bits depend on; numbers: series by name; hashes by name; in a golden also tolerance: by name."""


def play(scene: str, **environment: str) -> Shown:
    """Plays a scene in a fresh process with the pinned arithmetic, or that of `environment`."""
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, "-m", "tests.golden_runs.scenes", scene, f"{place}/shown.json"]
        variables = {**os.environ, **PINNED, **environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        shown: Shown = json.loads(Path(place, "shown.json").read_text())
        return shown


def path_of(scene: str) -> Path:
    """Where a scene's golden lies."""
    return HERE / "data" / f"{scene}.json"


def write(scene: str, golden: Shown) -> None:
    """One line for each series and hash, so that a diff names what changed."""
    groups = []
    for group, held in golden.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in held.items())
        groups.append(f' "{group}": {{\n{lines}\n }}')
    path_of(scene).write_text("{\n" + ",\n".join(groups) + "\n}\n")


def read(scene: str) -> Shown:
    """Inverse of `write`."""
    golden: Shown = json.loads(path_of(scene).read_text())
    return golden


def tolerances(shown: Shown, elsewhere: Sequence[Shown]) -> dict[str, list[float]]:
    """How far each number may be off on another processor: the drift so far of the stand-ins, with a margin."""
    allowed = {}
    for name, series in shown["numbers"].items():
        scale, drift, row = max((abs(x) for x in series if x is not None), default=0.0), 0.0, []
        for place, number in enumerate(series):
            others = [other["numbers"][name][place] for other in elsewhere]
            drift = max([drift, *(abs(x - number) for x in others if None not in (x, number))])
            row.append(float(f"{SHARE * scale + DRIFTS * drift:.2g}"))
        allowed[name] = row
    return allowed


def off(golden: Shown, shown: Shown) -> list[str]:
    """Every series that is gone, has another length or is further off than its tolerance; additions are welcome."""
    return _different(golden["numbers"], shown["numbers"], golden["tolerance"])


def unequal(golden: Shown, shown: Shown) -> list[str]:
    """Every series or hash of the golden that is gone or not equal to the last bit."""
    hashes = [name for name, value in golden["hashes"].items() if shown["hashes"].get(name) != value]
    return [*_different(golden["numbers"], shown["numbers"], {}), *(f"hash of {name}" for name in hashes)]


def strangers(golden: Shown, shown: Shown) -> list[str]:
    """What of the machine differs from the one that made the golden, as words."""
    here = shown["fingerprint"]
    recorded = golden["fingerprint"].items()
    return [f"{key} is {here.get(key)}, not {value}" for key, value in recorded if here.get(key) != value]


def _different(
    wanted: Mapping[str, list[float | None]],
    found: Mapping[str, list[float | None]],
    allowed: Mapping[str, list[float]],
) -> list[str]:
    complaints = []
    for name, series in wanted.items():
        if name not in found:
            complaints.append(f"{name} is gone (RENAMED in scenes.py, if it has another name now)")
        elif len(found[name]) != len(series):
            complaints.append(f"{name} has {len(found[name])} numbers, not {len(series)}")
        else:
            places = zip(series, found[name], allowed.get(name, [0.0] * len(series)), strict=True)
            wrong = [(i, a, b) for i, (a, b, tolerance) in enumerate(places) if not _near(a, b, tolerance)]
            if wrong:
                place, was, now = wrong[0]
                complaints.append(f"{name}: {len(wrong)} of {len(series)}, first at {place}: {was} -> {now}")
    return complaints


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= tolerance or (math.isnan(a) and math.isnan(b))
