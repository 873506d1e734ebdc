"""`result.json`: what a run was worth, for benchmarks, reports and importers; its schema stands here and nowhere else.

A score is its episodes, one by one: whoever reads a result computes what is needed of them with `Episodes`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.files import DamagedFile
from mbrl.io.checkpoint import newest_json
from mbrl.rundir.folder import read_info
from mbrl.rundir.schema import check_schema

log = logging.getLogger("mbrl")

RESULT, EVALUATION = "result.json", "evaluation.json"
"""The file of a run's own final score, and that of the newest `mbrl eval`; both have the same schema."""
FLAGS = (None, [bool])
EPISODES = {"returns": [float], "success": FLAGS, "success_last": FLAGS, "success_step": (None, [(None, int)])}
SCHEMA: Mapping[str, Any] = {
    "schema": 1,
    "task": str,
    "protocol": {"name": str, "sha256": str},
    "demos": int,
    "rehearsal": [str],
    "begun_from": (None, str),
    "seed": int,
    "agent": str,
    "model": {"class": str, "parameters": {"*": int}},
    "env_steps": int,
    "weights": str,
    "weights_step": int,
    "final": EPISODES,
    "random": (None, EPISODES),
    "wall_s": float,
    "device": str,
    "threads": int,
    "matmul": str,
    "versions": {"*": str},
    "commit": str,
}
"""Field -> its kind (`mbrl.rundir.schema`).

rehearsal: data sets that lay in the replay beside the run's own episodes. begun_from: the folder whose weights the
world model began with, null for fresh ones. env_steps: how far the run had come. weights: whose score `final` is, the
`last` or the `best` by the interim evaluations, which are of `weights_step`. random: the random policy on the same
starts and goals, null where it was not played. success: by the protocol's rule, success_last: at the last decision,
success_step: the first decision with success, counted from 1, null in an episode without; all null in a world without
success, success_step also in files from before it was told. wall_s: seconds worked until then. protocol.sha256: of its
keys and values, sorted, as JSON.
"""
OF_A_RUN = ("task", "demos", "rehearsal", "begun_from", "seed", "agent")
"""Fields that stay what run.json says, however often the run is continued."""
Z = 1.96
"""Half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Episodes:
    """What n episodes gave. `success` follows the protocol's rule, `success_last` looks at the last decision.

    `success_step` is the decision of the first success, counted from 1, None in an episode without. All three are None
    in a world that knows no success.
    """

    returns: tuple[float, ...]
    success: tuple[bool, ...] | None
    success_last: tuple[bool, ...] | None
    success_step: tuple[int | None, ...] | None

    @classmethod
    def of(cls, plain: Mapping[str, Sequence[Any] | None]) -> Episodes:
        """From a result's `final` or `random`."""
        held = {name: None if (values := plain.get(name)) is None else tuple(values) for name in EPISODES}
        return cls(held["returns"] or (), held["success"], held["success_last"], held["success_step"])

    def plain(self) -> dict[str, Any]:
        """Plain JSON; inverse of `of`."""
        return {name: None if (held := getattr(self, name)) is None else list(held) for name in EPISODES}

    def metrics(self) -> dict[str, float]:
        """The row of eval.csv; success is left out where there is none, `success_step` where none is solved."""
        found = {
            "episodes": float(len(self.returns)),
            "return": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
        }
        if self.success is not None and self.success_last is not None:
            low, high = success_interval(sum(self.success), len(self.success))
            found |= {"success": float(np.mean(self.success)), "success_low": low, "success_high": high}
            found["success_last"] = float(np.mean(self.success_last))
        if steps := [step for step in self.success_step or () if step is not None]:
            found["success_step"] = float(np.mean(steps))
        return found

    def __str__(self) -> str:
        m, n = self.metrics(), len(self.returns)
        success = "success {success:.2f} [{success_low:.2f}, {success_high:.2f}], ".format(**m) if self.success else ""
        half = half_interval(m["return_std"], n)
        return f"{success}return {m['return']:.1f} +- {half:.1f} ({n} episodes, 95 % intervals)"


