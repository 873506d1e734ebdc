"""The sets of recorded arrays that lie in tests/golden/data, whichever they are: nothing here is true of one only."""

from __future__ import annotations

import re
from pathlib import Path

DATA = Path(__file__).parent / "data"
SETS = tuple(sorted(path.parent.name for path in DATA.glob("*/tokenizer.npz")))


def tolerance(side: int) -> float:
    """Absolute tolerance of floats at this image side."""
    return 2e-4 if side >= 256 else 1e-4


def shorter_contexts(names: list[str]) -> list[int]:
    """The context lengths for which a set recorded what a shrunken tokenizer does (`ctx<n>/...`)."""
    return sorted({int(found[1]) for name in names if (found := re.match(r"ctx(\d+)/", name))})
