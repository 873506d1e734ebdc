"""Run a suite of tasks with one or several methods and seeds, a run for each; the same command goes on.

usage: mbrl bench suite=NAME to=DIR [agent=A,B] [seeds=3] [slots=1] [key=value[,value] ...] [--dry-run]
       mbrl bench to=DIR                              goes on with what was planned there
       mbrl bench status|report|retry|clean to=DIR

  mbrl bench suite=cpu5 experiment=demos,mbpo seeds=3 slots=2 to=results/mine
  mbrl bench suite=mw6 agent=dreamer_cpu transformer=micro,tiny to=results/sizes --dry-run
  mbrl bench suite=toy seeds=2 slots=2 to=results/toy                           minutes, to see how it goes
  mbrl results from=results/mine show=methods                                   the table (mbrl results --help)

Suites are the files of configs/suite; suite.tasks=[a,b] takes some of its tasks. Every other word goes to each run, as
mbrl train takes it. A word of several values with commas between is an axis: every value is a method of its own.
slots= runs at once, each a process with compute.threads=1 unless you say otherwise; gpus=[0,1] shares out CUDA devices.
Ctrl-C or SIGTERM: all runs save and leave (exit code 75). A run that fails is shown with the line that says why, and
the others go on (exit code 1). Two such commands on one folder never do the same run twice.
launcher=slurm hands the plan to SLURM instead, sbatch="--partition=gpu --time=08:00:00" are options of its
job; a task that comes to the end of its time saves, is queued again and goes on.
--dry-run  prints the plan and begins nothing
status     how far every run is
report     writes DIR/report.html: tables, curves, videos, every run; one file that needs nothing beside it
           (a run whose files are damaged is named and left out of the tables; exit code 3)
retry      lets the failed runs go on from their last checkpoints, once mbrl bench to=DIR is called again
clean      deletes the failed runs, which then begin anew
"""

from __future__ import annotations

import itertools
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.cli.errors import BUG, DAMAGED, DONE, BadInput, did_you_mean
from mbrl.cli.words import place, target, words
from mbrl.program import command
from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE, Stop

if TYPE_CHECKING:
    from mbrl.bench.plan import Cell

OWN = ("suite", "to", "seeds", "slots", "gpus", "launcher", "sbatch", "only")
"""Keys of the benchmark itself; all others are of its runs."""
GOING_ON = tuple(key for key in OWN if key not in ("suite", "seeds"))
"""Those of a call that goes on with a plan."""
LAUNCHERS = ("local", "slurm")
GIVEN = {"seed": "seeds=N", "run_dir": "to=DIR", "task": "suite=NAME", "task.name": "suite=NAME suite.tasks=[...]"}
"""Keys of a run that the plan decides -> what to write instead."""
NAMING = ("agent", "experiment", "worldmodel", "tokenizer", "transformer")
"""Groups whose chosen variants always name the method; other words do where they are axes."""
KEYS = {"to": place("to", "the folder of a benchmark", needed=True)}


@dataclass(frozen=True)
class Asked:
    """What a command line means.

    Attributes:
        cells: every run that it asks for; none where it goes on with a plan.
        launcher: `local` or `slurm`.
        sbatch: options of SLURM's job.
        only: the place in the plan of the one run that is meant; None: all.
    """

    to: Path
    slots: int
    gpus: list[int]
    cells: list[Cell]
    launcher: str
    sbatch: list[str]
    only: int | None


def run(args: list[str]) -> int:
    """Does what is asked of a benchmark."""
    if args and args[0] in CARE:
        to: Path = words(f"mbrl bench {args[0]}", args[1:], KEYS)["to"]
        return CARE[args[0]](planned(to), to)
    stop = Stop()
    if any(word.startswith("only=") for word in args):
        stop.listen()  # a task of SLURM's that is warned while it still reads and imports is queued again as well
    dry = "--dry-run" in args
    asked = read([word for word in args if word != "--dry-run"])

    from mbrl.bench.plan import extend_plan, joined, read_plan

    new = joined(read_plan(asked.to), asked.cells)
    check(new[len(read_plan(asked.to)) :], elsewhere=asked.launcher == "slurm")
    if dry:
        return show_plan(new, asked.slots)
    cells = extend_plan(asked.to, asked.cells) if asked.cells else planned(asked.to)
    return work(cells, asked, stop)


