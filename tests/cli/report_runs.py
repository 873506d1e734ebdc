"""Tiny run folders for the tests of `mbrl report`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mbrl.rundir.folder import FORMAT
from tests.rundir.test_result import GOOD

CONFIG: dict[str, Any] = {
    "format": FORMAT,
    "task": {"_target_": "mbrl.envs.metaworld.MetaWorldTask", "name": "door-close-v3"},
    "protocol": {"name": "default", "image": 64, "camera": {"distance": 1.15}, "deviations": []},
    "transformer": {"layers": 3, "hidden": 128},
    "worldmodel": {"_target_": "worldmodel.ivideogpt.ModelConfig", "max_frames": 12},
    "agent": {"_target_": "agents.dreamer.DreamerConfig", "gamma": 0.96},
    "schedule": {"total": 5000, "prefill": 1500, "gate": {"episodes": 3, "reward_r2": 0.3, "codes_alive": 40}},
    "seed": 7,
}
OLD = "env_step,decision,update,wall_s,train/episode/return,time/collect_s,time/fit_s,time/evaluate_s,agent/return_mean"
ROWS = ["1000,500,0,9.5,21,4,0,6,", "2000,1000,0,30,25,4,16,0,", "3000,1500,40,60.5,31,4,26,0,7.5"]
EVAL = """env_step,decision,update,wall_s,episodes,return,return_std,success,success_low,success_high,weights_step
0,0,0,5,20,32,22,0.05,0.01,0.24,
3000,1500,40,61,10,121,25,0.6,0.31,0.83,
"""
SUCCESS = [True] * 16 + [False] * 4
DONE = GOOD | {"final": {"returns": [140.0] * 20, "success": SUCCESS, "success_last": SUCCESS}}
FINAL = "3000,1500,40,70,20,140,20,0.8,0.58,0.92,2500\n"
NEW = {
    "heldout/reward_r2_1": "0.9",
    "heldout/reward_r2_5": "-7",
    "heldout/reward_r2_10": "nan",
    "replay/codes_alive": "61",
    "probe/hand_r2": "0.8",
    "probe/hand_rmse": "1.25",
    "probe/object_r2": "0.5",
    "heldout/return_imagined": "31",
    "heldout/return_real": "28",
    "heldout/value": "30",
    "heldout/return_to_go": "29",
    "dynamics/codes": "2.5",
    "agent/std": "0.4",
    "agent/entropy": "1.1",
    "tokenizer/context_l1": "0.05",
    "tokenizer/future_l1": "0.08",
}


def make_run(
    folder: Path, more: Mapping[str, str] = {}, *, seed: int | None = None, **changed: Mapping[str, Any]
) -> Path:
    """A run folder; the columns `more` are filled in the last row only."""
    folder.mkdir()
    config = copy.deepcopy(CONFIG)
    config["seed"] = CONFIG["seed"] if seed is None else seed
    for group, values in changed.items():
        config[group] = {**config.get(group, {}), **values}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        ",".join([OLD, *more]),
        *(row + "," * len(more) for row in ROWS[:-1]),
        ",".join([ROWS[-1], *more.values()]),
    ]
    (folder / "metrics.csv").write_text("".join(f"{line}\n" for line in lines))
    (folder / "eval.csv").write_text(EVAL)
    return folder
