"""Training computes today what it computed when the goldens were made (`make.py`): nothing moves by the way."""

from __future__ import annotations

import copy

import pytest

from tests.golden_runs import golden


@pytest.mark.distributed
@pytest.mark.parametrize("scene", golden.SCENES)
def test_numbers_and_bits_are_the_recorded_ones(scene: str) -> None:
    recorded, shown = golden.read(scene), golden.play(scene)
    assert golden.off(recorded, shown) == []
    if strange := golden.strangers(recorded, shown):
        hashes = ", ".join(recorded["hashes"])
        pytest.skip(f"numbers compared with a tolerance only, and no hash of {hashes}: {'; '.join(strange)}")
    assert golden.unequal(recorded, shown) == []


@pytest.mark.parametrize("scene", golden.SCENES)
def test_a_golden_tells_a_change_from_an_addition(scene: str) -> None:
    recorded = golden.read(scene)
    assert recorded["numbers"] and recorded["hashes"]
    more = copy.deepcopy(recorded)
    more["numbers"]["new"], more["hashes"]["new"] = [1.0], "new"
    assert golden.off(recorded, more) == golden.unequal(recorded, more) == golden.strangers(recorded, more) == []
    for name, series in recorded["numbers"].items():
        place = next((i for i, number in enumerate(series) if number is not None), None)
        moved, missing = copy.deepcopy(recorded), copy.deepcopy(recorded)
        del missing["numbers"][name]
        assert len(golden.off(recorded, missing)) == len(golden.unequal(recorded, missing)) == 1
        moved["numbers"][name].append(1.0)
        assert len(golden.off(recorded, moved)) == len(golden.unequal(recorded, moved)) == 1
        moved = copy.deepcopy(recorded)
        moved["numbers"][name][place] += 1.01 * recorded["tolerance"][name][place] + 1e-12
        assert len(golden.off(recorded, moved)) == len(golden.unequal(recorded, moved)) == 1
    for name in recorded["hashes"]:
        moved = copy.deepcopy(recorded)
        moved["hashes"][name] = "0"
        assert golden.unequal(recorded, moved) == [f"hash of {name}"]
