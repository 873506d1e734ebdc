"""`mbrl transfer`: what pre-trained weights are worth on a few episodes of a new task."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

from mbrl.cli.errors import DONE
from mbrl.cli.train import begun, talk

log = logging.getLogger("mbrl")


def run(args: list[str]) -> int:
    """Adapts, judges and writes the table."""
    plain, sizes = begun("transfer", args)

    from mbrl.files import check_plain
    from mbrl.io.lock import RunLock
    from mbrl.pretrain.transfer import Transfer, markdown, protocol_of
    from mbrl.pretrain.transfer import run as compare

    transfer = Transfer.of(plain)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(plain["out"] or f"runs/transfer/{stamp}").expanduser().resolve()
    check_plain(folder)
    with RunLock(folder):
        talk(folder / "console.log")
        if sizes:
            log.info("%s", sizes)
        rows = compare(transfer, plain, folder)
    print(markdown(rows, protocol_of(plain)))
    if (folder / "clips.png").exists():
        print(f"clips: {folder / 'clips.png'}  {folder / 'clips.gif'}")
    print(f"table: {folder / 'transfer.md'}  {folder / 'transfer.csv'}  {folder / 'transfer.json'}")
    return DONE
