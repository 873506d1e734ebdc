"""What a run does without, and what follows for its configuration: nothing is owed to it, and no word is about it.

The small presets' schedules fit a tokenizer and a dynamics; a model says in its config's `parts` which of them it has.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from agents.api import asked
from mbrl.run.learning import OWED
from mbrl.rundir.build import find, make

SIZES = ("tokenizer", "transformer")
"""Groups that only some world models are built of."""


def config_class(plain: Mapping[str, Any], *, trusted: bool) -> Any:
    """The world model's config class, whatever its values are."""
    return find(str(plain["worldmodel"]["_target_"]), "worldmodel", trusted=trusted)


def lacks(model: Any, schedule: Mapping[str, Any]) -> list[str]:
    """Parts that `schedule` (plain) has cadences for and the world model of this config class has not."""
    cadences = [name for name, value in schedule.items() if isinstance(value, Mapping) and "updates" in value]
    return [name for name in cadences if name not in OWED and name not in model.parts]


def spared(plain: Mapping[str, Any], *, typed: Collection[str], trusted: bool) -> dict[str, Any]:
    """The configuration of a run with nothing owed to, or asked of, what its world model lacks.

    Args:
        typed: keys that the user gave a value; they stay, and `mbrl.run.validate` refuses them.
        trusted: as in `mbrl.rundir.build.make`.
    """
    model, spare = config_class(plain, trusted=trusted), copy.deepcopy(dict(plain))
    nothing: dict[str, float] = {}
    for part in lacks(model, plain["schedule"]):
        nothing |= {f"schedule.{part}.initial": 0, f"schedule.{part}.updates": 0}
    if not model.parts:
        nothing |= {"schedule.gate.episodes": 0, "schedule.gate.reward_r2": 0.0, "fit.random_shift": 0}
    if "tokenizer" not in asked(model):
        nothing |= {"schedule.gate.codes_alive": 0}
    for key, value in nothing.items():
        *groups, last = key.split(".")
        node = spare
        for group in groups:
            node = node[group]
        if last in node and not any(f"{key}.".startswith(f"{given}.") for given in typed):
            node[last] = value
    return spare


def idle(plain: Mapping[str, Any], key: str, *, trusted: bool) -> str:
    """Why nothing reads `key` in the run or pre-training of `plain`; empty if something does."""
    model = config_class(plain, trusted=trusted)
    without = f"the world model ({plain['worldmodel']['_target_']}) is built without it"
    unread = {size: without for size in SIZES if size not in asked(model)}
    unread |= {f"fit.{part}": without for part in lacks(model, plain["schedule"])}
    if plain["tokenizer"].get("quantizer") == "fsq":
        unread["worldmodel.losses.commitment_coef"] = "tokenizer.quantizer=fsq has no codebook to commit to"
    if key.startswith("agent.") and key.endswith(".unimix") and not facts_of(plain, trusted=trusted).discrete:
        unread[key] = "the actions of this task are continuous"
    return next((why for name, why in unread.items() if f"{key}.".startswith(f"{name}.")), "")


def facts_of(plain: Mapping[str, Any], *, trusted: bool) -> Any:
    """What the task of `plain` says of itself under its protocol."""
    task, protocol = (make(plain[group], group, trusted=trusted) for group in ("task", "protocol"))
    return task.facts(protocol)
