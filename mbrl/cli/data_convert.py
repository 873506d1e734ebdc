"""`mbrl data convert`: make a data set of a foreign archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import Word, choice, number, place, show, there, whole, words
from mbrl.progress import leave_line, told


def side_of(text: str) -> int | None:
    """The side of the frames; None keeps it. Raises: ValueError."""
    if text != "keep" and not (text.isdigit() and 0 < int(text) < 2**15):
        raise ValueError(text)
    return None if text == "keep" else int(text)


FORMATS: dict[str, tuple[str, ...]] = {
    "published_npz": ("key", "action", "action_row", "reward", "reward_row"),
    "drqv2": ("key", "action_row", "reward_row"),
    "dreamerv3": ("key", "action"),
    "video": (),
    "frames": (),
    "bair": ("key",),
    "robonet": ("camera",),
    "robomimic": ("key",),
    "lerobot": ("key", "action"),
    "rlds": ("key", "action", "action_row", "split"),
}
"""Each with the words that say what is read of it; two conversions into one folder agree in them."""
OF_THE_MIXTURE = ("published_npz", "bair", "rlds")
"""Formats in which the paper's mixture has its sets: there the name of the folder may say the key of the frames."""
CONVERT = {
    "from": there("from", "the folder of the archive"),
    "to": place("to", "a folder", needed=True),
    "format": choice(*FORMATS, needed=True),
    "image": Word("the side of the square frames in pixels, or keep", side_of, example="64"),
    "crop": choice("centre", "none"),
    "rate": number(None, most=1e6, example="10"),
    "key": Word("the key of the frames, or the view"),
    "action": Word("the key of the actions, or none"),
    "action_row": choice("from", "into"),
    "reward": Word("the key of the rewards"),
    "reward_row": choice("from", "into"),
    "camera": whole(0, least=0),
    "split": Word("the split to take (rlds)", default="train"),
    "limit": whole(0, least=0),
    "damaged": choice("stop", "skip"),
}


def run_convert(args: list[str]) -> int:
    """Makes a data set of a foreign archive; the same words again go on where it was interrupted."""
    given = words("mbrl data convert", args, CONVERT)
    archive, to, kind = given["from"], given["to"], given["format"]
    for key in {key for keys in FORMATS.values() for key in keys} - {*FORMATS[kind]}:
        if given[key] != CONVERT[key].default:
            raise BadInput(f"{key}={given[key]} has no effect with format={kind}; leave it out")
    known = known_part(archive.name)
    if kind in OF_THE_MIXTURE:
        given["key"] = given["key"] or known.get("image_key", "")

    from mbrl.data.convert.run import Job, check_target, convert
    from mbrl.data.dataset import DamagedSet, check_beside
    from mbrl.io.lock import RunLock

    items = items_of(given, archive)
    job = Job(
        source=" ".join(
            [f"{kind} of {archive.resolve()}", *(f"{key}={given[key]}" for key in FORMATS[kind] if given[key])]
        ),
        folder=to,
        side=given["image"],
        crop=(given["crop"] or ("centre" if kind == "robonet" else "none")) == "centre",
        rate=given["rate"] or float(known.get("rate", 1.0)),
        skip=given["damaged"] == "skip",
        limit=given["limit"],
    )
    on_progress = told("items")
    total = len(items) if isinstance(items, list) else 0
    check_beside(to)  # before the lock, which makes a folder
    check_target(job)
    try:
        with RunLock(to):
            outcome = convert(items, job, on_progress=lambda done: on_progress(done, total))
    except DamagedSet as error:
        leave_line()
        show(error.rows)
        raise
    leave_line()
    show([*outcome.notes, *outcome.damaged])
    print(f"{to} holds {outcome.episodes} episodes, {outcome.written} of them new; {len(outcome.damaged)} left out")
    return DONE


def known_part(name: str) -> Mapping[str, Any]:
    """What the paper's mixture says of a data set of this name."""
    import yaml

    from mbrl.cli.compose import packaged_configs

    part: Mapping[str, Any] = yaml.safe_load((packaged_configs() / "data" / "oxe.yaml").read_text())["parts"].get(
        name, {}
    )
    return part


def items_of(given: dict[str, Any], archive: Path) -> Any:
    """The reader of the format that was asked for; sets `rate` where an archive says it."""
    kind, action = given["format"], given["action"]
    if kind in ("published_npz", "drqv2"):
        from mbrl.data.convert.arrays import DRQV2, Keys, drqv2, published_npz

        said = {"row": given["action_row"], "reward_row": given["reward_row"]}
        if kind == "drqv2":
            return drqv2(archive, replace(DRQV2, image=given["key"] or DRQV2.image, **said))
        taken = "" if action == "none" else action
        keys = Keys(image=given["key"] or "image", action=taken, reward=given["reward"] or "", **said)
        return published_npz(archive, keys)
    if kind == "dreamerv3":
        from mbrl.data.convert.dreamerv3 import dreamerv3

        return dreamerv3(archive, key=given["key"] or "image", action="" if action == "none" else action)
    if kind == "video":
        from mbrl.data.convert.pictures import videos

        return videos(archive)
    if kind == "frames":
        from mbrl.data.convert.pictures import frame_folders

        return frame_folders(archive)
    if kind == "bair":
        from mbrl.data.convert.tfrecord import bair

        return bair(archive, view=given["key"] or "image_aux1")  # the view that the paper uses
    if kind == "robonet":
        from mbrl.data.convert.robonet import robonet

        return robonet(archive, camera=given["camera"])
    if kind == "robomimic":
        from mbrl.data.convert.robomimic import robomimic

        return robomimic(archive, key=given["key"])
    if kind == "lerobot":
        from mbrl.data.convert.lerobot import lerobot

        items, fps = lerobot(archive, key=given["key"] or "", action="" if action == "none" else action)
        given["rate"] = given["rate"] or fps
        return items
    from mbrl.data.convert.rlds import TensorFlowDatasets, rlds

    reader = TensorFlowDatasets(archive, given["split"])
    action_key = "" if action in (None, "none") else action
    return rlds(reader, image_key=given["key"] or "image", action_key=action_key, row=given["action_row"] or "from")
