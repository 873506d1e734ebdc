"""`mbrl data collect`: play episodes of any of the tasks into data sets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.cli.words import Word, listed, number, place, progress, whole, words

COLLECT = {
    "task": Word("one of the tasks of `mbrl tasks`, a list [a,b], or all", needed=True),
    "policy": Word("scripted, noisy, random, or a run folder", needed=True),
    "episodes": whole(10),
    "to": place("to", "a folder", needed=True),
    "workers": whole(1),
    "seed": whole(0, least=0),
    "protocol": Word("a name from configs/protocol"),
    "noise": number(None, most=2, example="0.3"),
}
NOISE = 0.3


def run_collect(args: list[str]) -> int:
    """Plays episodes; the same words again go on where it was interrupted."""
    given = words("mbrl data collect", args, COLLECT)
    episodes, to = given["episodes"], given["to"]
    policy = policy_of(given)
    orders = orders_of(given, policy, episodes)

    from contextlib import ExitStack

    from mbrl.collection.collect import check, collect
    from mbrl.data.dataset import check_beside
    from mbrl.io.lock import RunLock

    for order in orders:  # before the lock, which makes a folder
        check_beside(order.folder)
        check(order)
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(RunLock(to))
        made = collect(orders, workers=given["workers"], told=progress("episodes"))
    took = time.monotonic() - began
    print(
        f"{made} episodes in {took:.0f} s; {to} holds {episodes} of policy {policy['policy']} "
        f"for {len(orders)} task{'s' * (len(orders) > 1)}"
    )
    return DONE


def policy_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the card will say of who acts. Raises: BadInput."""
    from mbrl.rundir.folder import read_config

    name, seed, noise = given["policy"], given["seed"], given["noise"]
    if name in ("scripted", "random", "noisy"):
        if noise is not None and name != "noisy":
            raise BadInput(f"noise={noise:g} belongs to policy=noisy (got policy={name}); leave it out")
        policy: dict[str, Any] = {"policy": name, "seed": seed}
        return policy | ({"noise": noise or NOISE} if name == "noisy" else {})
    folder = Path(name).expanduser()
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"policy must be scripted, noisy, random or a run folder (got {name})")
    read_config(folder)
    return {"policy": "run", "seed": seed, "run": str(folder.resolve())}


def orders_of(given: Mapping[str, Any], policy: Mapping[str, Any], episodes: int) -> list[Any]:
    """One order for each task. Raises: ValueError for an unknown task or protocol."""
    import yaml

    from mbrl.cli.compose import packaged_configs
    from mbrl.collection.collect import Order
    from mbrl.envs import metaworld, toy
    from mbrl.rundir.build import make

    names = list(metaworld.TASKS) if given["task"] == "all" else listed(given["task"])
    if not names or len(set(names)) < len(names):
        raise BadInput(f"task must name tasks, each once (got {given['task']})")
    kinds: dict[str, Any] = dict.fromkeys(toy.TASKS, toy.ToyTask)
    try:
        tasks = [kinds.get(name, metaworld.MetaWorldTask)(name=name) for name in names]
    except ValueError as error:
        raise BadInput(f"task.{error}") from error
    folder = packaged_configs()
    chosen = given["protocol"] or ("toy" if names[0] in kinds else "default")
    known = sorted(path.stem for path in (folder / "protocol").glob("*.yaml"))
    if chosen not in known:
        raise BadInput(f"protocol must be one of {', '.join(known)} (got {chosen}){did_you_mean(chosen, known)}")
    protocol = make(yaml.safe_load((folder / "protocol" / f"{chosen}.yaml").read_text()), "protocol", trusted=False)
    random = yaml.safe_load((folder / "agent" / "random.yaml").read_text())
    to = given["to"]
    return [
        Order(
            task=task,
            protocol=protocol,
            policy=policy,
            random=random,
            folder=to / task.name if len(tasks) > 1 else to,
            episodes=episodes,
        )
        for task in tasks
    ]
