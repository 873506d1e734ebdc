"""`mbrl train`: begin a run, or continue the one that lives in run_dir."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mbrl.cli.compose import chosen, compose
from mbrl.cli.errors import DONE

log = logging.getLogger("mbrl")


def run(args: list[str]) -> int:
    """Trains; the exit code is 0 at the end of the run and 75 after a requested stop."""
    plain, folder, trusted = settle(args)

    from mbrl.run.assemble import Configs, assemble

    configs = Configs.of(plain, trusted=trusted)

    from mbrl.io.lock import RunLock
    from mbrl.run.folder import holds_run, run_info, write_run
    from mbrl.run.stop import SAVED_PLEASE_REQUEUE, Stop
    from mbrl.run.train import train

    info = run_info(plain, argv=args)
    new = not holds_run(folder)
    with RunLock(folder):
        write_run(folder, plain, info)
        talk(folder / "console.log")
        log.info("run folder: %s", folder)
        stop = Stop()
        stop.listen()
        try:
            state = assemble(configs, folder, info=info, stop=stop)
        except Exception:
            if new:  # nothing has begun: the corrected command may use the same folder
                shutil.rmtree(folder)
            raise
        with state.logger:
            resumed = state.checkpoints.load(state.parts())
            log.info("%s", describe(state, info, resumed))
            train(state)
    if stop:
        log.info(
            "stopped and saved at env step %d; continue with: mbrl train run_dir=%s", state.clock.env_steps, folder
        )
        return SAVED_PLEASE_REQUEUE
    log.info("%s", summary(state.scores, folder))
    return DONE


def settle(args: list[str]) -> tuple[dict[str, Any], Path, bool]:
    """The configuration and folder of the run that `args` mean, and whether its classes were chosen by the user.

    An existing run is continued with its own stored configuration; only a few keys may be given anew.
    """
    from mbrl.run.folder import classes, default_folder, holds_run, merge_resumed, read_config

    plain = plain_config(args)
    folder = Path(plain["run_dir"]) if plain["run_dir"] else default_folder(plain, chosen("train", args))
    folder = folder.expanduser().resolve()
    trusted = True
    if holds_run(folder):
        beside = [word for word in args if word.startswith("--config-dir")]
        asked, plain = plain, merge_resumed(read_config(folder), plain_config(beside), plain)
        trusted = classes(plain) <= classes(asked)
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"run_dir={folder} is not empty and holds no run; give a new or an empty folder")
    return {**plain, "run_dir": str(folder)}, folder, trusted


def plain_config(args: list[str]) -> dict[str, Any]:
    """The composed configuration as plain containers."""
    plain = OmegaConf.to_container(compose("train", args))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def talk(path: Path) -> None:
    """Sends what the run says to the screen and to console.log."""
    root = logging.getLogger("mbrl")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(path, encoding="utf-8")):
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)


def describe(state: Any, info: Mapping[str, Any], resumed: int | None) -> str:
    """What is about to run, in a few lines."""
    from mbrl.run.progress import clock_time

    sizes = {
        part: sum(p.numel() for p in state.model.parameters_of(part).values()) for part in ("tokenizer", "dynamics")
    }
    begun = (
        "new run"
        if resumed is None
        else f"continued at env step {state.clock.env_steps}, after {clock_time(state.logger.wall_s)}"
    )
    exact = "bit for bit on this machine, with this many threads" if info["device_kind"] == "cpu" else "not bit for bit"
    return (
        f"{info['task']}, protocol {info['protocol']}, seed {info['seed']}: {begun}\n"
        f"world model: tokenizer {sizes['tokenizer']:,} and token model {sizes['dynamics']:,} parameters\n"
        f"{info['device']}, {info['threads']} threads; reproducible: {exact}"
    )


def summary(scores: Mapping[str, Mapping[str, float]], folder: Path) -> str:
    """What was learned and where to look."""
    lines = ["", "what was learned (same starts and goals for both):"]
    for name, title in (("random", "random policy"), ("final", "trained agent")):
        s = scores[name]
        half = 1.96 * s["return_std"] / s["episodes"] ** 0.5
        lines.append(
            f"  {title}: success {s['success']:.2f} [{s['success_low']:.2f}, {s['success_high']:.2f}], "
            f"return {s['return']:.1f} +- {half:.1f} ({s['episodes']:.0f} episodes, 95 % intervals)"
        )
    lines += [
        "where to look:",
        f"  curves   {folder / 'eval.csv'}  {folder / 'metrics.csv'}",
        f"  videos   {folder / 'videos'} (eval-*: the agent; openloop-*: truth | imagined | difference)",
        f"  again    mbrl eval run={folder} episodes=20",
    ]
    return "\n".join(lines)
