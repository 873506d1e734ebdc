"""Checkpoint files in and out: JSON and safetensors only; nothing that is opened executes code.

Knows names, tensors and folders; nothing of networks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

CONFIG = "config.json"
METADATA = {"format": "pt"}
"""What every published tensor file carries."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Endings of files that would execute code on opening."""
MOST_JSON = 2**24
SHARD = re.compile(r"[\w.-]+\.safetensors")
LFS = b"version https://git-lfs"
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
UNSYNCED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that does not know `fsync`."""
V = TypeVar("V")
TEMPORARY = ".tmp-"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if there is none."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MOST_JSON):
            raise ValueError(f"it must be a plain file of at most {MOST_JSON} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object (got {type(content).__name__})")
    return content


def refuse_pickle(path: Path) -> None:
    """Raises: ValueError in one line if `path`, or what lies in its place, is a pickle."""
    lies = [path] if path.suffix in PICKLES else []
    if not lies and not path.exists() and path.parent.is_dir():
        lies = sorted(other for other in path.parent.iterdir() if other.suffix in PICKLES)
    if lies:
        raise ValueError(
            f"{lies[0]} is a pickle, which can execute code and is never opened here; convert it to safetensors "
            f"({path.with_suffix('.safetensors').name}) on a machine that trusts it"
        )


def read_tensors(path: Path, *, values: bool = True) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of its shards, as float32 copies on the CPU; names without `WRAPPERS`.

    Raises ValueError if it cannot be read, or holds a number that is none.

    Args:
        values: False reads names and shapes alone, and gives tensors of the meta device.
    """
    if not values:
        return {name: torch.empty(shape, device="meta") for name, (shape, _) in read_header(path).items()}
    tensors: dict[str, Tensor] = {}
    for shard in shards(path):
        with _opened(shard) as file:
            tensors |= {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
    if wrong := next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise ValueError(f"cannot read {path}: {wrong} holds numbers that are not finite in float32")
    return unwrapped(tensors)


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor, by name; reads no tensor. Raises ValueError if it cannot be read."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for shard in shards(path):
        with _opened(shard) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found |= {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    return unwrapped(found)


def shards(path: Path) -> list[Path]:
    """The files that hold the tensors of `path`: itself, or those that `<path>.index.json` names beside it.

    Raises: ValueError where one of them is missing or lies elsewhere.
    """
    index = path.with_name(f"{path.name}.index.json")
    if path.exists() or not index.exists():
        return [path]
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or not all(SHARD.fullmatch(name) for name in names):
        raise ValueError(f"cannot read {index}: its weight_map must name .safetensors files beside it")
    if missing := [name for name in names if not path.with_name(name).exists()]:
        raise ValueError(f"cannot read {index}: {len(missing)} of its {len(names)} shards are missing: {missing[0]}")
    return [path.with_name(name) for name in names]


def unwrapped(named: dict[str, V]) -> dict[str, V]:
    """The same under the names that the network itself gives, where all are those of something around it."""
    for wrapper in WRAPPERS:
        if named and all(name.startswith(wrapper) for name in named):
            return unwrapped({name.removeprefix(wrapper): value for name, value in named.items()})
    return named


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    refuse_pickle(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot read {path}: it is no plain file")
    if path.is_file():
        with path.open("rb") as begin:
            if begin.read(len(LFS)) == LFS:
                raise ValueError(f"cannot read {path}: it is a pointer of Git LFS, not the file: git lfs pull")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        part = " (is it whole?)" if path.exists() else ""
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}{part}") from error


def write_part(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str) -> None:
    """Writes `config.json` and the tensors of one network into `folder`, which is made; on disk when this returns."""
    folder.mkdir(parents=True)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    # parts of one storage would be refused, and a tensor on another device copied anyway
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / file, METADATA)
    for path in (folder / CONFIG, folder / file, folder):
        _sync(path)


@contextmanager
def swapped_in(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to write into; if the body succeeds it takes the place and name of `folder`.

    A reader sees the old folder or the new one, whole; between two renames, for a moment, none.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{folder.name}-", dir=folder.parent))
    new.chmod(0o755)
    old = new.with_name(f"{new.name}-old")
    try:
        yield new
        _sync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            if left.exists():
                shutil.rmtree(left)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        log.warning("WARNING: %s lies where nothing can be waited for: a power cut may lose it", path)
    finally:
        os.close(handle)
