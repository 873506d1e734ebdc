"""Size against sample efficiency: what runs that differ in the world model's size cost, and what they reached.

The size is the number of parameters; of tokenizers, which differ in it by little, the number of codes of a frame.

Reads finished runs; one row for each, one line of text over all.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mbrl.bench.plan import Cell
from mbrl.files import DamagedFile
from mbrl.measure.cost import Cost, cost_of
from mbrl.measure.verdict import SCHEMA
from mbrl.report.record import Row, read_record, read_table
from mbrl.run.restore import configs_of
from mbrl.rundir.folder import read_info
from mbrl.rundir.result import Episodes, read_result
from mbrl.rundir.schema import check_schema

LEVELS = (0.5, 0.8)
"""Of the score, that a run is timed to."""
SURE = 0.05
"""Below this p a rank correlation is called one."""


@dataclass(frozen=True, kw_only=True)
class Sized:
    """One finished run.

    Attributes:
        size: what its method is called.
        parameters: of all parts of the world model, and in them those of the part that predicts.
        codes: codes of an imagined frame; 0 for a model without.
        update_gflop: of one update of every part, over its batch.
        frame_mflop: of an imagined frame, one row.
        score: of the final evaluation: success, or where a world knows none return over the best run's.
        second_half: mean score of the interim evaluations in the second half.
        steps_50, steps_80: env steps of the first interim evaluation with so much of the score; nan where none had.
        cross_entropy: nats of a held-out code in the newest measurement; nan where it was not measured.
        reward_error: root mean square after five imagined frames, held out.
        ranking: correlation of imagined and true returns of sequences of actions within a start, by `mbrl audit`.
        return_r2: R2 of imagined returns over all starts and sequences, by the same; nan where it was not audited.
        wall_s: seconds worked.
    """

    size: str
    seed: int
    parameters: int
    dynamics: int
    codes: int
    update_gflop: float
    frame_mflop: float
    env_steps: int
    score: float
    second_half: float
    steps_50: float
    steps_80: float
    cross_entropy: float
    reward_error: float
    ranking: float
    return_r2: float
    wall_s: float


class Finished(NamedTuple):
    """What is read of one run. `interim`: the agent's evaluations but the final one, not the random policy's."""

    cell: Cell
    result: Mapping[str, Any]
    final: Mapping[str, float]
    configs: Mapping[str, Any]
    metrics: Mapping[str, float]
    audit: Mapping[str, float]
    interim: Sequence[Row]


def read_finished(cells: Iterable[Cell]) -> tuple[list[Finished], dict[Path, str]]:
    """The finished runs among the cells; and of each run folder that cannot be read the reason."""
    found, damaged = [], {}
    for cell in cells:
        try:
            if not (result := read_result(cell.run)):
                continue
            found.append(
                Finished(
                    cell=cell,
                    result=result,
                    final=Episodes.of(result["final"]).metrics(),
                    configs=configs_of(cell.run).groups,
                    metrics=_newest(read_table(cell.run / "metrics.csv")),
                    audit=audit_of(cell.run, result),
                    interim=read_record(cell.run).greedy,
                )
            )
        except (DamagedFile, ValueError, OSError) as error:
            damaged[cell.run] = " ".join(str(error).split())
    return found, damaged


def sized(runs: Sequence[Finished]) -> list[Sized]:
    """The rows of finished runs of one task, smallest model first. Raises: ValueError."""
    if not runs:
        return []
    knows = all("success" in run.final for run in runs)
    column, best = ("success", 1.0) if knows else ("return", max(run.final["return"] for run in runs))
    if best <= 0:
        raise ValueError(f"the best return of these runs must be > 0 to be what scores are parts of (got {best:g})")
    costs: dict[str, Cost] = {}
    for run in runs:
        costs.setdefault(run.cell.method, cost_of(run.configs))
    rows = [_row(run, costs[run.cell.method], column, best) for run in runs]
    return sorted(rows, key=lambda row: (row.parameters, row.size, row.seed))


def _row(run: Finished, cost: Cost, column: str, best: float) -> Sized:
    result, parts = run.result, run.result["model"]["parameters"]
    curve = [(row["env_step"], row[column] / best) for row in run.interim if column in row]
    reached = {level: next((step for step, value in curve if value >= level), math.nan) for level in LEVELS}
    late = [value for step, value in curve if step >= result["env_steps"] / 2]
    return Sized(
        size=run.cell.method,
        seed=run.cell.seed,
        parameters=sum(parts.values()),
        dynamics=parts.get("dynamics", 0),
        codes=run.configs["tokenizer"].layout.codes_future if parts else 0,
        update_gflop=sum(cost.update.values()) / 1e9,
        frame_mflop=cost.frame / 1e6,
        env_steps=result["env_steps"],
        score=run.final[column] / best,
        second_half=float(np.mean(late)) if late else math.nan,
        steps_50=reached[0.5],
        steps_80=reached[0.8],
        cross_entropy=run.metrics.get("heldout/codes", math.nan),
        reward_error=run.metrics.get("heldout/reward_rmse_5", math.nan),
        ranking=run.audit.get("ranking", math.nan),
        return_r2=run.audit.get("return", math.nan),
        wall_s=result["wall_s"],
    )


def audit_of(folder: Path, result: Mapping[str, Any]) -> dict[str, float]:
    """The audit of a run's final weights: the number of each check that could be made; empty where there is none.

    Raises: DamagedFile.
    """
    audit = read_info(folder / "audit", "audit.json")
    try:
        if audit:
            check_schema(audit, SCHEMA)
    except ValueError as error:
        raise DamagedFile(f"{folder / 'audit' / 'audit.json'}: {error}") from error
    if not audit or any(audit[name] != result[name] for name in ("env_steps", "weights_step")):
        return {}
    return {check["name"]: check["value"] for check in audit["checks"] if check["value"] is not None}


def _newest(rows: Sequence[Row]) -> dict[str, float]:
    """The last value that each column has."""
    return {name: value for row in rows for name, value in row.items()}


def as_csv(rows: Sequence[Sized]) -> str:
    """One line for each run; an empty cell is what was not reached, or not measured."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(Sized.__dataclass_fields__)
    for row in rows:
        values = asdict(row).values()
        lines.writerow(["" if isinstance(one, float) and math.isnan(one) else one for one in values])
    return text.getvalue()


