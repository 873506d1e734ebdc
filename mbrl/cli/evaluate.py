"""`mbrl eval run=<dir> episodes=20`: score the newest checkpoint of a run; only adds a result file to it."""

from __future__ import annotations

import json
from pathlib import Path

from mbrl.cli.errors import DONE, BadInput, did_you_mean

KEYS = {"run": "a run folder", "episodes": "a whole number >= 1"}


def run(args: list[str]) -> int:
    """Prints the score and writes evaluation.json into the run folder."""
    folder, episodes = understand(args)

    from mbrl.io.checkpoint import read_newest
    from mbrl.run.assemble import Configs, assemble_player
    from mbrl.run.folder import read_config

    configs = Configs.of(read_config(folder), trusted=False)
    checkpoint = read_newest(folder / "checkpoints")
    player = assemble_player(configs, None)
    player.model.load_state_dict(checkpoint.states["model"])
    player.agent.load_state_dict(checkpoint.states["agent"])
    score = player.evaluator.score(player.agent, episodes)
    print(f"{configs.task.name}, protocol {configs.protocol.name}, checkpoint {checkpoint.step}: {score}")
    result = {
        "checkpoint": checkpoint.step,
        "protocol": configs.protocol.name,
        "task": configs.task.name,
        **score.metrics(),
    }
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**result, "returns": score.returns, "success_each": score.success}, indent=1) + "\n")
    print(f"written to {path}")
    return DONE


def understand(args: list[str]) -> tuple[Path, int]:
    """`run=DIR episodes=N` -> (folder, episodes). Raises: BadInput naming key, value and what would be right."""
    given = {"episodes": "20"}
    for word in args:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise BadInput(f"{word} is not understood{did_you_mean(key, KEYS)}; write run=DIR episodes=N")
        given[key] = value
    if "run" not in given:
        raise BadInput("run=DIR is missing: the folder of a run, as `mbrl train` printed it")
    folder = Path(given["run"]).expanduser()
    if not folder.is_dir():
        raise BadInput(f"run={given['run']} is not a folder; give the folder of a run, as `mbrl train` printed it")
    if not given["episodes"].isdigit() or int(given["episodes"]) < 1:
        raise BadInput(f"episodes must be {KEYS['episodes']} (got {given['episodes']}); for example episodes=20")
    return folder.resolve(), int(given["episodes"])
