"""Values of a stored configuration are of their fields' types, and groups name their classes: one line else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mbrl.cli.compose import compose, packaged_configs
from mbrl.cli.train import as_plain
from mbrl.run.assemble import GROUPS, Configs
from mbrl.rundir.build import find, fits, hints, make_group

PLAIN = as_plain(compose("train", ["experiment=debug"]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer.hidden", "many"),
        ("transformer.hidden", [64]),
        ("transformer.hidden", 64.5),
        ("tokenizer.block_out_channels", 32),
        ("tokenizer.block_out_channels", [32, "x"]),
        ("agent.gamma", None),
        ("agent.gamma", True),
        ("agent.actor_optim", {"lr": 1e-3}),
        ("worldmodel.proprio", "yes"),
        ("protocol.name", 7),
        ("schedule.learn", []),
        ("compute", None),
        ("compute", {"device": "cpu"}),
        ("agent", []),
        ("task", "reach"),
        ("fit._target_", 3),
    ],
)
def test_a_value_of_another_kind_is_one_line_with_its_key(key: str, value: Any) -> None:
    plain: Any = copy.deepcopy(PLAIN)
    *path, last = key.split(".")
    node = plain
    for name in path:
        node = node[name]
    node[last] = value
    with pytest.raises(ValueError, match=key.split(".")[0]) as error:
        Configs.of(plain, trusted=False)
    assert "\n" not in str(error.value)


def test_a_group_that_is_missing_is_named() -> None:
    plain = {key: value for key, value in PLAIN.items() if key != "evaluation"}
    with pytest.raises(ValueError, match="evaluation must be a group of keys"):
        Configs.of(plain, trusted=False)


def test_whole_numbers_are_numbers_and_every_packaged_experiment_fits() -> None:
    assert fits(1, float) and fits(None, float | None) and fits((1, 2.0), tuple[float, ...])
    assert not fits((1, 2, 3), tuple[int, int]) and not fits(True, int) and not fits("1", int)
    assert "hidden" in hints(find(PLAIN["transformer"]["_target_"], "", trusted=False))
    for path in sorted(Path(packaged_configs(), "experiment").glob("*.yaml")):
        plain = as_plain(compose("train", [f"experiment={path.stem}"]))
        for group in GROUPS:
            make_group(plain, group, trusted=False)