def read(args: list[str]) -> Asked:
    """What `args` ask for. Raises: BadInput."""
    from mbrl.bench.suite import Suite
    from mbrl.cli.compose import compose, take_config_dir
    from mbrl.cli.train import as_plain
    from mbrl.rundir.build import make

    typed, own = take_config_dir(args)
    mine = [word for word in typed if word.partition("=")[0].partition(".")[0] in OWN]
    rest = [word for word in typed if word not in mine]
    options = [word for word in mine if word.startswith("sbatch=")]  # of another grammar than ours
    cfg = as_plain(compose("bench", [word for word in mine if word not in options], own))
    if not cfg["to"]:
        raise BadInput(f"to= is missing: {KEYS['to'].what}")
    to = target("to", str(cfg["to"]))
    for name in ("seeds", "slots"):
        if cfg[name] < 1:
            raise BadInput(f"{name} must be >= 1 (got {cfg[name]})")
    if wrong := [gpu for gpu in cfg["gpus"] if type(gpu) is not int or gpu < 0]:
        raise BadInput(f"gpus must be whole numbers >= 0 (got {wrong[0]}); for example gpus=[0,1]")
    if cfg["only"] is not None and type(cfg["only"]) is not int:
        raise BadInput(f"only must be a whole number, the place of a run in the plan (got {cfg['only']})")
    cells: list[Cell] = []
    if any(word.startswith("suite=") for word in mine):
        suite: Suite = make(cfg["suite"], "suite", trusted=False)
        more = [] if own is None else [f"--config-dir={own.resolve()}"]
        cells = cells_of(to, suite, rest, seeds=cfg["seeds"], more=more)
    elif lost := [word for word in typed if word.partition("=")[0] not in GOING_ON]:
        if meant := did_you_mean(lost[0], CARE):
            raise BadInput(f"{lost[0]} is not understood{meant}")
        raise BadInput(f"{lost[0]} needs suite=NAME: without it mbrl bench to=DIR goes on with what is planned there")
    if cfg["launcher"] not in LAUNCHERS:
        raise BadInput(f"launcher must be {' or '.join(LAUNCHERS)} (got {cfg['launcher']})")
    if options and cfg["launcher"] != "slurm":
        raise BadInput(f"sbatch has no effect with launcher={cfg['launcher']}; leave it out or give launcher=slurm")
    try:
        sbatch = [option for word in options for option in shlex.split(word.partition("=")[2])]
    except ValueError as error:
        raise BadInput(f"sbatch must be options of sbatch, each quote closed (got {options[0]}): {error}") from error
    return Asked(to, cfg["slots"], cfg["gpus"], cells, cfg["launcher"], sbatch, cfg["only"])


