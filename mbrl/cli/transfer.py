"""Judge what pre-trained weights are worth on a few episodes of new data.

usage: mbrl transfer init=DIR data.folders=[DIR] [episodes=5] [modes=[zero,full,...]] [key=value ...]

  mbrl transfer init=runs/wm data.folders=[data/new] episodes=5 seeds=[0,1,2] updates=600 out=runs/transfer/new

zero: as pre-trained; tokenizer: that part adapted, codebooks frozen; transformer: that part; full: both; scratch: both
from fresh weights. All modes of a seed learn from the same episodes and are judged on the same held-out clips.
Writes transfer.md, .csv and .json (with the protocol); the same line again goes on where it stopped.
"""

from __future__ import annotations

import datetime
import logging

from mbrl.cli.console import setup_logging
from mbrl.cli.errors import DONE
from mbrl.cli.train import compose_new
from mbrl.cli.words import target

log = logging.getLogger("mbrl")


def run(args: list[str]) -> int:
    """Adapts, judges and writes the table."""
    plain, sizes = compose_new("transfer", args)

    from mbrl.files import check_plain
    from mbrl.io.lock import RunLock
    from mbrl.pretrain.transfer import Transfer, check, markdown, protocol_of
    from mbrl.pretrain.transfer import run as compare

    transfer = Transfer.of(plain)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = target("out", plain["out"] or f"runs/transfer/{stamp}").resolve()
    check_plain(folder)
    check(transfer, plain, folder)
    with RunLock(folder):
        setup_logging(folder / "console.log")
        if sizes:
            log.info("%s", sizes)
        rows = compare(transfer, plain, folder)
    print(markdown(rows, protocol_of(plain)))
    if (folder / "clips.png").exists():
        print(f"clips: {folder / 'clips.png'}  {folder / 'clips.gif'}")
    print(f"table: {folder / 'transfer.md'}  {folder / 'transfer.csv'}  {folder / 'transfer.json'}")
    return DONE
