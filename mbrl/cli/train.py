"""Train an agent inside a world model that it learns itself; continue an interrupted run.

usage: mbrl train [key=value ...] [group=variant ...] [--config-dir DIR]

  mbrl train                                     door-close-v3 with the CPU presets
  mbrl train task.name=plate-slide-v3 seed=2     another task (mbrl tasks lists them), another seed
  mbrl train run_dir=runs/mine                   a folder of your choice; the same line again continues the run
  mbrl train agent=mine --config-dir configs.d   your own configs.d/agent/mine.yaml
  torchrun --nproc-per-node=2 -m mbrl train ...  two processes share every batch; the first one acts and writes

The classes that your files name as _target_ may lie in configs.d, in the folder that holds configs.d, or be installed.
A run that is continued keeps its configuration; words that would make it another run are refused.
Groups and their variants are the folders and files under configs/. Ctrl-C saves and leaves (exit code 75).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mbrl.cli.compose import compose, compose_onto, composed, decided, own_folder, read, take_config_dir, typed
from mbrl.cli.console import setup_logging
from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.ranked import broadcast_decision, device_of
from mbrl.cli.words import expanded, target
from mbrl.program import command
from mbrl.ranks import Ranks, current

log = logging.getLogger("mbrl")

WATCHING = ("evaluate", "log", "save")
"""What the schedule owes without changing what is learned: these cadences may be given anew."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """Which run a command line means.

    Attributes:
        plain: its configuration.
        folder: where it lives.
        trusted: whether its classes were chosen by the user.
        stored: the configuration that it had so far; None for a new run.
        sizes: what came with the weights that it begins from, as a line.
        ours: whether the folder is a default one.
    """

    plain: dict[str, Any]
    folder: Path
    trusted: bool
    stored: dict[str, Any] | None
    sizes: str = ""
    ours: bool = False

    def plain_json(self) -> dict[str, Any]:
        """Plain JSON, for the other processes of a run."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ResolvedRun:
        """Inverse of `plain_json`."""
        return cls(**{**plain, "folder": Path(plain["folder"])})


def run(args: list[str]) -> int:
    """Trains; the exit code is 0 at the end of the run and 75 after a requested stop."""
    ranks = current()
    with ExitStack() as held:
        processes: Any = None
        if ranks.world > 1:
            from worldmodel.processes import joined

            processes = held.enter_context(joined(rank=ranks.rank, world=ranks.world))
        resolved = ResolvedRun.of(broadcast_decision(processes, args, lambda: possible(args, ranks)))

        from mbrl.run.assemble import Configs
        from worldmodel.processes import alone

        configs = Configs.of(resolved.plain, trusted=resolved.trusted, world=ranks.world)
        processes = processes or alone()
        processes.device = device_of(configs.compute.device, ranks)
        return begin(resolved, configs, args, processes) if processes.first else join(resolved, configs, processes)


def spelled_out(args: Sequence[str]) -> list[str]:
    """`demos=DIR` as `demos_from=DIR demos=<all of its episodes>`. Raises: BadInput for what is no data set."""
    words: list[str] = []
    for word in args:
        key, _, value = word.partition("=")
        if key.lstrip("+") != "demos" or not value or value.lstrip("-").isdigit():
            words.append(word)
            continue
        from mbrl.data.dataset import DataSet, EpisodeCache

        folder = expanded(value)
        try:
            count = len(DataSet(folder, cache=EpisodeCache(0)))
        except (ValueError, OSError) as error:
            raise BadInput(f"demos must be a whole number (got {value}), or a data set: {error}") from error
        words += [f"demos_from={folder}", f"demos={count}"]
    return words


def possible(args: list[str], ranks: Ranks) -> dict[str, Any]:
    """What `args` mean, once it is known to be possible; plain JSON. Raises: ValueError."""
    from mbrl.run.assemble import Configs, recorded
    from mbrl.run.rehearsal import rehearsed, require_reach

    resolved = resolve_run(args)
    configs = Configs.of(resolved.plain, trusted=resolved.trusted, world=ranks.world)
    rehearsed(configs.rehearsal, configs.protocol)  # before there is a folder
    if configs.demos_from is not None and resolved.stored is None:
        require_reach(recorded(configs), configs.demos, key="demos_from")
    return resolved.plain_json()


