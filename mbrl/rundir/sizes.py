"""Which sizes the weights in a folder have, said in configuration keys, so that nobody has to type them again.

Reads configurations and the names in files; no tensor, no network.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.rundir.folder import WEIGHTLESS, holds_run, read_config, world_model
from mbrl.rundir.origin import check_origin, is_training_run
from worldmodel.published.folder import read_folder
from worldmodel.published.store import published_in
from worldmodel.spec import Part

GROUPS: dict[Part, tuple[str, ...]] = {"tokenizer": ("tokenizer",), "dynamics": ("transformer", "worldmodel")}
"""The groups whose keys say how large a part is."""
JOINT = ("context", "burn_in", "max_frames", "embedding", "proprio")
"""Keys of `worldmodel` that weights were trained for; its losses belong to whoever trains."""
HEADS = "worldmodel.heads."
ACTION, KIND = f"{HEADS}action", f"{HEADS}reward"
DECODING = "worldmodel.decoding."
TRAINING = ("dropout", "cross_dropout", "_target_")
"""Keys that no weights depend on."""


def with_sizes_of(
    folder: Path, plain: Mapping[str, Any], *, decided: Collection[str], parts: Sequence[Part]
) -> tuple[dict[str, Any], list[str]]:
    """`plain` with the sizes of the weights in `folder`, but for what the user decided; what that changed, as words.

    Args:
        decided: dotted keys or groups that the user has typed, or chosen a variant of.
        parts: which of the weights will be loaded.
    Raises: ValueError, as `check_origin`.
    """
    groups = {group for part in parts for group in GROUPS.get(part, ())}
    found = {key: value for key, value in stated(folder) if key.partition(".")[0] in groups}
    if _typed(KIND, decided) and found.get(KIND) != plain["worldmodel"].get("heads", {}).get("reward"):
        found = {key: value for key, value in found.items() if not key.startswith(HEADS) or key == ACTION}
    if _typed(f"{DECODING}kind", decided):
        found = {key: value for key, value in found.items() if not key.startswith(DECODING)}
    changed, words = copy.deepcopy(dict(plain)), []
    for key, value in found.items():
        *path, last = key.split(".")
        node: Any = changed
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        value = list(value) if isinstance(value, tuple) else value
        if not isinstance(node, dict) or last not in node or node[last] == value:
            continue
        if _typed(key, decided):
            continue
        node[last] = value
        words.append(f"{key}={json.dumps(value, separators=(',', ':'))}".replace('"', ""))
    return changed, words


def stated(folder: Path) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values that files in `folder` tell of their weights. Raises: ValueError, as `check_origin`."""
    check_origin(folder)
    run: Mapping[str, Any] = {}
    if is_training_run(folder):
        run = read_config(folder)
        groups = [run.get(group) for group in ("tokenizer", "transformer", "worldmodel")]
        if world_model(run) in WEIGHTLESS or not all(isinstance(group, dict) for group in groups):
            raise ValueError(
                f"{folder} has no weights to start from: its world model is {world_model(run) or 'unknown'}"
            )
        tokenizer, transformer, heads, acts = run["tokenizer"], run["transformer"], run["worldmodel"].get("heads"), True
        decoding = run["worldmodel"].get("decoding", {})
    else:
        if holds_run(folder):
            run = read_config(folder, verb="pretrain", marks=("stage",))
        eyes, dynamics = read_folder(published_in(folder), values=False)
        tokenizer, transformer = dataclasses.asdict(eyes.config), dataclasses.asdict(dynamics.config)
        heads, acts = dataclasses.asdict(dynamics.heads), dynamics.action_dim > 0
        decoding = dataclasses.asdict(dynamics.decoding)
        yield "worldmodel.embedding", "levels" if dynamics.levels else "table"
    for group, values in (("tokenizer", tokenizer), ("transformer", transformer)):
        yield from ((f"{group}.{name}", value) for name, value in values.items() if name not in TRAINING)
    model = run.get("worldmodel", {})
    yield from ((f"worldmodel.{name}", model[name]) for name in JOINT if name in model)
    yield from ((f"{DECODING}{name}", value) for name, value in decoding.items() if name not in TRAINING)
    if not heads:  # a class of the user's own
        return
    if acts:
        yield ACTION, heads["action"]
    if heads["reward"] != "none":  # a head that no file has is a new one, of whatever kind is asked for
        yield from ((f"{HEADS}{name}", heads[name]) for name in ("reward", "bins", "low", "high", "width"))


def _typed(key: str, decided: Collection[str]) -> bool:
    return any(f"{key}.".startswith(f"{typed}.") for typed in decided)
