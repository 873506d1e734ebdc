"""Checkpoints: a folder of safetensors and JSON per step, published by one rename, every byte verified before use.

    step-000012000/
        <part>.safetensors ...   the tensors of each part that has any
        state.json               everything else, by part
        manifest.json            sizes and hashes of the files above, written last; its own hash inside

Knows roles only: a part is whatever has `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mbrl.files import (
    TEMPORARY,
    DamagedFile,
    NotPlain,
    clear_temporaries,
    fsync_folder,
    read_plain,
    set_aside,
    sha256,
    sized,
    write_durably,
)
from mbrl.io.tree import Diverged, join, split
from worldmodel.answers import method, said, shown, wrong

log = logging.getLogger(__name__)

FORMAT = 1
MAX_JSON = 2**28
"""Bytes of JSON that are read before anything is known about them."""
STEP = re.compile(r"step-(\d{9,})")
PART = re.compile(r"[a-z][a-z0-9_]*")
FILE = re.compile(r"[a-z][a-z0-9_]*\.safetensors|state\.json")


class DamagedCheckpoint(DamagedFile):
    """A checkpoint, or every checkpoint of a run, is not what was once written (exit code 3)."""


class NotSaved(OSError):
    """A checkpoint could not be written; the earlier ones are untouched."""


class Stateful(Protocol):
    """A part of a checkpoint."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and plain JSON values, in nested dicts and lists."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Inverse of `state_dict`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one checkpoint holds: the step, what the run said of itself, and the state of each part (on the CPU)."""

    step: int
    info: dict[str, Any]
    states: dict[str, Any]


def stored(part: Stateful, name: str) -> tuple[Any, dict[str, Tensor]]:
    """`part.state_dict()` as it is stored (`mbrl.io.tree.split`). Raises: WrongAnswer where it cannot be; Diverged."""
    state = part.state_dict()
    if not isinstance(state, Mapping):
        raise wrong(part, "state_dict", "a mapping from names to tensors", shown(state))
    try:
        return split(state, name=name)
    except Diverged as error:
        raise Diverged(f"{method(part, 'state_dict')}: {said(error)}") from error
    except ValueError as error:
        raise wrong(part, "state_dict", "tensors by name", said(error)) from error


def checkpoint_paths(folder: Path) -> list[Path]:
    """All published checkpoints in `folder`, the newest step first (by number: clocks jump)."""
    found = [path for path in folder.glob("step-*") if STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint; executes nothing and moves nothing.

    Raises: DamagedCheckpoint naming the first file whose size or hash is not what the manifest says.
    """
    manifest = _read_manifest(path)
    files = {name: _read_verified(path / name, entry) for name, entry in manifest["files"].items()}
    try:
        trees = json.loads(files["state.json"])
        states = {
            part: join(tree, _tensors(files[name]) if (name := f"{part}.safetensors") in files else {})
            for part, tree in trees.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path}: cannot be understood ({error!r})") from error
    return Checkpoint(step=manifest["step"], info=manifest["info"], states=states)


def load_part(part: Stateful, state: Mapping[str, Any], *, origin: Path) -> None:
    """`part.load_state_dict(state)`, where `state` was read from `origin`.

    Raises: ValueError with one line if the state is of a network of other shapes, as another version may have built it.
    """
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        title, *entries = (" ".join(line.split()).rstrip(".") for line in str(error).splitlines())
        if "loading state_dict" not in title:
            raise
        raise ValueError(
            f"{origin} was made by a version that built other networks ({len(entries)} entries do not fit, the first: "
            f"{entries[0]}); use that version (`commit` in run.json), or begin a new run"
        ) from error


def read_newest(folder: Path) -> Checkpoint:
    """The newest checkpoint that verifies, for those who only look (evaluation, play); moves nothing.

    Raises: DamagedCheckpoint if all are damaged, ValueError if there is none.
    """
    damage = []
    for path in checkpoint_paths(folder):
        try:
            return read_checkpoint(path)
        except DamagedCheckpoint as error:
            log.warning("%s; using an older one", error)
            damage.append(str(error))
    if damage:
        raise DamagedCheckpoint(f"no checkpoint in {folder} can be used: {'; '.join(damage)}")
    raise ValueError(f"{folder} holds no checkpoint (no folder step-*)")


def newest_json(folder: Path, part: str) -> tuple[Path, Any] | None:
    """The newest checkpoint whose JSON verifies, and what it holds of `part` without tensors; None where there is none.

    For those who only look; moves nothing.
    """
    for path in checkpoint_paths(folder):
        try:
            return path, _json_of(path)[part]
        except (DamagedCheckpoint, KeyError) as error:
            log.warning("%s; using an older one", error)
    return None