def join(resolved: ResolvedRun, configs: Any, processes: Any) -> int:
    """Learns as one of several processes, beside the first."""
    from mbrl.run.assemble import assemble_other
    from mbrl.run.train import train
    from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE, Stop

    stop = Stop()
    stop.listen()
    state = assemble_other(configs, resolved.folder, stop=stop, processes=processes)
    state.begin()
    train(state)
    processes.any(False)  # nobody leaves before the first has saved: its launcher would then stop all
    return SAVED_PLEASE_REQUEUE if state.stopped else DONE


def begin(resolved: ResolvedRun, configs: Any, args: list[str], processes: Any) -> int:
    """Trains in the first process, which writes all that is written."""
    folder, own = resolved.folder, take_config_dir(args)[1]

    from mbrl.files import clear_temporaries
    from mbrl.io.checkpoint import checkpoint_paths
    from mbrl.io.lock import RunLock
    from mbrl.run.assemble import assemble
    from mbrl.run.train import train
    from mbrl.run.validate import check_recorded
    from mbrl.rundir.folder import emptied_on_failure, holds_run, point_latest, run_info, write_run
    from mbrl.rundir.origin import start_from
    from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE, Stop

    info = {**run_info(resolved.plain, argv=args), "processes": processes.world, "init": begun_from(resolved)}
    with RunLock(folder):
        new = not holds_run(folder)
        if new is not (resolved.stored is None):  # what was settled before the lock was held is no longer so
            raise ValueError(f"run_dir={folder} was begun or removed by another process just now; start again")
        clear_temporaries(folder)
        stop = Stop()
        with emptied_on_failure(folder) if new else nullcontext():
            if new:
                write_run(folder, resolved.plain, info)
            setup_logging(folder / "console.log")
            if new and resolved.ours:
                point_latest(folder)
            stop.listen()
            state = assemble(configs, folder, info=info, stop=stop, processes=processes)
            lines = [resolved.sizes]
            if info["init"] is not None and not checkpoint_paths(folder / "checkpoints"):
                lines += start_from(state.model, info["init"])
        for line in filter(None, (f"run folder: {folder}", *lines)):  # only now can nothing be refused any more
            log.info("%s", line)
        with state.logger:
            resumed = state.checkpoints.load(state.parts())
            foreign = configs.demos if configs.demos_from is not None else 0  # they know what their recorder told
            ours = [one for one in state.replay.store.stored if one.episode.number >= foreign]
            check_recorded(ours, state.collector.env.widths)
            if resolved.stored is not None:
                if resumed is not None and skip_backlog(state, resolved.stored, resolved.plain):
                    # before the new cadences are on disk: a kill must not bring the old debt back
                    state.save(owed=False)
                write_run(folder, resolved.plain, info)
            log.info("%s", describe(state, info, resumed))
            if warning := privileged(state.model.spec.obs_keys):
                log.warning("%s", warning)
            state.begin()
            try:
                train(state)
            except BaseException as error:  # a user's class may raise any
                error.add_note(saved(state.x(), folder, own))
                raise
    processes.any(False)  # the others wait here
    if state.stopped:
        again = command("train", own, run_dir=folder)
        log.info("stopped and saved at env step %d; continue with: %s", state.clock.env_steps, again)
        return SAVED_PLEASE_REQUEUE
    log.info("%s", summary(state.result(), folder, own))
    return DONE