def cells_of(to: Path, suite: Any, rest: Sequence[str], *, seeds: int, more: Sequence[str]) -> list[Cell]:
    """Every (task, method, seed); the seeds are outermost, so that all methods have one before any has two."""
    from mbrl.bench.plan import cell_in, method_name

    axes = dict(map(axis, rest))
    if len(axes) < len(rest):
        raise BadInput("a key is given twice; write it once, with commas between its values")
    if wrong := next((key for key in axes if key in GIVEN), None):
        raise BadInput(f"{wrong}= is not for a benchmark; write {GIVEN[wrong]}")
    axes.setdefault("compute.threads", ["1"])
    common = [word for word in suite.words if word.partition("=")[0] not in axes]
    naming = [key for key in NAMING if key in axes]
    naming += sorted(key for key, values in axes.items() if key not in NAMING and len(values) > 1)
    found = []
    for seed, task in itertools.product(range(seeds), suite.tasks):
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            said = [*common, *(f"{key}={value}" for key, value in chosen.items())]
            said += [f"task={suite.task}", f"task.name={task}", f"seed={seed}", *more]
            method = method_name([f"{key}={chosen[key]}" for key in naming])
            try:
                found.append(cell_in(to, task=task, method=method, seed=seed, words=said))
            except ValueError as error:
                raise BadInput(f"suite.tasks: {error}") from error
    if len({cell.folder for cell in found}) < len(found):
        raise BadInput("two methods would have the same name; give them one call and one folder (to=) each")
    return found


