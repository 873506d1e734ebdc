"""Cells whose runs are a few lines of shell: they do well, fail, or ask for another go, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbrl.bench.plan import Cell, State, cell_in
from tests.rundir.test_result import GOOD

SCRIPT = """
run=$1; folder=$2; kind=$3
mkdir -p "$run"; touch "$run/config.yaml"; echo begun >> "$folder/begun"
case $kind in
  bad) echo "error: agent.gamma must be < 1"; echo "a last word"; exit 2;;
  silent) exit 3;;
  killed) kill -KILL $$;;
  empty) exit 0;;
  again) [ -e "$folder/asked" ] || { touch "$folder/asked"; exit 75; };;
  slow) trap 'echo saved >> "$folder/saved"; exit 75' TERM; n=0; while [ $n -lt 100 ]; do sleep 0.02; n=$((n+1)); done;;
esac
echo finished >> "$folder/finished"
printf '%s' "$4" > "$run/.tmp-result"; mv "$run/.tmp-result" "$run/result.json"
"""


def cells(to: Path, kinds: Sequence[str]) -> list[Cell]:
    """A cell of each kind: good, bad, silent, killed, empty, again or slow; the kind is its only word."""
    return [cell_in(to, task="reach", method="toy", seed=seed, words=[kind]) for seed, kind in enumerate(kinds)]


def fake(cell: Cell) -> list[str]:
    """The process of such a cell."""
    result = json.dumps(GOOD | {"task": cell.task, "seed": cell.seed})
    return ["sh", "-c", SCRIPT, "sh", str(cell.run), str(cell.folder), cell.words[0], result]


def count(cell: Cell, name: str) -> int:
    """How often a cell's process wrote `begun`, `finished` or `saved`."""
    path = cell.folder / name
    return len(path.read_text().splitlines()) if path.exists() else 0


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, State, str]] = []
        self.most = 0
        self.said: list[str] = []

    def moved(self, cell: Cell, state: State, line: str) -> None:
        self.moves.append((cell.seed, state, line))

    def say(self, line: str) -> None:
        self.said.append(line)

    def look(self, running: Sequence[Any]) -> None:
        self.most = max(self.most, len(running))
