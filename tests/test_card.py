"""What runs on a GPU stays on it and never makes the host wait, shown on a machine that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_card import CASES


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_card"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.mark.parametrize("case", CASES)
def test_no_value_is_read_on_the_host_and_no_tensor_is_left_behind(found: dict[str, str], case: str) -> None:
    assert found[case] == "ok", found[case]


def test_what_reads_a_value_or_mixes_devices_is_caught(found: dict[str, str]) -> None:
    assert "DataDependentOutputException" in found["planted: a read"]
    assert "found at least two devices" in found["planted: two devices"]
