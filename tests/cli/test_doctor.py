"""`mbrl doctor`: every check says one of three words, a broken check is a finding, and fail decides the exit code."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mbrl.cli import doctor
from mbrl.cli.compose import compose
from mbrl.cli.doctor import Finding
from mbrl.cli.train import as_plain
from mbrl.rundir.machine import overruled

PLAIN: dict[str, Any] = as_plain(
    compose("train", ["experiment=toy", "schedule.total=1500", "replay.capacity=1000", "compute.threads=1"])
)


def changed(group: str, **values: Any) -> dict[str, Any]:
    """PLAIN with other values in one group."""
    return PLAIN | {group: PLAIN[group] | values}


def test_every_finding_is_printed_and_a_warning_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def good(plain: Mapping[str, Any]) -> Iterator[Finding]:
        assert plain["seed"] == 3
        yield Finding("ok", "one")
        yield Finding("warn", "two")

    def broken(plain: Mapping[str, Any]) -> Iterator[Finding]:
        raise ImportError("libEGL.so.1: cannot open\nshared object file")

    monkeypatch.setattr(doctor, "CHECKS", {"good": good})
    assert doctor.run(["seed=3"]) == 0
    assert capsys.readouterr().out == "ok    good      one\nwarn  good      two\n"
    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "good": good})
    assert doctor.run(["seed=3"]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "fail  broken    ImportError: libEGL.so.1: cannot open shared object file"
    assert len(rest) == 2


def test_memory_is_counted_from_the_run_s_own_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mbrl.replay.store as store

    plain = PLAIN | {"run_dir": str(tmp_path / "not" / "yet")}
    (ram,), (disk,) = doctor.memory(plain), doctor.disk(plain)
    assert (ram.level, disk.level) == ("ok", "ok")
    assert ram.text.startswith("replay: 1000 decisions")  # the capacity
    assert disk.text.startswith("replay: 1500 decisions")  # all that the run will collect
    widths = {"proprio": 2, "state": 4}
    need = store.expected_bytes(1000, image=32, action_dim=2, widths=widths, episode_decisions=25).ram
    for free, level in ((need - 1, "fail"), (need + need // 10, "warn"), (2 * need, "ok")):
        monkeypatch.setattr(store, "available_ram", lambda free=free: free)
        assert next(iter(doctor.memory(plain))).level == level


def test_the_moments_of_the_simulator_are_counted_where_the_world_model_is_the_simulator(tmp_path: Path) -> None:
    plain = as_plain(compose("train", ["task.name=basketball-v3"]))
    usual = plain | {"run_dir": str(tmp_path)}
    perfect = usual | {"worldmodel": {"_target_": "mbrl.oracle.OracleModelConfig"}}
    bytes_each = [float(next(iter(doctor.memory(plain))).text.split(" x ")[1].split()[0]) for plain in (usual, perfect)]
    assert bytes_each[1] > bytes_each[0] + 8 * 750, "of the longest moments of all tasks"
    assert "no transformer" in next(iter(doctor.rollout(perfect))).text


def test_more_threads_than_cores_are_warned_of() -> None:
    assert [finding.level for finding in doctor.threads(changed("compute", threads=1))] == ["ok"]
    (finding,) = doctor.threads(changed("compute", threads=4096))
    assert finding.level == "warn"
    assert "compute.threads=4096" in finding.text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"OMP_NUM_THREADS": "2"}, ""),
        ({"OMP_NUM_THREADS": "1"}, " (OMP_NUM_THREADS=1 does not count)"),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4"}, " (OMP_NUM_THREADS=1 and MKL_NUM_THREADS=4 do not count)"),
    ],
)
def test_threads_of_the_environment_that_do_not_count_are_told(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert overruled(2) == said
    (finding,) = doctor.threads(changed("compute", threads=2))
    assert f"compute.threads=2{said}" in finding.text


def test_what_wandb_says_of_a_package_of_another_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    for wandb in (None, real("json")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, one=wandb: one if name == "wandb" else real(name))
        said = [finding.text for finding in doctor.names(PLAIN)]
        assert any("Detected [agents] in use" in text for text in said) is (wandb is not None)


def test_memory_and_disk_are_each_said_once() -> None:
    said = [finding.text for name in ("memory", "disk") for finding in doctor.CHECKS[name](PLAIN)]
    assert len(set(said)) == len(said) == 2


def test_a_device_that_is_not_there_fails() -> None:
    levels = {finding.level for finding in doctor.gpu(changed("compute", device="cuda:99"))}
    assert "fail" in levels
    assert {finding.level for finding in doctor.gpu(PLAIN)} == {"ok"}


def test_a_foreign_package_of_our_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {"agents": ["openai-agents"], "mbrl": ["tokendream"]}
    )
    (finding,) = doctor.names(PLAIN)
    assert finding.level == "warn"
    assert "agents is also installed by openai-agents" in finding.text
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"mbrl": ["tokendream"]})
    assert [finding.level for finding in doctor.names(PLAIN)] == ["ok"]


def test_a_package_that_python_finds_instead_of_ours_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mbrl").mkdir()
    (tmp_path / "mbrl" / "__init__.py").write_text("")
    monkeypatch.setattr(doctor.mbrl, "__file__", str(tmp_path / "mbrl" / "__init__.py"))
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    levels = {finding.text.split("`")[1]: finding.level for finding in doctor.names(PLAIN)}
    assert levels["import worldmodel"] == "fail"


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in doctor.versions(PLAIN)] == ["ok"]
    monkeypatch.setattr(doctor, "VERSIONS", ("torch", "no-such-package"))
    ok, fail = doctor.versions(PLAIN)
    assert (ok.level, fail.level) == ("ok", "fail")
    assert "no-such-package" in fail.text


def test_the_rollout_of_the_run_s_own_transformer_is_timed() -> None:
    from omegaconf import OmegaConf

    from mbrl.cli.compose import compose

    plain: dict[str, Any] = OmegaConf.to_container(compose("train", ["transformer=micro"]))  # type: ignore[assignment]
    first, *_ = doctor.rollout(plain)
    assert first.level == "ok"
    assert float(first.text.split()[0]) > 0


@pytest.mark.metaworld
def test_rendering_is_measured_in_both_qualities(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    from mbrl.cli.compose import compose

    monkeypatch.setattr(doctor, "DECISIONS", 2)
    plain: dict[str, Any] = OmegaConf.to_container(compose("train", []))  # type: ignore[assignment]
    who, speed = doctor.rendering(plain)
    assert who.text.endswith(("(software)", "(hardware)"))
    assert "frames/s fast" in speed.text
    assert "ratio" in speed.text
