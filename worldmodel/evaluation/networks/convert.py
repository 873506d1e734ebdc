"""Weights of the metrics' networks out of the source archives that carry them as pickled arrays -> safetensors, once.

Knows the names and axes that the archives use. Nothing of an archive is unpacked to disk, imported or carried out.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from worldmodel.evaluation.i3d import I3D
from worldmodel.evaluation.lpips import LPIPS
from worldmodel.evaluation.networks.cache import NETWORKS
from worldmodel.evaluation.networks.numpy_pickle import Path as Keys
from worldmodel.evaluation.networks.numpy_pickle import arrays_of_pickle

MOST_BYTES = 2**28
"""No weights of these networks are larger."""
UNITS = {  # places of a mixed layer's convolutions in the archive and here
    "Branch_0/Conv3d_0a_1x1": "branch0",
    "Branch_1/Conv3d_0a_1x1": "branch1.0",
    "Branch_1/Conv3d_0b_3x3": "branch1.1",
    "Branch_2/Conv3d_0a_1x1": "branch2.0",
    "Branch_2/Conv3d_0b_3x3": "branch2.1",
    "Branch_3/Conv3d_0b_1x1": "branch3.1",
}
FIRST = {"Conv3d_1a_7x7": "conv1", "Conv3d_2b_1x1": "conv2b", "Conv3d_2c_3x3": "conv2c"}
LEAVES = {
    ("params", "Conv_0", "kernel"): "conv.weight",
    ("params", "BatchNorm_0", "bias"): "norm.bias",
    ("batch_stats", "BatchNorm_0", "mean"): "norm.running_mean",
    ("batch_stats", "BatchNorm_0", "var"): "norm.running_var",
}


def converted(source: Path) -> dict[str, bytes]:
    """Every network that `source` carries, by its name in `NETWORKS`, as the bytes of a safetensors file.

    Args:
        source: a source archive (`*.tar.gz`), or the folder of an unpacked or installed package.
    Raises: ValueError where it carries none, or holds anything but the arrays of that network.
    """
    found = {}
    for name, content in pickles(source):
        try:
            state = named(name, arrays_of_pickle(content))
            _check(name, state)
        except ValueError as error:
            raise ValueError(f"{source}: {NETWORKS[name].member}: {error}") from error
        found[name] = save(state, metadata={"network": name, "source": source.name})
    if not found:
        raise ValueError(
            f"{source} carries no network of the metrics; it must be the source archive or package folder of "
            f"{' or '.join(sorted({network.package for network in NETWORKS.values()}))}"
        )
    return found


def pickles(source: Path) -> Iterator[tuple[str, bytes]]:
    """The network's name and the bytes of each pickle of weights in an archive or a folder."""
    if source.is_dir():
        for path in sorted(source.rglob("*.ckpt")):
            for name in _meant(path.as_posix()):
                if path.stat().st_size > MOST_BYTES:
                    raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {MOST_BYTES} are read")
                yield name, path.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                for name in _meant(member.name) if member.isfile() else ():
                    if member.size > MOST_BYTES:
                        raise ValueError(f"{member.name} has {member.size} bytes, at most {MOST_BYTES} are read")
                    stream = archive.extractfile(member)
                    assert stream is not None  # it is a file
                    yield name, stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{source} cannot be read as an archive ({error})") from error


def _meant(path: str) -> Iterator[str]:
    """The network whose weights lie at `path` (of an archive, or of a folder that may be the package itself)."""
    for name, network in NETWORKS.items():
        if path.endswith(network.member):
            yield name


def named(name: str, arrays: Mapping[Keys, NDArray]) -> dict[str, Tensor]:
    """The arrays of network `name` under our names and with torch's axes. Raises: ValueError for an unknown name."""
    state: dict[str, Tensor] = {}
    modules = _network(name).named_modules()
    convs = [place for place, module in modules if isinstance(module, nn.Conv2d) and place.startswith("net.")]
    for keys, array in arrays.items():
        tensor = torch.tensor(array)
        ours = _i3d_name(keys) if name == "i3d" else _lpips_name(keys, convs)
        if ours is None:
            raise ValueError(f"{'/'.join(keys)} is no weight of {name}")
        if keys[-1] == "kernel":  # spatial axes, in, out -> out, in, spatial axes
            tensor = tensor.movedim((-1, -2), (0, 1))
        state[ours] = tensor.flatten() if keys[-1] in ("mean", "var") else tensor.contiguous()
    if name == "i3d":  # the scale is fixed at one; the counter is torch's own
        for key in [key for key in state if key.endswith("norm.bias")]:
            state[key.replace("bias", "weight")] = torch.ones_like(state[key])
            state[key.replace("bias", "num_batches_tracked")] = torch.tensor(0)
    return state


def _lpips_name(keys: Keys, convs: list[str]) -> str | None:
    """`convs`: the places of the trunk's convolutions, in the archive's order."""
    if len(keys) != 3 or not keys[1].startswith("Conv_"):
        return None
    trunk, layer, leaf = keys
    number = trunk.removeprefix("NetLinLayer_")
    if number != trunk:
        return f"lin{number}.model.1.weight"
    place = layer.removeprefix("Conv_")
    if not place.isdigit() or int(place) >= len(convs):
        return None
    return f"{convs[int(place)]}.{'weight' if leaf == 'kernel' else leaf}"


def _i3d_name(keys: Keys) -> str | None:
    if len(keys) < 4:
        return None
    kind, *places, layer, leaf = keys
    if places == ["Logits/Conv3d_0c_1x1"]:
        return f"logits.{'weight' if leaf == 'kernel' else leaf}"
    ours = LEAVES.get((kind, layer, leaf))
    if len(places) == 1 and places[0] in FIRST:
        place = FIRST[places[0]]
    elif len(places) == 2 and places[1] in UNITS and places[0].startswith("Mixed_"):
        place = f"mixed{places[0].removeprefix('Mixed_')}.{UNITS[places[1]]}"
    else:
        return None
    return f"trunk.{place}.{ours}" if ours else None


def _network(name: str) -> nn.Module:
    """The network `name` without memory for its weights."""
    with torch.device("meta"):
        return I3D() if name == "i3d" else LPIPS(name.removeprefix("lpips-"))  # type: ignore[arg-type]


def _check(name: str, state: dict[str, Tensor]) -> None:
    wanted = _network(name).state_dict()
    for key in sorted(wanted.keys() | state.keys()):
        have, want = (tuple(side[key].shape) if key in side else None for side in (state, wanted))
        if have != want:
            raise ValueError(f"{key} has shape {have} in the file and {want} in the network")
    if bad := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{bad[0]} holds numbers that are none")
