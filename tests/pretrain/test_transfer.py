"""The table of transfer: one row per mode and seed, made once, of one protocol."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.io.video import GAP
from mbrl.pretrain.configs import Configs
from mbrl.pretrain.transfer import MODES
from tests.children import laid
from tests.pretrain.runs import Pretrain, words
from tests.pretrain.sets import dataset

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "data" / "set_a_ctx2"
SEGMENTS = {"oxe64_goal_dynamics": {"dynamics": 17}, "robonet64_act_cond": {"dynamics": 12}}
"""T of the recipes that differ from the others' 8 and 16 (spec 10.5)."""
SIZES = ["tokenizer=micro", "transformer=micro", "worldmodel=toy", "compute.threads=1", "lpips=false"]
SIZES += ["stage.tokenizer.batch=4", "stage.tokenizer.length=4", "stage.dynamics.batch=4", "stage.dynamics.length=6"]


def test_every_mode_has_its_row_and_a_second_call_makes_none_again(
    tmp_path: Path, data: Path, pretrain: Pretrain, capsys: Any
) -> None:
    torch.set_num_threads(1)
    origin, out = tmp_path / "origin", tmp_path / "out"
    assert pretrain(words("both", data, origin, "schedule.total=2", "schedule.evaluate=0")) == 0
    new = dataset(tmp_path / "new", episodes=8, seed=9)
    line = ["transfer", f"init={origin}", f"data.folders=[{new}]", f"out={out}", *SIZES]
    line += ["episodes=3", "seeds=[0,1]", "updates=2", "clips=3"]
    assert main([*line, "modes=[zero,tokenizer,transformer,full,scratch]"]) == 0
    told = json.loads((out / "transfer.json").read_text())
    assert told["protocol"]["episodes"] == 3 and told["protocol"]["init"] == str(origin)
    rows = {(row["mode"], row["seed"]): row for row in told["rows"]}
    assert len(rows) == 9 and ("zero", 1) not in rows, "where nothing is learned one seed says all"
    assert rows["full", 0]["psnr"] != rows["full", 1]["psnr"] != rows["scratch", 1]["psnr"]
    assert len({row["psnr_copy"] for row in rows.values()}) == 1, "the clips are the same"
    assert {"psnr", "ssim", "psnr_copy", "psnr_shuffled"} <= told["rows"][0].keys()
    with (out / "transfer.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 9
    assert "| scratch | 2 |" in (out / "transfer.md").read_text()
    kept = {mode: np.load(out / "clips" / f"{mode}.npz") for mode in MODES}
    assert len({clips["model"].tobytes() for clips in kept.values()}) == len(MODES), (
        "everybody predicted something else"
    )
    assert len({clips["truth"].tobytes() for clips in kept.values()}) == 1
    with Image.open(out / "clips.png") as picture:
        height = picture.height
    assert main([*laid(*line, f"out={tmp_path / 'alone'}"), "modes=[zero]"]) == 0
    with Image.open(tmp_path / "alone" / "clips.png") as picture:
        assert height - picture.height == 2 * 4 * (picture.height - 2 * 2 * GAP) // 6, "four modes more, of two clips"
    before = (out / "transfer.json").read_bytes()
    assert main([*line, "modes=[zero,scratch]"]) == 0
    assert (out / "transfer.json").read_bytes() == before
    (out / "clips.png").unlink()
    assert main([*laid(*line, "seeds=[2]"), "modes=[full]", "videos=1"]) == 0
    assert not (out / "clips.png").exists(), "the first seed of a mode is drawn, no other"
    capsys.readouterr()
    assert main(laid(*line, "episodes=4")) == 2
    assert "choose another out=DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("modes=[zero,half]", "modes must be some of zero, tokenizer, transformer, full, scratch (got ['half'])"),
        ("updates=0", "updates must be >= 1"),
        ("clips=1", "clips must be >= 2"),
        ("videos=-1", "videos must be >= 0"),
        ("stage=tokenizer", "stage must train both parts"),
        ("seeds=[]", "seeds must be a list"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, data: Path, capsys: Any, override: str, line: str) -> None:
    words = ["transfer", f"init={GOLDEN}", f"data.folders=[{data}]", f"out={tmp_path / 'out'}"]
    assert main([*words, *SIZES[:4], "worldmodel.max_frames=12", override]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out" / "transfer.json").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipe").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_paper_is_accepted(path: Path) -> None:
    named = "oxe" in path.stem
    line = [f"recipe={path.stem}", *([] if named else ["data.folders=[somewhere]"])]
    plain: Any = OmegaConf.to_container(compose("pretrain", line))
    configs = Configs.of(plain, trusted=True, world=4)
    segment = {part: config.length + configs.tokenizer.context for part, config in configs.stage.parts.items()}
    assert segment == SEGMENTS.get(path.stem, {"tokenizer": 8} if "tokenizer" in path.stem else {"dynamics": 16})
