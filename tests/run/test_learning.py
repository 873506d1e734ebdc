"""The learning gate: on the toy world an agent that learned from imagined video only beats the random policy."""

from __future__ import annotations

import csv
from pathlib import Path

from mbrl.cli.main import main

MARGIN = 3.0
"""Return above the random policy's 5.0 (40 episodes): seeds 0 and 1 reach 4.5 and 6.1, an expert gets 17.7."""
SHORT = "schedule.total=10500"  # the agent has 250 of its 450 updates


def test_the_agent_learns_in_imagination_what_the_random_policy_does_not_do(tmp_path: Path) -> None:
    assert main(["train", "experiment=toy", SHORT, "seed=0", "compute.threads=1", f"run_dir={tmp_path / 'run'}"]) == 0
    with (tmp_path / "run" / "eval.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    random_policy, trained = rows[0], rows[-1]
    assert random_policy["env_step"] == "0" and trained["episodes"] == random_policy["episodes"] == "40.0"
    assert float(trained["return"]) > float(random_policy["return"]) + MARGIN
