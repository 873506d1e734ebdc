"""The run folder: what it holds, how a new one begins, and how an old one is read as data.

config.yaml   the whole composed configuration        run.json     versions, protocol, camera, threads, device, commit
metrics.csv   training, one row per log interval      eval.csv     every evaluation
result.json   the final score, episode by episode
checkpoints/  step-*: verified before they are read   replay/      one file per finished episode
videos/       evaluation episodes, open-loop clips    console.log  what was printed
audit/        what `mbrl audit` found, if it was asked
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mbrl.files import TEMPORARY, DamagedFile, check_plain, read_plain, sha256, write_atomically
from mbrl.program import command
from mbrl.rundir.build import OURS
from mbrl.rundir.machine import machine_info

log = logging.getLogger("mbrl")

MAY_CHANGE = (
    "schedule.total",
    "schedule.evaluate.",
    "schedule.log.",
    "schedule.save.",
    "evaluation.",
    "logger.",
    "replay.on_damage",
    "compute.workers",
    "keep",
    "run_dir",
)
"""Keys (or beginnings of keys, with a dot) that a continued run may be given anew; what was learned so far stays."""
FORMAT = 2
"""Of run folders. It grows when a stored configuration changes its meaning; older folders are not translated."""
READ_BY = {1: "tokendream 0.1"}
"""Which version reads a folder of another format; the first one had no number in it."""
WEIGHTLESS = ("oracle", "none")
"""World models (`world_model`) without weights."""
RUNS, LATEST = "runs", "latest"
"""The folder of default folders, and the link in it that leads to the newest."""
LEFT_BEHIND = ("run.lock", "console.log")
"""What a start that was killed before it wrote config.yaml may leave, beside temporary files."""


def default_folder(plain: Mapping[str, Any], variants: Mapping[str, str]) -> Path:
    """runs/<task>/<agent>-<transformer>[-demos<n>][-rehearsal]/seed-<n>/<date-time>.

    <worldmodel> stands for the transformer where it is no iVideoGPT.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    model = variants["transformer" if world_model(plain) == "ivideogpt" else "worldmodel"]
    method = f"{variants['agent']}-{model}"
    if plain["demos"]:  # never averaged with runs that had none
        method += f"-{'recorded' if plain.get('demos_from') else 'demos'}{plain['demos']}"
    if plain["rehearsal"]:
        method += "-rehearsal"
    return Path(RUNS) / plain["task"]["name"] / method / f"seed-{plain['seed']}" / stamp


def point_latest(folder: Path) -> None:
    """Lets `runs/latest` lead to a run in a default folder; where that cannot be, the run goes on without."""
    link = next(parent for parent in folder.parents if parent.name == RUNS) / LATEST
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f"{TEMPORARY}{LATEST}-{os.getpid()}")
    try:
        temporary.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        log.warning("WARNING: %s does not lead to this run: %s", link, error.strerror)


def world_model(plain: Mapping[str, Any]) -> str:
    """The module of the run's world model: `ivideogpt`, `oracle` for the simulator itself, `none`, or a user's own."""
    target = str(plain.get("worldmodel", {}).get("_target_", ""))
    return target.rpartition(".")[0].rpartition(".")[2]


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / "config.yaml").is_file()


def is_free(folder: Path) -> bool:
    """Whether a run may begin in `folder`: it is not there, or holds nothing but what a killed start leaves.

    Raises: NotPlain where that is a link, which would lead what is written elsewhere.
    """
    if not folder.is_dir():
        return not folder.exists()
    check_plain(folder)
    return all(path.name in LEFT_BEHIND or path.name.startswith(TEMPORARY) for path in folder.iterdir())


@contextmanager
def emptied_on_failure(folder: Path) -> Iterator[None]:
    """If the body fails, what came into `folder` meanwhile is removed: the corrected command may use it again.

    For whoever holds the folder's lock, whose file was there before and so stays (a process that has just opened it
    would otherwise hold a lock that nobody else sees).
    """
    before = {path.name for path in folder.iterdir()}
    try:
        yield
    except BaseException:
        for path in [path for path in folder.iterdir() if path.name not in before]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        raise


