"""Weights as other tools leave them: wrapped, in shards, in halves, cut off, unfetched, with numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.weights.files import read_header, read_tensors
from worldmodel.weights.mismatch import Mismatch, compare

NAME = "model.safetensors"


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{place}.weight": torch.randn(3, 4, generator=generator) for place in range(6)}


def same(path: Path) -> bool:
    found, right = read_tensors(path), weights()
    shapes = {name: shape for name, (shape, _) in read_header(path).items()}
    fits = shapes == {name: tuple(value.shape) for name, value in right.items()}
    return fits and found.keys() == right.keys() and all(torch.equal(found[name], right[name]) for name in right)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_that_a_wrapper_gave_are_those_of_the_network(wrapper: str, tmp_path: Path) -> None:
    save_file({wrapper + name: value for name, value in weights().items()}, tmp_path / NAME)
    assert same(tmp_path / NAME)


def test_a_module_of_that_name_among_others_stays() -> None:
    from worldmodel.weights.files import unwrapped

    mixed = {"module.a": 1, "head.b": 2}
    assert unwrapped(dict(mixed)) == mixed


def sharded(folder: Path, parts: int = 3, wrapper: str = "") -> list[str]:
    names, places, files = sorted(weights()), {}, []
    for part in range(parts):
        files.append(f"model-{part + 1:05d}-of-{parts:05d}.safetensors")
        held = {wrapper + name: weights()[name] for name in names[part::parts]}
        save_file(held, folder / files[-1])
        places |= dict.fromkeys(held, files[-1])
    (folder / f"{NAME}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


@pytest.mark.parametrize(("parts", "wrapper"), [(2, ""), (3, "module."), (1, "")])
def test_shards_are_one_file(parts: int, wrapper: str, tmp_path: Path) -> None:
    sharded(tmp_path, parts, wrapper)
    assert same(tmp_path / NAME)


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin"])
def test_a_shard_that_is_missing_or_lies_elsewhere_is_refused(place: str, tmp_path: Path) -> None:
    files = sharded(tmp_path)
    (tmp_path / files[1]).unlink()
    with pytest.raises(ValueError, match=f"1 of its 3 shards are missing: {files[1]}"):
        read_tensors(tmp_path / NAME)
    (tmp_path / f"{NAME}.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(ValueError, match=r"must name \.safetensors files beside it"):
        read_header(tmp_path / NAME)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def pointed(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def spoilt(value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        tensors["layers.3.weight"][1, 2] = value
        save_file(tensors, path)

    return spoil


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "is it whole?"),
        (lambda path: path.write_bytes(path.read_bytes()[:4]), "is it whole?"),
        (pointed, "it is a pointer of Git LFS, not the file: git lfs pull"),
        (spoilt(float("nan")), "layers.3.weight holds numbers that are not finite"),
        (spoilt(float("-inf")), "layers.3.weight holds numbers that are not finite"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_in_one_line(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    save_file(weights(), tmp_path / NAME)
    change(tmp_path / NAME)
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        read_tensors(tmp_path / NAME)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_number_too_large_for_float32_is_none(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / NAME)
    with pytest.raises(ValueError, match="not finite in float32"):
        read_tensors(tmp_path / NAME)


def test_a_table_of_what_does_not_fit_can_be_read() -> None:
    rows = compare({f"a.{place}": torch.zeros(1) for place in range(300)}, {})
    error = Mismatch("file", rows)
    assert error.table.count("\n") == 21 and error.table.endswith("... and 280 more")
    assert "300 entries of file" in error.headline
