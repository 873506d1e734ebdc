"""Collect, convert, export, check and look at data sets of videos and episodes.

usage: mbrl data collect|convert|export|check|preview|mixture ...

  mbrl data collect task=[door-close-v3,reach-v3] policy=noisy episodes=20 to=data/mine workers=2
      task: names, or all 50; several tasks get a folder each. policy: scripted, noisy (the expert, with noise=0.3 that
      lasts), random, or a run folder. Also seed=0 protocol=default, and --config-dir DIR for worlds of your own.
      Started again it plays what is missing.
  mbrl data convert from=DIR to=DIR
      format=published_npz|drqv2|dreamerv3|video|frames|bair|robonet|robomimic|lerobot|rlds
      [image=64] [rate=10] [key=image] [action=action] [action_row=from|into] [reward=reward] [reward_row=from|into]
      [crop=centre] [camera=0] [split=train] [limit=N] [damaged=skip]
  mbrl data export from=DIR to=DIR format=lerobot [fps=10]     for LeRobot's loaders (version 3.0), without loss
  mbrl data check DIR ...                        reads every byte and lists all that is wrong (exit code 3)
  mbrl data preview DIR [out=preview.png] [episodes=6] [columns=8]     a contact sheet, or a film (.gif, .mp4)
  mbrl data mixture [name=oxe] [root=data/oxe]   which data sets of the paper's mixture are on disk

docs/data.md says what a data set is and what each converter reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DAMAGED, DONE, BadInput, did_you_mean
from mbrl.cli.words import Word, expanded, is_place, path, place, show, whole, words
from mbrl.files import sized
from mbrl.progress import told

PREVIEW = {
    "out": place("out", "a path ending in .png, .gif or .mp4", file=True),
    "episodes": whole(None),
    "columns": whole(8),
}
MIXTURE = {"name": Word("oxe or oxe_sthsth", default="oxe"), "root": path("a folder")}


def run(args: list[str]) -> int:
    """Does one of the six. Raises: BadInput for a word that is none of them."""
    from mbrl.cli.data_collect import run_collect
    from mbrl.cli.data_convert import run_convert
    from mbrl.cli.data_export import run_export

    kinds: dict[str, Callable[[list[str]], int]] = {
        "collect": run_collect,
        "convert": run_convert,
        "export": run_export,
        "check": run_check,
        "preview": run_preview,
        "mixture": run_mixture,
    }
    if not args or args[0] not in kinds:
        asked = f"unknown word {args[0]}{did_you_mean(args[0], kinds)}" if args else "something is missing"
        raise BadInput(f"mbrl data: {asked}; write mbrl data {' or '.join(kinds)}")
    return kinds[args[0]](args[1:])


def run_check(args: list[str]) -> int:
    """Reads every byte of data sets; exit code 3 if anything is wrong."""
    from mbrl.data.dataset import sets_in

    if not args or not all(map(is_place, args)):
        raise BadInput(f"mbrl data check takes folders of data sets (got {' '.join(args) or 'nothing'})")
    rows: list[tuple[str, str]] = []
    folders = [inside for word in args for inside in sets_in(expanded(word))]

    from mbrl.data.check import check  # heavy, so behind all that is refused
    from mbrl.data.reach import MEND

    for folder in folders:
        report = check(folder, on_progress=told(f"files of {folder.name}"))
        card = report.card
        kind = f"{card.action_dim} actions, rewards {'known' if card.rewards else 'unknown'}" if card else "no card"
        size = f"{report.episodes} episodes, {report.frames} frames, {sized(report.bytes)}"
        well = "no damage" if report.reach.beyond else "all well"
        state = f"{len(report.problems)} problems" if report.problems else well
        state += f", but {report.reach}; {MEND}" if report.reach.beyond else ""
        print(f"{folder}: {size}, {kind}: {state}")
        rows += [(f"{folder.name}/{name}", what) for name, what in report.problems]
    show(rows)
    return DAMAGED if rows else DONE


def run_preview(args: list[str]) -> int:
    """Draws a contact sheet or a film."""
    folders = [word for word in args if is_place(word)]
    given = words("mbrl data preview", [word for word in args if not is_place(word)], PREVIEW)
    if not folders:
        raise BadInput("mbrl data preview needs the folder of a data set: mbrl data preview DIR out=preview.png")
    from mbrl.data.dataset import DataSet, EpisodeCache, sets_in

    found = [inside for folder in folders for inside in sets_in(expanded(folder))]
    out, sets = given["out"] or Path("preview.png"), [DataSet(folder, cache=EpisodeCache(0)) for folder in found]

    from mbrl.data.preview import preview  # heavy, so behind all that is refused

    drawn = preview(sets, out, episodes=given["episodes"] or (6 if len(found) == 1 else 1), columns=given["columns"])
    print(f"{drawn} episodes drawn into {out}")
    return DONE


def run_mixture(args: list[str]) -> int:
    """Says which parts of a named mixture are on disk."""
    given = words("mbrl data mixture", args, MIXTURE)
    from mbrl.data.mixture import survey
    from mbrl.data.segments import frame_step
    from mbrl.rundir.build import make

    plain = mixture(given["name"])
    root = given["root"] or expanded(plain["root"])
    found = survey(make(plain["parts"], "data.parts", trusted=False), root)
    total = sum(part.config.weight for part in found)
    for part in found:
        c = part.config
        print(f"{c.weight / total:7.4f}  step {frame_step(c.rate, 1):2}  {c.image_key:13} {part.name:62} {part.state}")
    share = sum(part.config.weight for part in found if part.folder) / total
    there = sum(part.folder is not None for part in found)
    print(f"{there} of {len(found)} parts are in {root}: {share:.1%} of the mixture by weight")
    return DONE


def mixture(name: str) -> dict[str, Any]:
    """The composed `configs/data/<name>.yaml`. Raises: BadInput for one that has no parts."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from mbrl.cli.compose import packaged_configs

    folder = packaged_configs()
    known = [path.stem for path in sorted((folder / "data").glob("*.yaml")) if path.stem != "folder"]
    if name not in known:
        raise BadInput(f"name must be one of {', '.join(known)} (got {name}){did_you_mean(name, known)}")
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        plain = OmegaConf.to_container(compose(config_name=f"data/{name}"), resolve=True)
    assert isinstance(plain, dict)
    found: dict[str, Any] = plain["data"]
    return found