def success_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate (1927): it stays inside [0, 1] and is honest at 0 and 1 too.

    >>> tuple(round(x, 2) for x in success_interval(10, 20))
    (0.3, 0.7)
    """
    # SciPy has this interval, and takes a second to be imported by every run
    z = 1.959963984540054
    rate, width = successes / n, 2 * (n + z**2)
    centre, half = (2 * n * rate + z**2) / width, z / width * math.sqrt(4 * n * rate * (1 - rate) + z**2)
    return centre - half if successes else 0.0, centre + half if successes < n else 1.0


def half_interval(std: float, n: float) -> float:
    """Half the 95 % interval of a mean of `n` values that deviate by `std`."""
    return Z * std / math.sqrt(max(1.0, n))


def result_of(
    info: Mapping[str, Any],
    *,
    parameters: Mapping[str, int],
    env_steps: int,
    weights: str,
    weights_step: int,
    final: Episodes,
    random: Episodes | None,
    wall_s: float,
) -> dict[str, Any]:
    """A result; `info` is what run.json says (`run_info`). Raises: ValueError if it is not one by the schema."""
    result: dict[str, Any] = {
        "schema": SCHEMA["schema"],
        "protocol": {"name": info["protocol"], "sha256": info["protocol_sha256"]},
        "model": {"class": info["model"], "parameters": dict(parameters)},
        "env_steps": env_steps,
        "weights": weights,
        "weights_step": weights_step,
        "final": final.plain(),
        "random": None if random is None else random.plain(),
        "wall_s": float(wall_s),
    }
    ordered = {name: result[name] if name in result else info[name] for name in SCHEMA}
    check_result(ordered)
    return ordered


def read_result(folder: Path, name: str = RESULT) -> dict[str, Any]:
    """The result in `folder`; empty where there is none.

    A run's own one of another end than its newest checkpoint knows is left out, and said.

    Raises: DamagedFile where it is not by the schema, and for a run's own one that is not what run and checkpoint say.
    """
    result = read_info(folder, name)
    for episodes in (result.get("final"), result.get("random")):
        if isinstance(episodes, dict):
            episodes.setdefault("success_step", None)  # not told by earlier versions
    try:
        if result:
            check_result(result)
    except ValueError as error:
        raise DamagedFile(f"{folder / name}: {error}") from error
    if result and name == RESULT and not vouched(folder, result):
        log.warning("%s is of another end of the run than its newest checkpoint knows: left out", folder / name)
        return {}
    return result


def vouched(folder: Path, result: Mapping[str, Any]) -> bool:
    """Compares a run's result with run.json and with the scores in its newest checkpoint, where they are there.

    Returns: False where the checkpoint is of another end: the run goes on, or was killed between the two files.
    Raises: DamagedFile where it says something else of the same end.
    """
    info = read_info(folder)
    told = {name: info[name] for name in OF_A_RUN if name in info}
    if {"protocol", "protocol_sha256"} <= info.keys():
        told["protocol"] = {"name": info["protocol"], "sha256": info["protocol_sha256"]}
    if "model" in info:
        told["model"] = {**result["model"], "class": info["model"]}
    checkpoint = newest_json(folder / "checkpoints", "run")
    scores = checkpoint[1]["scores"] if checkpoint else {}
    final, same = scores.get("final", {}), True
    if "of" in final:  # not in a copy of the file alone, nor in an older checkpoint
        saved, ended = Episodes.of(final).plain(), final["of"]
        same = (result["env_steps"], result["weights"], len(result["final"]["returns"])) == (
            *(ended["env_steps"], ended["evaluation"]["weights"], len(saved["returns"])),
        )
        if same:
            told |= {"weights_step": final["weights_step"], "wall_s": final["wall_s"], "final": saved}
            told["random"] = Episodes.of(scores["random"]).plain()
    if others := [name for name in told if told[name] != result[name]]:
        raise DamagedFile(
            f"{folder / RESULT} is not what the run saved ({', '.join(others)}); move it away and go on with the run, "
            "which writes it anew"
        )
    return same


def check_result(result: Mapping[str, Any]) -> None:
    """Raises: ValueError, one line, that names the first field that is missing, unknown or of another kind."""
    check_schema(result, SCHEMA)
    for name in ("final", "random"):
        counts = {len(values) for values in (result[name] or {"returns": [0]}).values() if values is not None}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(f"{name} must hold one value for each of its episodes (got {sorted(counts)} values)")
