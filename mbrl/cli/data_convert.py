"""`mbrl data convert`: make a data set of a foreign archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.cli.words import progress, show, whole, words

FORMATS = ("published_npz", "video", "frames", "bair", "robonet", "rlds")
CONVERT = {
    "from": "the folder of the archive",
    "to": "a folder",
    "format": f"one of {', '.join(FORMATS)}",
    "image": "the side of the square frames in pixels, or keep",
    "crop": "centre (the middle square first) or none",
    "rate": "the nominal rate of the frames, a number > 0",
    "key": "the key of the frames (published_npz, rlds), or the view (bair)",
    "action": "the key of the actions (published_npz, rlds), or none",
    "camera": "a whole number >= 0 (robonet)",
    "split": "the split to take (rlds)",
    "limit": "convert so many items only",
    "damaged": "stop, or skip what cannot be read",
}


def run_convert(args: list[str]) -> int:
    """Makes a data set of a foreign archive; the same words again go on where it was interrupted."""
    given = words("mbrl data convert", args, CONVERT, needed=("from", "to", "format"))
    if given["format"] not in FORMATS:
        raise BadInput(
            f"format must be {CONVERT['format']} (got {given['format']}){did_you_mean(given['format'], FORMATS)}"
        )
    for key, right in (("damaged", ("stop", "skip")), ("crop", ("centre", "none"))):
        if given.get(key, right[0]) not in right:
            raise BadInput(f"{key} must be {' or '.join(right)} (got {given[key]})")
    place, to = Path(given["from"]).expanduser(), Path(given["to"]).expanduser()
    if not place.is_dir():
        raise BadInput(f"from={given['from']} is not a folder; give {CONVERT['from']}")
    known = known_part(place.name)
    given = {"key": known.get("image_key", ""), "rate": str(known.get("rate", 1.0))} | given

    from mbrl.data.convert.run import Job, convert
    from mbrl.data.dataset import DamagedSet, check_beside
    from mbrl.io.lock import RunLock

    rate = rate_of(given["rate"])
    items = items_of(given, place)
    job = Job(
        source=f"{given['format']} of {place.resolve()}",
        folder=to,
        side=None if given.get("image", "keep") == "keep" else whole(given, "image", 64),
        crop=given.get("crop", "centre" if given["format"] == "robonet" else "none") == "centre",
        rate=rate,
        skip=given.get("damaged") == "skip",
        limit=whole(given, "limit", 0, least=0),
    )
    told = progress("items")
    total = len(items) if isinstance(items, list) else 0
    check_beside(to)  # before the lock, which makes a folder
    try:
        with RunLock(to):
            outcome = convert(items, job, told=lambda done: told(done, total))
    except DamagedSet as error:
        show(error.rows)
        raise
    show(outcome.damaged)
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


def rate_of(text: str) -> float:
    """Raises: BadInput for a rate that is none."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e6:
        raise BadInput(f"rate must be a number > 0 (got {text}); for example rate=10")
    return rate


def items_of(given: Mapping[str, str], place: Path) -> Any:
    """The reader of the format that was asked for."""
    kind, action = given["format"], given.get("action")
    if kind == "published_npz":
        from mbrl.data.convert.arrays import published_npz

        key = given["key"] or "image"
        return published_npz(place, image_key=key, action_key="" if action == "none" else action or "action")
    if kind == "video":
        from mbrl.data.convert.pictures import videos

        return videos(place)
    if kind == "frames":
        from mbrl.data.convert.pictures import frame_folders

        return frame_folders(place)
    if kind == "bair":
        from mbrl.data.convert.tfrecord import bair

        return bair(place, view=given["key"] or "image_aux1")  # the view that the paper uses
    if kind == "robonet":
        from mbrl.data.convert.robonet import robonet

        return robonet(place, camera=whole(given, "camera", 0, least=0))
    from mbrl.data.convert.rlds import TensorFlowDatasets, rlds

    reader = TensorFlowDatasets(place, given.get("split", "train"))
    return rlds(reader, image_key=given["key"] or "image", action_key="" if action in (None, "none") else action)