def sentence(rows: Sequence[Sized]) -> str:
    """What follows: whether score, steps to 80 % and model quality change with size, over all runs.

    Rank correlations (Spearman) with the size, and whether they can be told from chance. Cross-entropies of different
    tokenizers are of different codes, so nothing is said of them.
    """
    size_of = size_field(rows)
    sizes = sorted({getattr(row, size_of) for row in rows})
    if len(sizes) < 2:
        return "Fewer than two sizes have finished: nothing follows."
    what = "parameters" if size_of == "parameters" else "codes of a frame"
    runs = f"{short(sizes[0])} to {short(sizes[-1])} {what}, {len(sizes)} sizes, {len(rows)} runs"
    means = {size: float(np.mean([row.score for row in rows if getattr(row, size_of) == size])) for size in sizes}
    found = [f"final score {means[sizes[0]]:.2f} at the smallest and {means[sizes[-1]]:.2f} at the largest"]
    judged = {
        "the final score": "score",
        "the second half's mean score": "second_half",
        "held-out cross-entropy": "cross_entropy",
        "held-out reward error": "reward_error",
        "the ranking of actions (audit)": "ranking",
    }
    if size_of == "codes":
        del judged["held-out cross-entropy"]
    for name, field in judged.items():
        pairs = [(getattr(row, size_of), getattr(row, field)) for row in rows if not math.isnan(getattr(row, field))]
        found.append(f"{name} {change(pairs)}")
    reached = sum(not math.isnan(row.steps_80) for row in rows)
    return f"{runs}: {'; '.join(found)}; {reached} of {len(rows)} runs had 0.8 of the score at an interim evaluation."


def size_field(rows: Sequence[Sized]) -> str:
    """The field of `Sized` that the sizes are: `codes` where the runs have tokenizers of several, else `parameters`."""
    codes = {row.codes for row in rows}
    return "codes" if len(codes) > 1 and 0 not in codes else "parameters"


def change(pairs: Sequence[tuple[float, float]]) -> str:
    """Whether y changes with x: `grows with size (rank correlation +0.83, p = 0.001, 12 runs)`."""
    x, y = (np.asarray(side) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0), np.zeros(0))
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return f"is the same everywhere, or too few have it to tell ({len(x)} runs)"
    test = stats.spearmanr(x, y)
    rho, p = float(test.statistic), float(test.pvalue)
    what = "does not change with size, as far as these runs tell"
    if p < SURE:
        what = "grows with size" if rho > 0 else "falls with size"
    return f"{what} (rank correlation {rho:+.2f}, p = {p:.3f}, {len(x)} runs)"


def short(count: float) -> str:
    """A number of parameters, or of codes, as one says it.

    >>> short(683_365), short(14_347_365), short(16)
    ('683k', '14.3M', '16')
    """
    if count < 1e3:
        return f"{count:.0f}"
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"