def _json_of(path: Path) -> dict[str, Any]:
    """The JSON of every part. Raises: DamagedCheckpoint."""
    entry = _read_manifest(path)["files"]["state.json"]
    state: dict[str, Any] = json.loads(_read_verified(path / "state.json", entry))
    return state


class Checkpoints:
    """The checkpoints of one run. Only the process that holds the run's lock may make one: it tidies up at once.

    Args:
        folder: where they lie; made if missing.
        keep: how many are kept; at least 2, so that a bad newest one leaves another.
        info: plain JSON about this process (versions, threads, CPU capability); stored, and compared on `load`.

    Attributes:
        messages: what `load` had to say (what was damaged, where it resumed, what differs), also logged.
    """

    def __init__(self, folder: Path, *, keep: int, info: Mapping[str, Any] | None = None) -> None:
        if keep < 2:
            raise ValueError(f"keep must be >= 2 (got {keep}): a damaged newest checkpoint must leave an older one")
        self.folder = folder
        self.keep = keep
        self.info = split(dict(info or {}), name="info")[0]
        self.messages: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        clear_temporaries(folder)

    def save(self, step: int, parts: Mapping[str, Stateful]) -> Path:
        """Writes the checkpoint of `step` and forgets the oldest; it is on disk when this returns.

        What is saved last has the highest number, so that it is what `load` finds: where `step` or more is there
        already, with less in it, the number behind the newest is taken.

        Raises: Diverged if a number is not finite, WrongAnswer if a state cannot be stored, NotSaved where the disk
        refuses; then nothing has changed.
        """
        if step < 0 or not parts or not all(PART.fullmatch(part) for part in parts):
            raise ValueError(f"step must be >= 0 and parts be named like {PART.pattern} (got {step}, {list(parts)})")
        newest = max((int(path.name[5:]) for path in checkpoint_paths(self.folder)), default=-1)
        step = max(step, newest + 1)
        path = self.folder / f"step-{step:09d}"
        states = {part: stored(stateful, part) for part, stateful in parts.items()}
        temporary = self.folder / f"{TEMPORARY}{path.name}-{os.getpid()}"
        try:
            _write(temporary, step=step, info=self.info, states=states)
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            needed = sum(tensor.nbytes for _, tensors in states.values() for tensor in tensors.values())
            free = shutil.disk_usage(self.folder).free
            words = os.strerror(error.errno) if error.errno else str(error)
            raise NotSaved(
                f"checkpoint of step {step} not written ({words}): it needs about {sized(needed)}, {sized(free)} are "
                f"free at {self.folder}; earlier ones are intact"
            ) from error
        fsync_folder(self.folder)
        log.info("saved %s", path)
        self._prune()
        return path

    def load(self, parts: Mapping[str, Stateful]) -> int | None:
        """Gives every part the state of the newest checkpoint that verifies; returns its step, None for a new run.

        Damaged ones are moved to `quarantine/` and named in `messages`.

        Raises: DamagedCheckpoint if there are checkpoints and all are damaged (never a silent fresh start), ValueError
        if the checkpoint has other parts.
        """
        self.messages = []
        for path in checkpoint_paths(self.folder):
            try:
                found = read_checkpoint(path)
            except DamagedCheckpoint as error:
                self._say(f"{error}; moved to {set_aside(path, self.folder / 'quarantine')}")
                continue
            if set(found.states) != set(parts):
                raise ValueError(
                    f"{path} holds {sorted(found.states)}, this run has {sorted(parts)}: resume with the configuration "
                    "that made it, or choose another run_dir"
                )
            for name, part in parts.items():
                load_part(part, found.states[name], origin=path)
            self._compare(found)
            self._say(f"resumed from step {found.step} ({path})", level=logging.INFO)
            return found.step
        quarantined = sorted(path.name for path in (self.folder / "quarantine").glob("step-*"))
        if quarantined:
            raise DamagedCheckpoint(
                f"no checkpoint in {self.folder} can be used; quarantine/ holds {', '.join(quarantined)}. "
                f"{' '.join(self.messages)} To start over choose another run_dir, or delete that quarantine folder"
            )
        return None

    def kept(self, part: str) -> list[Any]:
        """The JSON state of `part` in every kept checkpoint; tensors are left out (as `{"__tensor__": name}`)."""
        states = []
        for path in checkpoint_paths(self.folder):
            try:
                states.append(_json_of(path)[part])
            except DamagedCheckpoint as error:
                log.warning("%s; moved to %s", error, set_aside(path, self.folder / "quarantine"))
        return states

    def _compare(self, found: Checkpoint) -> None:
        """Says what is no longer as it was: the same numbers are promised for the same versions and threads only."""
        for key in sorted((set(found.info) | set(self.info)) - {"argv"}):  # what was typed shows in what it set
            was, now = found.info.get(key), self.info.get(key)
            # `-dirty` may mean a note or a result beside the code: no difference between two processes of one commit
            same = str(was).removesuffix("-dirty") == str(now).removesuffix("-dirty") if key == "commit" else was == now
            if not same:
                self._say(f"{key} was {was!r} and is {now!r}: the resumed run may differ from an uninterrupted one")

    def _say(self, message: str, *, level: int = logging.WARNING) -> None:
        self.messages.append(message)
        log.log(level, message)

    def _prune(self) -> None:
        """Deletes all but the newest `keep`: renamed first, so that a kill leaves no half-deleted checkpoint."""
        for path in checkpoint_paths(self.folder)[self.keep :]:
            try:
                shutil.rmtree(path.rename(self.folder / f"{TEMPORARY}old-{path.name}-{os.getpid()}"))
            except OSError as error:
                log.warning("%s could not be deleted (%s)", path, error)


