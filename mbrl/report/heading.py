"""What stands over the plots of a report: what was run, how it went, what makes the runs differ. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mbrl.report.groups import Group
from mbrl.report.plots import interval, letter
from mbrl.report.record import Record, Row, differences, target_name
from mbrl.statistics import estimate, mean

MOST_KEYS = 8
"""So many configuration keys that differ between runs are told."""


def heading(groups: Sequence[Group]) -> list[str]:
    """The title, then paragraphs; of several groups one each, that begins with its letter."""
    first = groups[0].first
    protocol = f"protocol {protocol_name(first)}"
    if len(groups) == 1:
        names = "" if len(groups[0].runs) == 1 else f"{', '.join(run.folder.name for run in groups[0].runs)}: "
        return [
            f"{task_name(first)}, {protocol}, {groups[0].seeds}",
            f"{names}{method(first)}; {circumstances(first)}",
            verdict(groups[0]),
        ]
    tasks = {task_name(group.first) for group in groups}
    lines = [f"{sum(len(group.runs) for group in groups)} runs: {' and '.join(sorted(tasks))}, {protocol}"]
    for number, group in enumerate(groups):
        task = f"{task_name(group.first)}, " if len(tasks) > 1 else ""
        names = ", ".join(run.folder.name for run in group.runs)
        minutes = sum(run.wall_s for run in group.runs) / len(group.runs) / 60
        text = f"{letter(number)}  {names}: {task}{method(group.first)}, {group.seeds}, {minutes:.1f} min"
        lines.append(f"{text}; {verdict(group, briefly=True)}")
    found = differences([group.first for group in groups])
    keys = [f"{key} = {' | '.join(map(shortened, values))}" for key, values in found.items()]
    differing = [text.replace(" ", "\u00a0") for text in keys[:MOST_KEYS]]  # lines break between keys where they can
    if len(keys) > MOST_KEYS:
        differing.append(f"and {len(keys) - MOST_KEYS} more keys of config.yaml")
    return [*lines, *([f"differ in: {'; '.join(differing)}"] if keys else [])]


def shortened(value: str) -> str:
    """A value that does not fill the page."""
    return value if len(value) <= 40 else value[:37] + "..."


def task_name(record: Record) -> str:
    """The task."""
    return str(record.config["task"]["name"])


def protocol_name(record: Record) -> str:
    """The protocol, with what was changed in it."""
    protocol = record.config.get("protocol", {})
    changed = protocol.get("deviations") or []
    return str(protocol.get("name", "unknown")) + (f" but {', '.join(map(str, changed))}" if changed else "")


def method(record: Record) -> str:
    """Agent, world model, and what it was given; nobody shall overlook that the model is the simulator."""
    config = record.config
    model, size = config.get("worldmodel", {}), config.get("transformer", {})
    text = f" ({size['layers']} layers of {size['hidden']})" if {"layers", "hidden"} <= size.keys() else ""
    name = "ORACLE (the simulator itself)" if record.oracle else f"{target_name(model)}{text}"
    more = " with proprioception" if model.get("proprio") else ""
    demos = f", {config['demos']} demonstrations" if config.get("demos") else ""
    return f"agent {target_name(config.get('agent', {}))}, world model {name}{more}{demos}"


def circumstances(record: Record) -> str:
    """Machine, time and code, as far as they are known."""
    info = record.info
    threads = info.get("threads")
    parts = [
        str(info.get("device", "")),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
        f"{record.wall_s / 60:.1f} min",
        f"commit {info['commit'][:7]}{'-dirty' if info['commit'].endswith('-dirty') else ''}"
        if info.get("commit")
        else "",
    ]
    return ", ".join(part for part in parts if part)


def verdict(group: Group, *, briefly: bool = False) -> str:
    """The final score, or the newest interim one, and the random policy's; of several seeds their mean."""
    if len(group.runs) > 1:
        return over_seeds(group)
    record = group.first
    if record.final:
        row = record.final
        at = f"of the weights of step {row['weights_step']:.0f}"
        text = f"final score {at}: {score(row)}, {row.get('episodes', 0):.0f} greedy episodes"
    elif record.greedy:
        row = record.greedy[-1]
        at = f"step {row['env_step']:.0f}"
        text = f"newest interim score, {at}: {score(row)}, {row.get('episodes', 0):.0f} greedy episodes"
    else:
        return "no greedy evaluation yet"
    if briefly:
        return f"{'final' if record.final else 'not finished'}, {at}: {score(row)}"
    return f"{text}; random policy: {score(record.random)}" if record.random else text


def over_seeds(group: Group) -> str:
    """The mean of the final scores of several seeds with its 95 % interval over them, and how many are not so far."""
    done = [run.final for run in group.runs if run.final]
    if not done:
        return f"none of {len(group.runs)} seeds is finished"
    parts = []
    for name, digits in (("success", 2), ("return", 0)):
        if all(name in row for row in done):
            found = estimate([np.array([row[name] for row in done])], mean)
            spread = f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if len(done) > 1 else ""
            parts.append(f"{name} {found.value:.{digits}f}{spread}")
    many = f"{len(done)} seeds" if len(done) == len(group.runs) else f"{len(done)} of {len(group.runs)} seeds"
    return f"final scores of {many}: {', '.join(parts)}"


def score(row: Row) -> str:
    """`success 0.85 [0.64, 0.95], return 1200 ± 31`, which no line break parts."""
    success = f"success {row['success']:.2f}" if "success" in row else "success unknown"
    if {"success_low", "success_high"} <= row.keys():
        success += f" [{row['success_low']:.2f}, {row['success_high']:.2f}]"
    down, _ = interval(row, "return")
    return f"{success}, return {row['return']:.0f}\u00a0±\u00a0{down:.0f}" if "return" in row else success