def resolve_run(args: Sequence[str]) -> ResolvedRun:
    """Which run `args` mean: a new one as composed, or the one in run_dir, which keeps its own configuration.

    Every word that was typed is laid on the stored configuration; only a few keys may thereby change.
    """
    from mbrl.rundir.folder import allowed_classes, check_resumed, default_folder, holds_run, is_free, read_config

    args = spelled_out(args)
    named, ours = typed("train", args, "run_dir"), False
    if named is None or "${" in str(named):  # chosen by a file, by a reference, or by us
        cfg, picked = composed("train", args)
        plain = as_plain(cfg)
        named, ours = plain["run_dir"] or default_folder(plain, picked), not plain["run_dir"]
    folder = target("run_dir", str(named)).resolve()
    if holds_run(folder):
        stored = read_config(folder)
        own = take_config_dir(args)[1]
        trusted = allowed_classes(stored, own and own_folder(own))
        plain = fitted_to_model(as_plain(compose_onto(stored, "train", args)), args, trusted=trusted)
        check_resumed(stored, plain)
        return ResolvedRun(plain={**plain, "run_dir": str(folder)}, folder=folder, trusted=trusted, stored=stored)
    if not is_free(folder):
        raise ValueError(f"run_dir={folder} is not empty and holds no run; give a new or an empty folder")
    plain, sizes = compose_new("train", args)
    plain = fitted_to_model(plain, args, trusted=True)
    return ResolvedRun(
        plain={**plain, "run_dir": str(folder)}, folder=folder, trusted=True, stored=None, sizes=sizes, ours=ours
    )


def fitted_to_model(plain: dict[str, Any], args: Sequence[str], *, trusted: bool) -> dict[str, Any]:
    """`plain` with nothing owed to what its world model does without. Raises: BadInput for a word about just that."""
    from mbrl.run.lacking import spared

    refuse_idle("train", plain, args, trusted=trusted)
    return spared(plain, typed=[word.key for word in read("train", args).values], trusted=trusted)


def refuse_idle(root: str, plain: Mapping[str, Any], args: Sequence[str], *, trusted: bool) -> None:
    """Raises: BadInput for a word about what `plain` does without."""
    from mbrl.run.lacking import idle

    said = read(root, args)
    for word in (*said.variants, *said.values):
        if why := idle(plain, word.key, trusted=trusted):
            raise BadInput(f"{word.text} has no effect: {why}; leave it out")


def begun_from(resolved: ResolvedRun) -> dict[str, Any] | None:
    """Which files the run's first weights come from (`init`), as run.json records them; None: they are drawn.

    Raises: ValueError if `init` is no folder with weights, or the world model has none.
    """
    from mbrl.rundir.folder import WEIGHTLESS, read_info, world_model
    from mbrl.rundir.origin import record_of

    init = resolved.plain["init"]
    if init is None:
        return None
    if not isinstance(init, str):
        raise ValueError(f"init must be a folder, or null for fresh weights (got {init})")
    if (model := world_model(resolved.plain)) in WEIGHTLESS:
        raise ValueError(f"init={init} needs a world model that has weights; leave init out, or worldmodel={model}")
    if resolved.stored is not None:
        recorded: Mapping[str, Any] = read_info(resolved.folder)
        if "init" not in recorded:
            raise ValueError(f"{resolved.folder / 'run.json'} does not say which files init={init} were: bring it back")
        return recorded["init"]
    try:
        return record_of(Path(init))
    except ValueError as error:
        raise ValueError(f"init: {error}") from error


