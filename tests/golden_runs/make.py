"""Remakes the goldens and prints what changed: `python -m tests.golden_runs.make [SCENE ...]`, four minutes of a core.

Whoever runs this says in the same commit, and under Numbers in the change log, why the numbers moved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.golden_runs import golden


def make(scene: str) -> list[str]:
    """Plays a scene, twice to see that it repeats itself and as on other processors; what changed, as words.

    Raises: RuntimeError where two processes did not give the same bits.
    """
    shown = golden.play(scene)
    if wrong := golden.unequal(shown, golden.play(scene)):
        raise RuntimeError(f"{scene} does not repeat itself: {wrong[0]}")
    tolerance = golden.tolerances(shown, [golden.play(scene, **elsewhere) for elsewhere in golden.ELSEWHERE])
    before = golden.read(scene) if golden.path_of(scene).exists() else None
    golden.write(scene, {**shown, "tolerance": tolerance})
    if before is None:
        return ["recorded for the first time"]
    added = [name for key in ("numbers", "hashes") for name in shown[key] if name not in before[key]]
    machine = [f"recorded elsewhere: {said}" for said in golden.strangers(shown, before)]
    return [*machine, *golden.unequal(before, shown), *(f"{name} is new" for name in added)]


def main(scenes: Sequence[str]) -> int:
    """All scenes, or those named. The exit code is 2 where there is no such scene."""
    if unknown := set(scenes) - set(golden.SCENES):
        sys.stderr.write(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(golden.SCENES)}\n")
        return 2
    for scene in scenes or golden.SCENES:
        changes = make(scene)
        sys.stdout.write("".join(f"{scene}: {line}\n" for line in changes or ["unchanged"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
