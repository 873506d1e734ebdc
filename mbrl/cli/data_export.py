"""`mbrl data export`: write a data set of ours in the layout of others."""

from __future__ import annotations

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import choice, place, there, whole, words
from mbrl.progress import told

EXPORT = {
    "from": there("from", "the folder of a data set"),
    "to": place("to", "a folder", needed=True),
    "format": choice("lerobot", needed=True),
    "fps": whole(None),
}


def run_export(args: list[str]) -> int:
    """Writes a data set, whole or not at all."""
    given = words("mbrl data export", args, EXPORT)
    from mbrl.data.dataset import DataSet, EpisodeCache, check_beside
    from mbrl.data.export import export

    data = DataSet(given["from"], cache=EpisodeCache(0))
    rate = data.card.rate
    if given["fps"] is None and rate != int(rate):
        raise BadInput(f"fps= is missing: frames a second, a whole number (the set says rate {rate:g})")
    check_beside(given["to"])
    export(data, given["to"], fps=given["fps"] or int(rate), on_progress=told("episodes"))
    print(f"{given['to']} holds {len(data)} episodes in LeRobot's version 3.0")
    return DONE
