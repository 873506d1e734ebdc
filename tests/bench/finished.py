"""Run folders at their end, as `mbrl train` leaves them, without the run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mbrl.bench.plan import Cell
from mbrl.rundir.folder import FORMAT
from mbrl.rundir.schema import write_json
from tests.rundir.test_result import GOOD

Make = Callable[..., Path]
CONFIG: dict[str, Any] = {
    "format": FORMAT,
    "task": {"_target_": "mbrl.envs.metaworld.MetaWorldTask", "name": "door-close-v3"},
    "protocol": {"name": "default", "success": "any", "decisions": 100},
    "worldmodel": {"_target_": "worldmodel.ivideogpt.ModelConfig", "proprio": False},
    "agent": {"_target_": "agents.dreamer.DreamerConfig", "gamma": 0.96},
    "schedule": {"total": 3000, "prefill": 1500},
    "seed": 0,
}
HEADER = "env_step,decision,update,wall_s,episodes,return,return_std,success,success_last,weights_step\n"


def cell(to: Path, task: str, method: str, seed: int) -> Cell:
    """A cell of a benchmark."""
    words = (f"task.name={task}", f"seed={seed}")
    return Cell(task=task, method=method, seed=seed, words=words, folder=to / task / method / f"seed-{seed}")


def finished(
    to: Path,
    task: str = "door-close-v3",
    method: str = "dreamer",
    seed: int = 0,
    success: float = 0.5,
    curve: tuple[float, ...] = (0.0, 0.6),
    result: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A finished run folder: 20 final episodes, interim evaluations each 1000 env steps from 1000 on."""
    folder = cell(to, task, method, seed).run
    folder.mkdir(parents=True)
    config = copy.deepcopy(CONFIG) | {"seed": seed}
    config["task"]["name"] = task
    for group, values in changed.items():
        config[group] = {**config[group], **values}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("env_step,decision,update,wall_s\n1000,500,0,9.5\n")
    rows = ["0,0,0,5,20,32,22,0.05,0.0,"]
    rows += [f"{1000 * (i + 1)},{500 * (i + 1)},9,{60 * i},20,121,25,{x},{x}," for i, x in enumerate(curve)]
    rows.append(f"3000,1500,40,70,20,140,20,{success},{success},2000")
    (folder / "eval.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    flags = [place < round(20 * success) for place in range(20)]
    final = {"returns": [140.0] * 20, "success": flags, "success_last": flags}
    versions = {"metaworld": "3.1.1", "mujoco": "3.3.0", "torch": "2.13"}
    said = {"task": task, "seed": seed, "final": final, "rehearsal": [], "versions": versions}
    write_json(folder / "result.json", GOOD | said | (result or {}))
    return folder
