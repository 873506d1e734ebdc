"""What a run folder says of a run that is long over."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from mbrl.cli.compose import compose
from mbrl.pretrain.configs import Configs as PretrainConfigs
from mbrl.run.assemble import Configs
from mbrl.rundir.folder import LATER, read_config

TRAIN = ("train", ["experiment=toy"], Configs, ("task", "seed"))
PRETRAIN = ("pretrain", ["data.folders=[somewhere]"], PretrainConfigs, ("stage", "seed"))


@pytest.mark.parametrize("place", LATER, ids=".".join)
def test_a_run_from_before_a_key_is_read_with_the_value_of_the_table(place: tuple[str, ...], tmp_path: Path) -> None:
    *groups, key = place
    verb, words, configs, marks = PRETRAIN if groups[0] == "data" else TRAIN
    plain = OmegaConf.to_container(compose(verb, words))
    node = plain
    for group in groups:
        node = node[group]
    del node[key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    read = read_config(tmp_path, verb=verb, marks=marks)
    configs.of(read, trusted=False)
    node = read
    for group in groups:
        node = node[group]
    assert node[key] == LATER[place]
