"""Train the same task with world models of several sizes and say what size is good for; the same command goes on.

usage: mbrl scale task.name=NAME transformer=A,B[,...] to=DIR [seeds=3] [slots=1] [fixed=data|compute] [key=value ...]
                  [starts=24] [--dry-run]

  mbrl scale task.name=door-close-v3 transformer=micro,tiny,mini,s seeds=3 slots=2 to=results/sizes
  mbrl scale task.name=door-close-v3 tokenizer=tiny,tiny16 fixed=compute to=results/codes   codes of a frame
  mbrl scale task=toy task.name=reach experiment=toy transformer=micro,tiny seeds=2 to=results/toy-sizes

The runs are those of mbrl bench (its help has slots=, gpus= and what happens when it is stopped; mbrl bench status
to=DIR works too). One key has several values: the size, told in parameters or, of tokenizers, in codes of a frame.
fixed=data gives every size the same env steps; fixed=compute as many as take the counted operations (fits and dreams)
of the first size's run.
When all have finished, each is audited (mbrl audit, from starts= moments, a minute or two a run; starts=0: not). Then:
scale.csv (a row for each run), scale.png and the sentence that follows from them.
--dry-run  prints what each size costs and every run with its expected hours, and begins nothing
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.cli.errors import DAMAGED, DONE, BadInput
from mbrl.cli.words import valued, words
from mbrl.rundir.stop import Stop

if TYPE_CHECKING:
    from mbrl.bench.plan import Cell
    from mbrl.cli.bench import Asked
    from mbrl.measure.cost import Cost

FIXED = ("data", "compute")
CSV, FIGURE = "scale.csv", "scale.png"


def run(args: list[str]) -> int:
    """Runs what is not finished, then writes the table and the figure."""
    from mbrl.bench.plan import extend_plan, joined, read_plan
    from mbrl.cli.bench import check, show_plan, work

    dry = "--dry-run" in args
    asked, fixed, starts = read_sizes([word for word in args if word != "--dry-run"])
    if not read_plan(asked.to):
        check(asked.cells)
    costs = counted(asked.cells) if dry or fixed == "compute" else {}
    if fixed == "compute":
        asked = replace(asked, cells=at_equal_compute(asked.cells, costs))
    if dry:
        print("\n".join(priced(asked.cells, costs)))
        return show_plan(joined(read_plan(asked.to), asked.cells), asked.slots)
    cells = extend_plan(asked.to, asked.cells)
    code = work(cells, asked, Stop())
    if code != DONE:
        return code
    if starts:
        audit_runs(cells, starts, args)
    return report(cells, asked.to, fixed)


def read_sizes(args: Sequence[str]) -> tuple[Asked, str, int]:
    """What `mbrl bench` would be asked for one task, what is fixed, and the starts of an audit. Raises: BadInput."""
    from mbrl.cli.audit import KEYS
    from mbrl.cli.bench import OWN, axis, read

    own = {"task.name": "", "task": "metaworld", "fixed": FIXED[0], "starts": str(KEYS["starts"].default)}
    rest = []
    for word in args:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(word)
    if not own["task.name"] or "," in own["task.name"]:
        raise BadInput(f"task.name must be the one task that every size learns (got {own['task.name'] or 'nothing'})")
    if own["fixed"] not in FIXED:
        raise BadInput(f"fixed must be data or compute (got {own['fixed']})")
    settings = [word for word in rest if "=" in word and word.partition("=")[0] not in (*OWN, "--config-dir")]
    several = [key for key, values in map(axis, settings) if len(values) > 1]
    if len(several) != 1:
        got = ", ".join(several) or "none"
        raise BadInput(f"one key must have several values, such as transformer=micro,tiny (got {got})")
    if several == ["schedule.total"] and own["fixed"] == "compute":
        raise BadInput("schedule.total is what fixed=compute chooses; give another key several values, or fixed=data")
    suite = ["suite=cpu5", f"suite.task={own['task']}", f"suite.tasks=[{own['task.name']}]"]
    starts = 0 if own["starts"] == "0" else valued("starts", own["starts"], KEYS["starts"])
    return read([*suite, *rest]), own["fixed"], starts


def counted(cells: Sequence[Cell]) -> dict[str, tuple[Mapping[str, Any], Cost]]:
    """Method -> the configuration of its runs (`Configs.groups`) and what that costs. Raises: ValueError."""
    from mbrl.cli.train import possible
    from mbrl.measure.cost import cost_of
    from mbrl.ranks import current
    from mbrl.run.assemble import Configs

    found: dict[str, tuple[Mapping[str, Any], Cost]] = {}
    for cell in cells:
        if cell.method not in found:
            plain = possible([*cell.words, f"run_dir={cell.run.absolute()}"], current())["plain"]
            groups = Configs.of(plain, trusted=True).groups
            found[cell.method] = groups, cost_of(groups)
    return found


def priced(cells: Sequence[Cell], costs: Mapping[str, tuple[Mapping[str, Any], Cost]]) -> Iterator[str]:
    """What each size costs, as a table. `cells`: with the env steps that they will take."""
    from mbrl.bench.scale import short
    from mbrl.bench.summary import text
    from mbrl.measure.cost import flops_of_run

    rows = []
    for cell in {cell.method: cell for cell in cells}.values():
        groups, cost = costs[cell.method]
        total = groups["schedule"].total
        for word in cell.words:
            total = int(word.partition("=")[2]) if word.startswith("schedule.total=") else total
        codes = groups["tokenizer"].layout.codes_future if cost.parameters else 0
        row = {"size": cell.method, "parameters": short(sum(cost.parameters.values())), "codes of a frame": str(codes)}
        row["GFLOP an update"] = f"{sum(cost.update.values()) / 1e9:.2f}"
        row["MFLOP a frame"] = f"{cost.frame / 1e6:.2f}"
        row["env steps"] = str(total)
        row["PFLOP a run"] = f"{flops_of_run(groups, cost, env_steps=total) / 1e15:.3g}"
        rows.append(row)
    return text(rows)


def at_equal_compute(cells: Sequence[Cell], costs: Mapping[str, tuple[Mapping[str, Any], Cost]]) -> list[Cell]:
    """The cells with `schedule.total` such that none takes more counted operations than the first one's size does.

    Args:
        costs: what `counted` says of them.
    Raises: ValueError where there is no such number of env steps.
    """
    from mbrl.measure.cost import flops_of_run

    totals: dict[str, int] = {}
    budget = 0.0
    for cell in cells:
        if cell.method in totals:
            continue
        groups, cost = costs[cell.method]
        protocol = groups["protocol"]
        episode, total = protocol.decisions * protocol.action_repeat * groups["compute"].rows, groups["schedule"].total
        budget = budget or flops_of_run(groups, cost, env_steps=total)
        if not budget:
            raise BadInput(f"fixed=compute needs a first size that fits or dreams (got {cell.method}); fixed=data")
        # operations only grow with env steps: the last whole episode that they allow
        steps = range(groups["schedule"].prefill, 1000 * total, episode)
        allowed = bisect_right(steps, budget, key=lambda done: flops_of_run(groups, cost, env_steps=done))
        if totals and not 0 < allowed < len(steps):
            how = "more than that for its prefill alone" if not allowed else "no more for more env steps"
            raise BadInput(
                f"fixed=compute is as many operations as {next(iter(totals))} takes: {cell.method} takes {how}"
            )
        totals[cell.method] = steps[allowed - 1] if totals else total
    return [replace(cell, words=timed(cell.words, totals[cell.method])) for cell in cells]


def timed(words: Sequence[str], total: int) -> tuple[str, ...]:
    """The words of a run of `total` env steps."""
    return (*(word for word in words if not word.startswith("schedule.total=")), f"schedule.total={total}")


def audit_runs(cells: Sequence[Cell], starts: int, args: list[str]) -> None:
    """Puts the final weights of every run that ended beside the simulator, once; says of which that cannot be done."""
    from mbrl.bench.scale import read_finished
    from mbrl.cli.audit import KEYS, write_audit
    from mbrl.cli.compose import own_folder, take_config_dir

    for run in read_finished(cells)[0]:
        cell = run.cell
        if not run.result["model"]["parameters"] or run.audit:
            continue
        print(f"audit of {cell.name}", flush=True)
        own = take_config_dir([word for word in cell.words if word.startswith("--config-dir=")])[1]
        asked = words("mbrl audit", [f"run={cell.run}", f"starts={starts}"], KEYS)
        try:
            write_audit(asked, own and own_folder(own), ["scale", *args])
        except ValueError as error:
            print(f"{cell.name} is not audited: {error}")


def report(cells: Sequence[Cell], to: Path, fixed: str) -> int:
    """Writes table and figure, and says what follows, of all runs that can be read."""
    from mbrl.bench.scale import as_csv, read_finished, sentence, sized
    from mbrl.bench.scale_figure import figure
    from mbrl.files import write_atomically

    runs, damaged = read_finished(cells)
    rows = sized(runs)
    follows, same = sentence(rows), "env steps" if fixed == "data" else "counted operations"
    write_atomically(to / CSV, as_csv(rows).encode())
    title = f"{cells[0].task}: world models of several sizes, the same {same}"
    write_atomically(to / FIGURE, figure(rows, title=title, follows=follows))
    print(follows)
    for reason in damaged.values():
        print(f"damaged, left out: {reason}", file=sys.stderr)
    print(f"written to {to / CSV} and {to / FIGURE}")
    return DAMAGED if damaged else DONE
