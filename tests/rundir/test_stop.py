"""Stopping politely from a process's first moment on: whoever started it is told to start it again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbrl.rundir.stop import SIGNALS, leave_early

CAUGHT = re.compile(r"^SigCgt:\s*(\w+)", re.MULTILINE)


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux tells."""
    found = CAUGHT.search(Path(f"/proc/{pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_while_torch_is_imported_asks_to_be_started_again(tmp_path: Path, number: signal.Signals) -> None:
    line = [sys.executable, "-m", "mbrl", "train", "experiment=debug", f"run_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 60
    while not handles(process.pid, number):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, b"")
    assert not (tmp_path / "run").exists()


def test_a_verb_that_does_not_go_on_and_ctrl_c_stay_as_they_are() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    for words in ([], ["results", "train"], ["--help"]):
        leave_early(words)
        assert [signal.getsignal(number) for number in SIGNALS] == before
    try:
        leave_early(["--debug", "bench"])
        changed = [number for number, old in zip(SIGNALS, before, strict=True) if signal.getsignal(number) != old]
        assert changed == [number for number in SIGNALS if number != signal.SIGINT]
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)
