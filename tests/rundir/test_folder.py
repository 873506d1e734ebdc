"""What a run folder says: of another version, or written by somebody with bad intent."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mbrl.cli.compose import compose
from mbrl.cli.train import as_plain
from mbrl.files import MOST_TEXT, DamagedFile
from mbrl.io.lock import RunLock
from mbrl.run.assemble import Configs, assemble_eval
from mbrl.rundir.folder import FORMAT, is_free, read_config, read_info, run_info, write_run

PLAIN = {"task": {"name": "reach"}, "seed": 3, "protocol": {"camera": None, "names": ["a"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a bit of everything."""
    write_run(tmp_path / "run", PLAIN, {"versions": {}})
    for name in ("replay/orphans", "checkpoints/step-000000001"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return tmp_path / "run"


def test_a_configuration_comes_back_as_it_was_written(folder: Path) -> None:
    shared = [1.5, float("inf")]
    write_run(folder, PLAIN | {"a": shared, "b": shared, "c": (1, 2)}, {})
    assert read_config(folder) == PLAIN | {"a": shared, "b": shared, "c": [1, 2]}
    assert f"format: {FORMAT}" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("found", "reader"), [(None, "tokendream 0.1"), (1, "tokendream 0.1"), (99, "newer"), ("x", "nobody")]
)
def test_a_folder_of_another_format_is_refused_with_the_version_that_reads_it(
    found: object, reader: str, folder: Path
) -> None:
    plain = PLAIN if found is None else PLAIN | {"format": found}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(ValueError, match=reader):
        read_config(folder)


@pytest.mark.parametrize(
    "text",
    [
        "task: &a {name: x}\nseed: 1\nformat: 2\nother: *a\n",
        "task: &a [*a]\nseed: 1\nformat: 2\n",
        "seed: 1\nformat: 2\ntask: " + "[" * 50_000,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\ntask: [*b,*b,*b]\nseed: 1\nformat: 2\n",
        "format: 2\nseed: 1\ntask: " + "x" * MOST_TEXT,
    ],
    ids=["alias", "itself", "deep", "laughs", "large"],
)
def test_aliases_depth_and_size_are_bounded_before_anything_is_made_of_them(text: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_config(folder)


def linked(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def piped(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def socketed(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        door.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("plant", [linked, piped, socketed])
@pytest.mark.parametrize(
    "name",
    ["run.lock", "console.log", "metrics.csv", "result.json", "replay/orphans/ep", "checkpoints/quarantine", "videos"],
)
def test_what_is_neither_a_file_nor_a_folder_is_refused_by_name_before_anything_is_opened(
    name: str, plant: Callable[[Path, Path], None], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    plant(folder / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=name):
        read_config(folder)


def test_a_new_run_does_not_begin_behind_a_planted_lock_or_log(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("run.lock", "console.log"):
        (folder / name).symlink_to(victim)
        with pytest.raises(ValueError, match=name):
            is_free(folder)
        if name == "run.lock":
            with pytest.raises(ValueError, match=name):
                RunLock(folder)
        (folder / name).unlink()
    assert victim.read_text() == "precious"


def test_the_links_of_a_logging_service_in_its_own_folder_and_a_link_to_the_run_are_no_harm(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "wandb").mkdir()
    (folder / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "short").symlink_to(folder)
    assert read_config(tmp_path / "short") == PLAIN


def test_a_record_that_is_none_is_damaged(folder: Path) -> None:
    assert read_info(folder, "result.json") == {}
    for text in ("[1]", "{", "[" * 50_000, "\x00"):
        (folder / "run.json").write_text(text)
        with pytest.raises(DamagedFile, match=r"run\.json"):
            read_info(folder)
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()
    with pytest.raises(DamagedFile, match=r"run\.json .* is no plain file"):
        read_info(folder)


@pytest.mark.parametrize("matmul", ["ieee", "bf16"])
def test_a_run_multiplies_as_its_configuration_says_and_records_it(matmul: str, tmp_path: Path) -> None:
    words = ["experiment=debug", f"compute.matmul={matmul}", f"run_dir={tmp_path}"]
    plain = as_plain(compose("train", words))
    torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
    assemble_eval(Configs.of(plain, trusted=True), None)
    assert torch.backends.mkldnn.matmul.fp32_precision == matmul  # type: ignore[attr-defined]
    assert run_info(plain, argv=[])["matmul"] == matmul
