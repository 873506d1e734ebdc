"""`mbrl eval run=<dir> episodes=20`: score the newest checkpoint of a run; only adds a result file to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.program import program

KEYS = {"run": "a run folder", "episodes": "a whole number >= 1", "device": "cpu, cuda or cuda:<n>"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be scored.

    Attributes:
        folder: the run.
        episodes: how many episodes.
        device: where the model works; None: where it was trained.
        own: the user's folder of configurations, whose classes are trusted.
    """

    folder: Path
    episodes: int
    device: str | None
    own: Path | None


def run(args: list[str]) -> int:
    """Prints the score and writes evaluation.json into the run folder."""
    asked = understand(args)

    from mbrl.run.restore import configs_of, read_trained
    from mbrl.run.run import parameter_counts
    from mbrl.rundir.folder import read_config, run_info
    from mbrl.rundir.result import EVALUATION, result_of, write_result

    configs = configs_of(asked.folder, own=asked.own, device=asked.device)
    trained = read_trained(asked.folder, configs)
    score = trained.player.evaluator.score(trained.player.agent, asked.episodes)
    metrics, rule = score.metrics(), configs.protocol.success
    print(f"{configs.task.name}, protocol {configs.protocol.name}, weights of env step {trained.env_step}: {score}")
    if "success" in metrics:
        print(
            f"success at {'any' if rule == 'any' else 'the last'} decision, which counts here, "
            f"{metrics['success']:.2f}; at the last decision {metrics['success_last']:.2f}"
        )
    plain = read_config(asked.folder)
    plain["compute"]["device"] = configs.compute.device
    result = result_of(
        run_info(plain, argv=args),
        parameters=parameter_counts(trained.player.model),
        env_steps=trained.env_steps,
        weights=configs.evaluation.weights,
        weights_step=trained.env_step,
        final=score,
        random=trained.random,
        wall_s=trained.wall_s,
    )
    path = asked.folder / EVALUATION
    write_result(path, result)
    print(f"written to {path}")
    return DONE


def understand(args: list[str]) -> Asked:
    """Reads `run=DIR episodes=N device=D --config-dir DIR`. Raises: BadInput naming key, value and the mend."""
    from mbrl.cli.compose import own_folder, take_config_dir

    words, own = take_config_dir(args)
    given = {"episodes": "20"}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise BadInput(
                f"{word} is not understood{did_you_mean(key, KEYS)}; write run=DIR, perhaps episodes=N device=cpu"
            )
        given[key] = value
    printed = f"as `{program()} train` printed it"
    if "run" not in given:
        raise BadInput(f"run=DIR is missing: the folder of a run, {printed}")
    folder = Path(given["run"]).expanduser()
    if not folder.is_dir():
        raise BadInput(f"run={given['run']} is not a folder; give the folder of a run, {printed}")
    if not given["episodes"].isdigit() or int(given["episodes"]) < 1:
        raise BadInput(f"episodes must be {KEYS['episodes']} (got {given['episodes']}); for example episodes=20")
    return Asked(
        folder=folder.resolve(),
        episodes=int(given["episodes"]),
        device=given.get("device"),
        own=own and own_folder(own),
    )