def _canonical(value: Any) -> bytes:
    """The one spelling of a JSON value, so that any changed byte of it shows."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def _write(folder: Path, *, step: int, info: Any, states: Mapping[str, tuple[Any, dict[str, Tensor]]]) -> None:
    """Writes an unpublished checkpoint, the manifest last, and waits for the disk."""
    folder.mkdir()
    files = {}

    def put(name: str, content: bytes) -> None:
        write_durably(folder / name, content)
        files[name] = {"bytes": len(content), "sha256": sha256(content)}

    for part, (_, tensors) in states.items():
        if tensors:
            put(f"{part}.safetensors", safetensors.torch.save(_separate(tensors)))
    put("state.json", _canonical({part: tree for part, (tree, _) in states.items()}))
    manifest = {"format": FORMAT, "step": step, "info": info, "files": files}
    write_durably(folder / "manifest.json", _canonical(manifest | {"sha256": sha256(_canonical(manifest))}))
    fsync_folder(folder)


def _tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in memory of its own.

    As loaded they are views into the file's bytes, at any alignment; matrix products may then round differently than
    with the aligned tensors of the run that was interrupted.
    """
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory (safetensors refuses tied weights)."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        on_cpu = tensor.cpu().contiguous()
        storage = on_cpu.untyped_storage().data_ptr()
        separate[name] = on_cpu.clone() if storage in seen else on_cpu
        seen.add(storage)
    return separate


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked in itself and against the folder's listing."""
    content = _read(path / "manifest.json", MAX_JSON)
    try:
        manifest = json.loads(content)
        said = manifest.pop("sha256")
        if said != sha256(_canonical(manifest)) or content != _canonical(manifest | {"sha256": said}):
            raise ValueError("its own hash is wrong")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT} (got {manifest['format']})")
        if path.name != f"step-{manifest['step']:09d}":
            raise ValueError(f"it is of step {manifest['step']}")
        entries = manifest["files"]
        if "state.json" not in entries or not all(FILE.fullmatch(name) for name in entries):
            raise ValueError(f"it names {sorted(entries)}")
        if any(type(entry["bytes"]) is not int or type(entry["sha256"]) is not str for entry in entries.values()):
            raise ValueError("its entries are not sizes and hashes")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{path / 'manifest.json'}: is not the manifest of this checkpoint ({error})"
        ) from error
    listed, there = {*entries, "manifest.json"}, {entry.name for entry in path.iterdir()}
    if listed != there:
        raise DamagedCheckpoint(
            f"{path}: missing {sorted(listed - there)}, not in the manifest {sorted(there - listed)}"
        )
    return manifest


def _read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file, which are exactly those that were written."""
    content = _read(path, entry["bytes"])
    if len(content) != entry["bytes"] or sha256(content) != entry["sha256"]:
        raise DamagedCheckpoint(
            f"{path}: its bytes changed since it was written ({len(content)} of {entry['bytes']} bytes)"
        )
    return content


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_plain(path, most=limit)
    except NotPlain as error:
        raise DamagedCheckpoint(str(error)) from error
    except PermissionError:
        raise  # the user's to mend, and no reason to move anything
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
