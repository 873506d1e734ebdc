"""Pre-train or fine-tune a world model on data sets; continue an interrupted run.

usage: mbrl pretrain data.folders=[DIR,...] [key=value ...] [group=variant ...] [--config-dir DIR]

  mbrl pretrain stage=tokenizer data.folders=[data/mine] run_dir=runs/eyes       frames to codes
  mbrl pretrain stage=dynamics data.folders=[data/mine] init=runs/eyes run_dir=runs/wm    codes, told actions, to codes
  mbrl pretrain stage=dynamics actions=false ...       videos alone
  mbrl pretrain stage=adaptation init=runs/wm ...      the tokenizer alone, codebooks frozen, for a new scene
  mbrl pretrain stage=both init=runs/wm ...            full fine-tuning
  mbrl pretrain recipe=oxe64_dynamics data.root=/data  a recipe of the paper (configs/recipe)
  torchrun --nproc-per-node=4 -m mbrl pretrain ... compute=gpu      4 processes on one batch

The run's folder holds the weights in the published layout (model/), for mbrl train init=DIR and mbrl predict.
The same line again continues the run. Ctrl-C saves and leaves (exit code 75).
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mbrl.cli.compose import compose_onto, composed, take_config_dir, typed
from mbrl.cli.compose import own_folder as own_folder_of
from mbrl.cli.console import setup_logging
from mbrl.cli.errors import DONE
from mbrl.cli.ranked import broadcast_decision, device_of
from mbrl.cli.train import as_plain, compose_new, refuse_idle
from mbrl.cli.words import expanded, target
from mbrl.memory import asking, sizes_in
from mbrl.program import command
from mbrl.ranks import Ranks, current

log = logging.getLogger("mbrl")

MARKS = ("stage", "seed")
MAY_CHANGE = (
    *("schedule.total", "schedule.evaluate", "schedule.log", "schedule.save", "data.cache", "data.prefetch"),
    *("logger.", "keep", "run_dir"),
)
"""Keys that a continued run may be given anew."""


def run(args: list[str]) -> int:
    """Pre-trains; the exit code is 0 at the end of the run and 75 after a requested stop."""
    from worldmodel.processes import joined

    ranks = current()
    with joined(rank=ranks.rank, world=ranks.world) as processes, ExitStack() as held:
        decision = broadcast_decision(processes, args, lambda: decided(args, ranks, held))
        folder, plain = Path(decision["folder"]), decision["plain"]

        from mbrl.pretrain.assemble import assemble
        from mbrl.pretrain.configs import Configs
        from mbrl.pretrain.train import pretrain
        from mbrl.rundir.folder import emptied_on_failure, write_run
        from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE, Stop

        configs = Configs.of(plain, trusted=decision["trusted"], world=ranks.world)
        processes.device = device_of(configs.compute.device, ranks)
        info, stop = run_info(plain, argv=args, world=ranks.world), Stop()
        with ExitStack() as undo:
            if processes.first:
                if decision["new"]:
                    undo.enter_context(emptied_on_failure(folder))
                write_run(folder, plain, info)
                setup_logging(folder / "console.log")
            stop.listen()
            state = assemble(configs, folder, info=info, stop=stop, processes=processes)
        if state.writer is not None:
            held.enter_context(state.writer.logger)
        resumed = state.resume()
        if state.writer is not None:
            lines = (f"run folder: {folder}", decision.get("sizes"), *state.began_with, describe(state, info, resumed))
            for line in filter(None, lines):  # only now can nothing be refused any more
                log.info("%s", line)
        try:
            with asking(*sizes_in(configs.stage, "stage.")):
                pretrain(state)
        except BaseException as error:
            error.add_note(f"at update {state.updates}")
            raise
        if state.stopped:
            again = command("pretrain", take_config_dir(args)[1], run_dir=folder)
            log.info("stopped and saved at update %d; continue with: %s", state.updates, again)
            return SAVED_PLEASE_REQUEUE
        log.info("weights, ready for mbrl train init=... and mbrl predict: %s", folder)
    return DONE


def decided(args: list[str], ranks: Ranks, held: ExitStack) -> dict[str, Any]:
    """Which run `args` mean, found in the first process, which holds its lock from then on. Raises: ValueError."""
    from mbrl.files import clear_temporaries
    from mbrl.io.lock import RunLock
    from mbrl.pretrain.configs import Configs

    decision = resolve_run(args)
    configs = Configs.of(decision["plain"], trusted=decision["trusted"], world=ranks.world)
    if decision["new"]:
        check_sources(configs)
    folder = Path(decision["folder"])
    held.enter_context(RunLock(folder))
    clear_temporaries(folder)
    return decision


def check_sources(configs: Any) -> None:
    """Looks for everything that a new run reads, before it has a folder. Raises: ValueError."""
    from mbrl.rundir.origin import check_origin
    from worldmodel.evaluation.networks.cache import located
    from worldmodel.seeds import Seeds

    if configs.init is not None:
        check_origin(expanded(configs.init))
    if configs.worldmodel.losses.lpips and "tokenizer" in configs.stage.parts:
        located("lpips-vgg", None)
    configs.data.drawn_from(seeds=Seeds(configs.seed), split="train")


def resolve_run(args: list[str]) -> dict[str, Any]:
    """The configuration (`plain`), its `folder`, whether that is `new`, whether its classes are `trusted`, and `sizes`.

    The last is a line about what came with the weights that a new run begins from.
    """
    from mbrl.rundir.folder import allowed_classes, check_resumed, holds_run, is_free, read_config

    named = typed("pretrain", args, "run_dir")
    if named is None or "${" in str(named):
        cfg, picked = composed("pretrain", args)
        plain = as_plain(cfg)
        named = plain["run_dir"] or default_folder(plain, picked)
    folder = target("run_dir", str(named)).resolve()
    if holds_run(folder):
        stored = read_config(folder, verb="pretrain", marks=MARKS)
        own = take_config_dir(args)[1]
        trusted = allowed_classes(stored, own and own_folder_of(own))
        plain = as_plain(compose_onto(stored, "pretrain", args))
        check_resumed(stored, plain, MAY_CHANGE)
        return {"plain": {**plain, "run_dir": str(folder)}, "folder": str(folder), "new": False, "trusted": trusted}
    if not is_free(folder):
        raise ValueError(f"run_dir={folder} is not empty and holds no run; give a new or an empty folder")
    plain, sizes = compose_new("pretrain", args)
    refuse_idle("pretrain", plain, args, trusted=True)
    plain["run_dir"] = str(folder)
    return {"plain": plain, "folder": str(folder), "new": True, "trusted": True, "sizes": sizes}


def default_folder(plain: Mapping[str, Any], variants: Mapping[str, str]) -> Path:
    """runs/pretrain/<stage>-<tokenizer>-<transformer>/seed-<n>/<date-time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = "-".join(variants[group] for group in ("stage", "tokenizer", "transformer"))
    return Path("runs") / "pretrain" / names / f"seed-{plain['seed']}" / stamp


