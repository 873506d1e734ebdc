"""`mbrl eval policy=...`: anybody's policy under the rules of a protocol; `score` is the same from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import Word, listed, place, whole, words

if TYPE_CHECKING:
    from mbrl.run.own_policy import OwnPolicy
    from mbrl.rundir.result import Episodes

SETTINGS = ("task", "protocol")
"""Groups that are given as for `mbrl train`."""


def seed_list(text: str) -> list[int]:
    """`0,1,2`."""
    seeds = [int(one) for one in listed(text)]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise ValueError(text)
    return seeds


KEYS = {
    "policy": Word("package.module.Name, what makes a policy", needed=True),
    "episodes": whole(20),
    "seeds": Word("whole numbers in [0, 2^31), each once, separated by commas", seed_list, [0], example="0,1,2"),
    "to": place("to", "a folder"),
}


def score(
    make_policy: Callable[[], OwnPolicy], settings: Sequence[str], *, episodes: int = 20, seed: int = 0
) -> Episodes:
    """Returns and successes of `make_policy()` in the episodes that a run of this seed is scored on.

    Args:
        settings: words as for `mbrl train`, of task and protocol: `["task.name=plate-slide-v3", "protocol=ivideogpt"]`.
    Raises: BadInput, ValueError, EnvDataError in one line.
    """
    from mbrl.run.own_policy import score_policy

    plain, task, protocol = configured(settings, None)
    rows = plain["evaluation"]["rows"]
    return score_policy(make_policy, task, protocol, seed=seed, episodes=episodes, rows=rows)


def configured(settings: Sequence[str], own: Path | None) -> tuple[dict[str, Any], Any, Any]:
    """The whole configuration, plain, and task and protocol of it."""
    from omegaconf import OmegaConf

    from mbrl.cli.compose import compose
    from mbrl.rundir.build import make

    plain: Any = OmegaConf.to_container(compose("train", [*settings, "worldmodel=none", "agent=random"], own))
    task, protocol = (make(plain[group], group, trusted=True) for group in SETTINGS)
    return plain, task, protocol


def run_policy(typed: Sequence[str], own: Path | None) -> int:
    """Scores a policy on every seed; with to= writes a result.json for each. Raises: BadInput, ValueError."""
    from mbrl.cli.evaluate import print_rules
    from mbrl.run.own_policy import found_policy, score_policy
    from mbrl.rundir.result import RESULT

    settings = [word for word in typed if word.partition("=")[0].split(".")[0] in SETTINGS]
    asked = words("mbrl eval policy=...", [word for word in typed if word not in settings], KEYS)
    plain, task, protocol = configured(settings, own)
    plain["agent"] = {"_target_": asked["policy"]}
    plain["worldmodel"]["obs_keys"] = ["pixels", "proprio"] if task.facts(protocol).proprio_dim else ["pixels"]
    make_policy, rows = found_policy(asked["policy"]), plain["evaluation"]["rows"]
    folders = {seed: asked["to"] and asked["to"] / f"seed-{seed}" for seed in asked["seeds"]}
    for folder in folders.values():
        if folder and (folder / RESULT).exists():
            raise BadInput(f"to={asked['to']} holds {folder.name}/{RESULT} already; give another folder")
    for seed, folder in folders.items():
        found = score_policy(make_policy, task, protocol, seed=seed, episodes=asked["episodes"], rows=rows)
        print(f"{task.name}, protocol {protocol.name}, seed {seed}: {found}")
        print_rules(found, protocol.success)
        if folder:
            write(folder, {**plain, "seed": seed}, typed, found)
    return DONE


def write(folder: Path, plain: dict[str, Any], typed: Sequence[str], found: Episodes) -> None:
    """The result of one seed, by the schema of a run's, and the configuration that tells `mbrl results` its terms."""
    from mbrl.rundir.folder import run_info, write_run
    from mbrl.rundir.result import RESULT, result_of
    from mbrl.rundir.schema import write_json

    info = run_info(plain, argv=["eval", *typed])
    counts: dict[str, Any] = {"parameters": {}, "env_steps": 0, "weights": "policy", "weights_step": 0, "wall_s": 0.0}
    write_run(folder, plain, info)
    write_json(folder / RESULT, result_of(info, final=found, random=None, **counts))
    print(f"written to {folder / RESULT}")