def read_config(folder: Path, *, verb: str = "train", marks: tuple[str, ...] = ("task", "seed")) -> dict[str, Any]:
    """The stored configuration, as data: no tag is obeyed, no alias followed, no reference resolved.

    Args:
        verb: what begins such a folder.
        marks: keys that its configuration has.
    Raises: ValueError where there is none, it is not one, or the folder is of another format or holds a link or a pipe.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        made = f"`{command(verb, run_dir=folder)}` makes one" if is_free(folder) else "give the folder of a run"
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml; {made}")
    check_plain(folder)
    try:
        plain = PlainLoader(read_plain(path)).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or any(mark not in plain for mark in marks):
        raise ValueError(f"{path} is not a configuration of `mbrl {verb}`: {' and '.join(marks)} are missing")
    if (found := plain.pop("format", 1)) != FORMAT:
        reader = READ_BY.get(found, "a newer tokendream") if isinstance(found, int) else "nobody"
        raise ValueError(
            f"{folder} is of format {found}, which {reader} reads, and this version reads format {FORMAT}: "
            "go on with that version, or begin a new run"
        )
    for key, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise ValueError(
                f"{path}: {key} holds a reference ({value}); a stored configuration holds plain values only"
            )
    return plain


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases: nothing in a stored configuration stands for something else, or for itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises: ComposerError for an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "it holds an alias (*name); write the value itself", mark)
        return super().compose_node(parent, index)


def read_info(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """The JSON object in one of the folder's files; empty where there is none. Raises: DamagedFile."""
    path = folder / name
    if not path.exists():
        return {}
    try:
        info = json.loads(read_plain(path))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not JSON: {error}") from error
    if not isinstance(info, dict):
        raise DamagedFile(f"{path} is not what a run writes: it holds no names")
    return info


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a nested container; lists are values."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, value in node.items():
        yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))


def targets(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every (dotted key, class) that a nested container names, in lists too."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        key = f"{prefix}.{name}" if prefix else str(name)
        if name == "_target_":
            yield key, str(value)
        yield from targets(value, key)


def allowed_classes(plain: Mapping[str, Any], own: Path | None) -> bool:
    """Whether a stored configuration may name classes from outside this project: those that `own`'s files name.

    Args:
        own: the folder that the user gave with --config-dir.
    Raises: ValueError naming a class that nobody vouches for.
    """
    named: set[str] = set()
    for path in sorted(own.rglob("*.yaml")) if own else []:
        try:
            named |= {target for _, target in targets(yaml.safe_load(path.read_text(encoding="utf-8")))}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}; mend it") from error
    for key, target in targets(plain):
        if not target.startswith(OURS) and target not in named:
            where = (
                f"a file in {own} that names it" if own else "--config-dir DIR, the folder with the file that names it"
            )
            raise ValueError(
                f"{key}={target} must be a class of this project, or one that you vouch for, in a stored "
                f"configuration; if it is yours, add {where}"
            )
    return own is not None


def check_resumed(
    stored: Mapping[str, Any], asked: Mapping[str, Any], may_change: tuple[str, ...] = MAY_CHANGE
) -> None:
    """Refuses to continue a run as another one.

    Args:
        asked: the stored configuration with the user's words laid on.
        may_change: keys (or beginnings of keys, with a dot) that may be given anew.
    Raises: ValueError naming a key that a continued run may not change.
    """
    old, new = dict(leaves(stored)), dict(leaves(asked))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (not key.endswith("_target_"), key)):
        free = any(key.startswith(may) if may.endswith(".") else key == may for may in may_change)
        if free or old.get(key) == new.get(key):
            continue
        began = f"with {key}={old[key]}" if key in old else f"without {key}"
        raise ValueError(
            f"{key}={new.get(key)} cannot be given to a run that began {began}; "
            f"leave it out, or choose another run_dir (a continued run may change {', '.join(may_change)})"
        )


def write_run(folder: Path, plain: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Begins (or goes on with) a run folder: config.yaml and run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.loads(json.dumps({"format": FORMAT, **plain}))  # whatever two keys share becomes two: no aliases
    write_atomically(folder / "config.yaml", yaml.safe_dump(stored, sort_keys=False).encode())
    write_atomically(folder / "run.json", (json.dumps(info, indent=2) + "\n").encode())


def run_info(plain: Mapping[str, Any], *, argv: list[str]) -> dict[str, Any]:
    """What one must know to compare this run with another."""
    return {
        "task": plain["task"]["name"],
        "protocol": plain["protocol"]["name"],
        "protocol_sha256": sha256(json.dumps(plain["protocol"], sort_keys=True).encode()),
        "camera": plain["protocol"]["camera"],
        "demos": plain["demos"],
        "rehearsal": plain["rehearsal"],
        "begun_from": plain["init"],
        "world_model": world_model(plain),
        "agent": plain["agent"]["_target_"],
        "model": plain["worldmodel"]["_target_"],
        "seed": plain["seed"],
        **machine_info(plain["compute"]),
        "argv": argv,
    }