def run_info(plain: Mapping[str, Any], *, argv: list[str], world: int) -> dict[str, Any]:
    """What one must know to compare this run with another."""
    from mbrl.rundir.machine import machine_info

    return {
        "data": [*plain["data"]["folders"], *plain["data"]["parts"]],
        "init": plain["init"],
        "seed": plain["seed"],
        "processes": world,
        **machine_info(plain["compute"]),
        "argv": argv,
    }


def describe(state: Any, info: Mapping[str, Any], resumed: int | None) -> str:
    """What is about to run, in a few lines."""
    from mbrl.rundir.machine import overruled

    model = state.whole.model
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("tokenizer", model.tokenizer), ("token model", model.tokens))
    }
    beginning = "new run" if resumed is None else f"continued at update {resumed}"
    conditioning = f"given {model.spec.action_dim} numbers of action" if model.spec.action_dim else "without actions"
    counts = {part: len(source.episodes) for part, source in state.updater.sources.items()}
    held = len(next(iter(state.validation.values())).episodes)
    processes = f"{info['processes']} process{'es' if info['processes'] > 1 else ''}"
    return (
        f"{' and '.join(state.parts)}, seed {info['seed']}: {beginning}\n"
        f"world model: {' and '.join(f'{name} {size:,}' for name, size in sizes.items())} parameters, {conditioning}\n"
        f"data: {next(iter(counts.values()))} episodes to learn from, {held} to measure on\n"
        f"{info['device']}, {processes} of compute.threads={info['threads']}{overruled(info['threads'])}"
    )
