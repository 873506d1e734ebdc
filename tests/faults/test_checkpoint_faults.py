"""What a kill, a power cut, a full disk and a bad sector may do to checkpoints: nothing worse than lose the last."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import mbrl.io.checkpoint
from mbrl.io.checkpoint import Checkpoints, DamagedCheckpoint, NotSaved, checkpoint_paths, read_checkpoint
from mbrl.io.lock import RunInUse, RunLock

CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


class Part:
    """A part whose whole state tells its step."""

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"w": torch.full((5, 3), float(self.step)), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert (state["w"] == state["step"]).all(), "weights and counters of two checkpoints were mixed"
        self.step = state["step"]


def _save(folder: Path, step: int) -> None:
    Checkpoints(folder, keep=2).save(step, {"model": Part(step), "agent": Part(step)})


def _load(folder: Path) -> int | None:
    parts = {"model": Part(), "agent": Part()}
    step = Checkpoints(folder, keep=2).load(parts)
    assert {part.step for part in parts.values()} == {step}
    return step


@contextmanager
def _watched(before: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `before(name, arguments)` ahead of every system call of `CALLS`."""
    real = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before(name, arguments)
            return real[name](*arguments, **options)

        return call

    try:
        for name in CALLS:
            setattr(os, name, wrap(name))
        yield
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


def _killed_at(call: int, folder: Path) -> bool:
    """Saves step 3 in a child that dies just before its system call number `call`; whether it was reached."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def die(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        count += 1
        if count == call:
            os._exit(9)

    try:
        with _watched(die):
            Checkpoints(folder, keep=2).save(3, {"model": Part(3), "agent": Part(3)})
        (folder / "announced").touch()
    finally:
        os._exit(0)


def test_a_kill_at_any_system_call_of_a_save_leaves_the_last_announced_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path / "start", 1)
    _save(tmp_path / "start", 2)
    outcomes = []
    for call in range(1, 200):
        folder = tmp_path / str(call)
        shutil.copytree(tmp_path / "start", folder)
        killed = _killed_at(call, folder)
        outcomes.append(_load(folder))
        assert not list(folder.glob(".tmp-*")) and not (folder / "quarantine").exists()
        if not killed:
            assert (folder / "announced").exists()
            break
    assert outcomes[-1] == 3 and outcomes == sorted(outcomes) and set(outcomes) == {2, 3}
    assert len(outcomes) > 20, "the watch must see the writes, or this test proves nothing"


def test_files_and_folders_are_on_disk_before_the_rename_and_the_rename_before_the_return(tmp_path: Path) -> None:
    events: list[str] = []
    names: dict[int, str] = {}
    real_open = os.open

    def remember(path: Any, *arguments: Any, **options: Any) -> int:
        handle = real_open(path, *arguments, **options)
        names[handle] = Path(path).name
        return handle

    def note(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("write", "fsync"):
            events.append(f"{name} {names[arguments[0]]}")
        elif name == "rename":
            events.append(f"rename {Path(arguments[0]).name}")

    os.open = remember  # type: ignore[assignment]
    try:
        checkpoints = Checkpoints(tmp_path, keep=2)
        with _watched(note):
            checkpoints.save(1, {"model": Part(1), "agent": Part(1)})
    finally:
        os.open = real_open
    temporary = f".tmp-step-000000001-{os.getpid()}"
    files = ["model.safetensors", "agent.safetensors", "state.json", "manifest.json"]
    written = [event for file in files for event in (f"write {file}", f"fsync {file}")]
    assert events == [*written, f"fsync {temporary}", f"rename {temporary}", f"fsync {tmp_path.name}"]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 2 and 3."""
    for step in (1, 2, 3):
        _save(tmp_path / "ckpt", step)
    return tmp_path / "ckpt"


