"""`mbrl data collect`: play episodes of any of the tasks into data sets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.cli.words import Word, expanded, listed, number, place, whole, words
from mbrl.progress import told

COLLECT = {
    "task": Word("one of the tasks of `mbrl tasks`, a list [a,b], or all of them", needed=True),
    "policy": Word("scripted, noisy, random, or a run folder", needed=True),
    "episodes": whole(10),
    "to": place("to", "a folder", needed=True),
    "workers": whole(1),
    "seed": whole(0, least=0),
    "protocol": Word("a name from configs/protocol, or from --config-dir DIR"),
    "noise": number(None, most=2, example="0.3"),
}
NOISE = 0.3


def run_collect(args: list[str]) -> int:
    """Plays episodes; the same words again go on where it was interrupted."""
    from mbrl.cli.compose import own_folder, take_config_dir

    rest, own = take_config_dir(args)
    given = words("mbrl data collect", rest, COLLECT)
    episodes, to = given["episodes"], given["to"]
    policy = policy_of(given)
    orders = orders_of(given, policy, episodes, own and own_folder(own))

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
        made = collect(orders, workers=given["workers"], on_progress=told("episodes"))
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
    folder = expanded(name)
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"policy must be scripted, noisy, random or a run folder (got {name})")
    read_config(folder)
    return {"policy": "run", "seed": seed, "run": str(folder.resolve())}


def orders_of(given: Mapping[str, Any], policy: Mapping[str, Any], episodes: int, own: Path | None) -> list[Any]:
    """One order for each task. Raises: ValueError for an unknown task or protocol."""
    from mbrl.cli.compose import packaged_configs
    from mbrl.collection.collect import Order

    folders = [packaged_configs(), *([own] if own else [])]
    tasks = tasks_of(given["task"], folders)
    protocol = protocol_of(given["protocol"], tasks[0], folders)
    for task in tasks:
        for complaint in task.complaints(protocol):
            raise BadInput(complaint)
        if policy["policy"] in ("scripted", "noisy") and not task.facts(protocol).expert:
            raise BadInput(
                f"policy={policy['policy']} needs a scripted expert, and {task.name} has none: policy=random"
            )
    random = read(folders[0] / "agent" / "random.yaml")
    to = given["to"]
    return [
        Order(
            task=task,
            protocol=protocol,
            policy=policy,
            random=random,
            folder=to / task.name if len(tasks) > 1 else to,
            episodes=episodes,
            own=own,
        )
        for task in tasks
    ]


def read(path: Path) -> Any:
    """A variant's file."""
    import yaml

    return yaml.safe_load(path.read_text())


def variants(group: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The variants of a group in all folders; where two have one name, the packaged one counts, as in `mbrl train`."""
    paths = {path.stem: path for folder in reversed(folders) for path in sorted((folder / group).glob("*.yaml"))}
    return {name: read(path) for name, path in sorted(paths.items())}


def tasks_of(asked: str, folders: Sequence[Path]) -> list[Any]:
    """The tasks of these names, each of the first world that has it; `all`: those of the world of `mbrl train`."""
    from mbrl.cli.compose import composed
    from mbrl.rundir.build import find, make

    worlds = variants("task", folders)
    usual = worlds[composed("train", [])[1]["task"]]
    named = {name: find(str(node["_target_"]), f"task={name}", trusted=True).tasks for name, node in worlds.items()}
    names = list(find(usual["_target_"], "task", trusted=True).tasks) if asked == "all" else listed(asked)
    if not names or len(set(names)) < len(names):
        raise BadInput(f"task must name tasks, each once (got {asked})")
    homes = [next((worlds[world] for world in worlds if name in named[world]), usual) for name in names]
    return [make({**node, "name": name}, "task", trusted=True) for node, name in zip(homes, names, strict=True)]


def protocol_of(asked: str | None, task: Any, folders: Sequence[Path]) -> Any:
    """The protocol of this name; without one, the first that the task can do: `default`, its world's, or any other."""
    from mbrl.rundir.build import make

    known = variants("protocol", folders)
    if asked is not None and asked not in known:
        raise BadInput(f"protocol must be one of {', '.join(known)} (got {asked}){did_you_mean(asked, known)}")
    target = f"{type(task).__module__}.{type(task).__qualname__}"
    worlds = [name for name, node in variants("task", folders).items() if node["_target_"] == target]
    names = sorted(known, key=lambda name: (name != "default", name not in worlds)) if asked is None else [asked]
    protocols = [make(known[name], "protocol", trusted=True) for name in names]
    return next((one for one in protocols if not any(True for _ in task.complaints(one))), protocols[0])
