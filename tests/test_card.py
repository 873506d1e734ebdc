"""What runs on a GPU stays on it and never makes the host wait, shown on a machine that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fake_card import CASES


def test_no_value_is_read_on_the_host_and_no_tensor_is_left_behind_and_what_does_so_is_caught() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_card"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert {case: found[case] for case in CASES if found[case] != "ok"} == {}
    assert "DataDependentOutputException" in found["planted: a read"]
    assert "found at least two devices" in found["planted: two devices"]