def skip_backlog(state: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Counts what a cadence given anew owes by now as done, so that a denser one owes no backlog; which ones it were.

    Args:
        before: the configuration that the run had so far.
        after: the one it goes on with.
    """
    old, new = before["schedule"], after["schedule"]
    changed = [name for name in WATCHING if old[name] != new[name]]
    for name in changed:
        state.clock.done[name] = getattr(state.schedule, name).owed(state.clock.env_steps, 0)
    return changed


def compose_new(root: str, args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What a new run is composed to: where it begins from weights (`init`), with their sizes where none were typed.

    Returns: the configuration, and a line that says which sizes came with the weights; empty if none did.
    Raises: BadInput; ValueError if `init` holds no weights.
    """
    plain = as_plain(compose(root, args))
    if not isinstance(plain["init"], str):
        return plain, ""

    from mbrl.rundir.folder import WEIGHTLESS, world_model
    from mbrl.rundir.sizes import with_sizes_of

    if world_model(plain) in WEIGHTLESS:
        return plain, ""
    folder, parts = Path(plain["init"]), plain.get("load", ("tokenizer", "dynamics"))
    try:
        plain, words = with_sizes_of(folder, plain, decided=decided(root, args), parts=parts)
    except ValueError as error:
        raise ValueError(f"init: {error}") from error
    return plain, f"as in init={folder}: {' '.join(words)}" if words else ""


def as_plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers; a path in it means the same from everywhere."""
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    if isinstance(plain.get("init"), str):
        plain["init"] = str(expanded(plain["init"]).resolve())
    if isinstance(plain.get("agent"), dict) and isinstance(plain["agent"].get("goal"), str):
        plain["agent"]["goal"] = str(expanded(plain["agent"]["goal"]).resolve())
    if isinstance(plain.get("demos_from"), str):
        plain["demos_from"] = str(expanded(plain["demos_from"]).resolve())
    if isinstance(plain.get("rehearsal"), list):
        plain["rehearsal"] = [str(expanded(str(folder)).resolve()) for folder in plain["rehearsal"]]
    return {str(key): value for key, value in plain.items()}


def describe(state: Any, info: Mapping[str, Any], resumed: int | None) -> str:
    """What is about to run, in a few lines."""
    from mbrl.progress import clock_time
    from mbrl.run.run import parameter_counts
    from mbrl.rundir.machine import overruled

    sizes = parameter_counts(state.model)
    beginning = (
        "new run"
        if resumed is None
        else f"continued at env step {state.clock.env_steps}, after {clock_time(state.logger.wall_s)}"
    )
    model = (
        f"{info['world_model']}, parameters: {', '.join(f'{part} {count:,}' for part, count in sizes.items())}"
        if sizes
        else f"{info['world_model']}, without parameters"
    )
    exact = "bit for bit on this machine, with this many threads" if info["device_kind"] == "cpu" else "not bit for bit"
    return (
        f"{info['task']}, protocol {info['protocol']}, seed {info['seed']}: {beginning}\n"
        f"world model: {model}\n"
        f"{info['device']}, compute.threads={info['threads']}{overruled(info['threads'])}; reproducible: {exact}"
    )


def privileged(obs_keys: Sequence[str]) -> str:
    """What must be said of a run whose world model reads more than a camera and a robot give; else nothing."""
    found = [key for key in ("state", "snapshot") if key in obs_keys]
    if not found:
        return ""
    return (
        f"WARNING: FOR DIAGNOSIS ONLY: this world model reads the simulator's {' and '.join(found)}; "
        "what is learned here is no result from pixels"
    )


def saved(x: Mapping[str, int], folder: Path, own: Path | None) -> str:
    """Where a run broke, what it has on disk, and how to go on."""
    from mbrl.io.checkpoint import checkpoint_paths

    paths = checkpoint_paths(folder / "checkpoints")
    at = f"at {' '.join(f'{name} {value}' for name, value in x.items())}"
    if not paths:
        return f"{at}; no checkpoint was saved yet in {folder}"
    return f"{at}; saved up to {paths[0].name}; `{command('train', own, run_dir=folder)}` goes on from there"


def summary(result: Mapping[str, Any], folder: Path, own: Path | None) -> str:
    """What was learned and where to look."""
    from mbrl.rundir.result import RESULT, Episodes

    counts = [len(result[name]["returns"]) for name in ("random", "final")]
    whose = "for both" if len(set(counts)) == 1 else f"in the first {min(counts)} episodes"
    lines = ["", f"what was learned (same starts and goals {whose}):"]
    for name, title in (("random", "random policy"), ("final", "trained agent")):
        episodes = Episodes.of(result[name])
        last = episodes.metrics().get("success_last")
        lines.append(f"  {title}: {episodes}" + ("" if last is None else f"; at the last decision {last:.2f}"))
    lines += [
        "where to look:",
        f"  result   {folder / RESULT}",
        f"  curves   {folder / 'eval.csv'}  {folder / 'metrics.csv'}",
        f"  videos   {folder / 'videos'} (eval-*: the agent; openloop-*: truth | imagined | difference)",
        f"  again    {command('eval', own, run=folder, episodes=20)}",
    ]
    return "\n".join(lines)
