"""`mbrl train`: begin a run, or continue the one that lives in run_dir."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mbrl.cli.compose import compose
from mbrl.run.stop import SAVED_PLEASE_REQUEUE

log = logging.getLogger("mbrl")


def run(args: list[str]) -> int:
    """Trains; the exit code is 0 at the end of the run and 75 after a requested stop."""
    plain = plain_config(args)
    folder = Path(plain["run_dir"]) if plain["run_dir"] else None

    from mbrl.run.folder import default_folder, holds_run, merge_resumed, read_config, run_info, write_run

    resuming = folder is not None and holds_run(folder)
    if resuming:
        assert folder is not None
        plain = merge_resumed(read_config(folder), plain_config([f"run_dir={folder}"]), plain)
    elif folder is not None and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"run_dir={folder} is not empty and holds no run; give an empty or new folder")
    folder = (folder or default_folder(plain, chosen(args))).resolve()
    plain["run_dir"] = str(folder)

    from mbrl.run.assemble import Configs, assemble

    configs = Configs.of(plain, trusted=True)
    with_lock = __import__("mbrl.io.checkpoint", fromlist=["lock"]).lock  # placeholder
    info = run_info(plain, argv=args)
    write_run(folder, plain, info)
    return 0


def plain_config(args: list[str]) -> dict[str, Any]:
    """The composed configuration as plain containers."""
    return OmegaConf.to_container(compose("train", args))  # type: ignore[return-value]