def test_two_hundred_flipped_bytes_and_cuts_anywhere_are_all_refused(three: Path) -> None:
    draw = random.Random(0)
    newest = three / "step-000000003"
    files = sorted(newest.iterdir())
    weights = [file.stat().st_size for file in files]
    for trial in range(200):
        file = draw.choices(files, weights)[0] if trial % 2 else files[trial // 2 % len(files)]
        good = file.read_bytes()
        position = draw.randrange(len(good))
        flipped = bytearray(good)
        flipped[position] ^= draw.randrange(1, 256)
        for bad in (bytes(flipped), good[:position]):
            file.write_bytes(bad)
            with pytest.raises(DamagedCheckpoint, match="step-000000003"):
                read_checkpoint(newest)
        file.write_bytes(good)
    assert read_checkpoint(newest).step == 3


def _harm(name: str, checkpoint: Path) -> None:
    if name == "missing file":
        (checkpoint / "model.safetensors").unlink()
    elif name == "extra file":
        (checkpoint / "extra.safetensors").write_bytes(b"")
    elif name == "empty manifest":
        (checkpoint / "manifest.json").write_bytes(b"")
    elif name == "manifest is a folder":
        (checkpoint / "manifest.json").unlink()
        (checkpoint / "manifest.json").mkdir()
    elif name == "longer file":
        (checkpoint / "state.json").write_bytes((checkpoint / "state.json").read_bytes() + b" ")
    elif name == "is a file":
        shutil.rmtree(checkpoint)
        checkpoint.write_bytes(b"step")
    elif name == "renamed":
        shutil.rmtree(checkpoint)
        shutil.copytree(checkpoint.with_name("step-000000002"), checkpoint)
    elif name == "deep manifest":
        (checkpoint / "manifest.json").write_text("[" * 100_000)


HARMS = (
    "missing file",
    "extra file",
    "empty manifest",
    "manifest is a folder",
    "longer file",
    "is a file",
    "renamed",
    "deep manifest",
)


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_newest_is_set_aside_and_the_older_one_used_out_loud(
    three: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _harm(name, three / "step-000000003")
    parts = {"model": Part(), "agent": Part()}
    checkpoints = Checkpoints(three, keep=2)
    assert checkpoints.load(parts) == parts["model"].step == 2
    assert "step-000000003" in checkpoints.messages[0] and "resumed from step 2" in checkpoints.messages[-1]
    assert "quarantine" in caplog.text
    assert (three / "quarantine" / "step-000000003").exists()
    _save(three, 3)
    assert _load(three) == 3, "the run can make the lost step again"


def test_when_all_are_damaged_the_run_stops_and_never_starts_afresh(three: Path) -> None:
    for path in checkpoint_paths(three):
        (path / "state.json").write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(DamagedCheckpoint, match=r"step-000000002, step-000000003.*To start over"):
            _load(three)


def test_a_damaged_one_is_not_asked_what_it_needs(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    (three / "step-000000002" / "state.json").write_bytes(b"{}")
    kept = Checkpoints(three, keep=2).kept("model")
    assert [state["step"] for state in kept] == [3]
    assert "step-000000002" in caplog.text


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_is_needed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    big = Part(2)
    big.state_dict = lambda: {"w": torch.zeros(300_000)}  # type: ignore[method-assign]
    checkpoints = Checkpoints(tmp_path, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        with pytest.raises(
            NotSaved, match=r"step 2 not written \(File too large\): it needs about 1.2 MB, .* are free"
        ):
            checkpoints.save(2, {"model": big, "agent": Part(2)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert _load(tmp_path) == 1
    checkpoints.save(2, {"model": big, "agent": Part(2)})
    assert len(checkpoint_paths(tmp_path)) == 2, "the next attempt works once there is room"


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename"])
def test_any_failing_system_call_leaves_nothing_half_done(tmp_path: Path, call: str) -> None:
    _save(tmp_path, 1)

    def fail(name: str, arguments: tuple[Any, ...]) -> None:
        if name == call:
            raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path, keep=2)
    with _watched(fail), pytest.raises(NotSaved, match="No space left"):
        checkpoints.save(2, {"model": Part(2), "agent": Part(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_damage(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *, most: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(mbrl.io.checkpoint, "read_plain", refuse)
    with pytest.raises(PermissionError):
        _load(three)
    monkeypatch.undo()
    assert _load(three) == 3


def test_the_lock_of_a_killed_process_is_free_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            RunLock(tmp_path)
            os.write(tell, b"x")
            os.read(os.pipe()[0], 1)  # forever
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        with pytest.raises(RunInUse, match=f"pid {child} on host"):
            RunLock(tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
    RunLock(tmp_path).close()