def axis(word: str) -> tuple[str, list[str]]:
    """The key and the values of a word, by Hydra's grammar of sweeps."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    if not equals or not key:
        raise BadInput(f"{word} is not a setting; write key=value, for example agent=dreamer_cpu,mbpo_cpu")
    try:
        override = OverridesParser.create().parse_override(word)
        values = [str(one) for one in override.sweep_string_iterator()] if override.is_sweep_override() else [value]
    except (HydraException, ValueError) as error:
        raise BadInput(f"cannot read {word}; write key=value, or key=a,b for two methods") from error
    return key, values


def check(cells: Sequence[Cell], *, elsewhere: bool = False) -> None:
    """That `mbrl train` will take the words: each method's with its first task, and every task's name.

    Args:
        elsewhere: the runs' machines are others than this one, which may have no GPU.
    Raises: ValueError, one line, before anything is written.
    """
    from mbrl.cli.train import possible
    from mbrl.ranks import current
    from mbrl.rundir.build import make

    first: dict[str, Any] = {}
    for cell in cells:
        if cell.method not in first:
            line = [*cell.words, f"run_dir={cell.run.absolute()}"]
            if elsewhere:
                line = [*(word for word in line if not word.startswith("compute.device=")), "compute.device=cpu"]
            first[cell.method] = possible(line, current())["plain"]["task"]
        make({**first[cell.method], "name": cell.task}, "task", trusted=True)


def planned(to: Path) -> list[Cell]:
    """The cells that are planned in a folder. Raises: BadInput where there are none."""
    from mbrl.bench.plan import read_plan

    if not (cells := read_plan(to)):
        raise BadInput(f"to={to} holds no benchmark; {command('bench', suite='NAME', to=to)} plans one")
    return cells


def work(cells: Sequence[Cell], asked: Asked, stop: Stop) -> int:
    """Runs what is left to do, until that is done or `stop` is asked for."""
    from mbrl.bench.plan import State
    from mbrl.bench.queue import Queue
    from mbrl.bench.slurm import requeue
    from mbrl.bench.table import Screen, states_of

    if asked.only is not None:
        if not 0 <= asked.only < len(cells):
            raise BadInput(f"only must be in 0..{len(cells) - 1}, the places of the plan (got {asked.only})")
        cells = [cells[asked.only]]
    todo = [cell for cell, state in states_of(cells).items() if state not in (State.DONE, State.FAILED)]
    if asked.launcher == "slurm":
        return launch(cells, todo, asked)
    stop.listen()
    screen = Screen(cells, slots=asked.slots, stream=sys.stdout)
    finished = Queue(todo, slots=asked.slots, stop=stop, watcher=screen, gpus=asked.gpus).work()
    screen.close()
    states = states_of(cells)
    if not finished:
        again = stop.number in (signal.SIGUSR1, signal.SIGUSR2) and requeue()  # TERM is scancel, or SLURM's own requeue
        print("stopped; queued again" if again else f"stopped; {command('bench', to=asked.to)} goes on")
        return SAVED_PLEASE_REQUEUE
    print(f"the table: {command('results', **{'from': asked.to})} show=methods")
    if failed := {cell: state for cell, state in states.items() if state is State.FAILED}:
        show_table(failed)
        print(f"then: {command('bench retry', to=asked.to)} (or clean), and the same command again")
    return BUG if failed else DONE


def launch(cells: Sequence[Cell], todo: Sequence[Cell], asked: Asked) -> int:
    """Hands what is left to do to SLURM, and does not wait for it."""
    from mbrl.bench.slurm import submit

    if not todo:
        print("all runs have ended")
        return DONE
    places = [place for place, cell in enumerate(cells) if cell in todo]
    job = submit(asked.to, places, slots=asked.slots, options=asked.sbatch)
    print(f"job {job}: {len(todo)} runs, {asked.slots} at once; how far: {command('bench status', to=asked.to)}")
    return DONE


def show_plan(cells: Sequence[Cell], slots: int) -> int:
    """Every run, with the hours that it is expected to take."""
    from mbrl.bench.plan import Pace, State
    from mbrl.bench.table import counted, left, states_of

    states = states_of(cells)
    pace = Pace().learn(cell for cell, state in states.items() if state is State.DONE)
    wide = max(len(cell.name) for cell in cells)
    for cell, state in states.items():
        seconds = pace.seconds(cell)
        hours = "unknown" if seconds is None else f"{seconds / 3600:.2f} h"
        print(f"  {state:8}{cell.name.ljust(wide)}  {hours:>9}  {' '.join(cell.words)}")
    print("; ".join(filter(None, (counted(states), left(states, slots, pace)))))
    return DONE


def show_table(states: Any) -> None:
    """The state of some cells."""
    from mbrl.bench.table import lines

    print("\n".join(lines(states)))


def status(cells: Sequence[Cell], to: Path) -> int:
    """How far every run is."""
    from mbrl.bench.table import counted, states_of

    states = states_of(cells)
    show_table(states)
    print(counted(states))
    return DONE


def report(cells: Sequence[Cell], to: Path) -> int:
    """Writes the page about a benchmark, done or not."""
    from mbrl.bench.page import page
    from mbrl.bench.plan import State
    from mbrl.bench.published import read_published
    from mbrl.bench.results import read_runs
    from mbrl.bench.table import states_of
    from mbrl.cli.compose import packaged_configs
    from mbrl.files import write_atomically

    runs, damaged = read_runs(cell.run for cell, state in states_of(cells).items() if state is State.DONE)
    score = "success" if all(run.value("success") is not None for run in runs) else "reward"
    published = list(read_published(packaged_configs() / "published").values())
    text = page(f"Benchmark {to.resolve().name}", cells, runs, published, score, damaged=damaged)
    write_atomically(to / "report.html", text.encode())
    for reason in damaged.values():
        print(f"damaged, left out: {reason}", file=sys.stderr)
    print(f"written to {to / 'report.html'}")
    return DAMAGED if damaged else DONE


def retry(cells: Sequence[Cell], to: Path) -> int:
    """Lets failed runs go on."""
    from mbrl.bench.plan import retried

    return on_failed(cells, retried, "will go on")


def clean(cells: Sequence[Cell], to: Path) -> int:
    """Deletes failed runs."""
    from mbrl.bench.plan import cleaned

    return on_failed(cells, cleaned, "deleted, will begin anew")


def on_failed(cells: Sequence[Cell], act: Any, said: str) -> int:
    """`act` on every failed cell."""
    from mbrl.bench.plan import State
    from mbrl.bench.table import states_of

    done = [cell for cell, state in states_of(cells).items() if state is State.FAILED and act(cell)]
    for cell in done:
        print(f"  {cell.name}: {said}")
    print(f"{len(done)} failed run{'s' * (len(done) != 1)}")
    return DONE


CARE = {"status": status, "report": report, "retry": retry, "clean": clean}
"""What can be asked of a benchmark that is there."""
