"""Learning curves of finished runs as one picture: `python -m benchmarks.curves out=docs/curve.png runs/a runs/b`.

Runs are named by their seeds, or by their folders where two have the same seed.

Left: success over env steps; right: return over minutes of wall clock. Dots are interim evaluations, which have starts
and goals of their own, thin lines training episodes; the star is the final score, the dashed line the random policy on
the same starts and goals as the star.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mbrl.cli.errors import guarded
from mbrl.cli.words import path, words
from mbrl.report.heading import circumstances, protocol_name, task_name
from mbrl.report.record import Record, check_comparable, read_record

KEYS = {"out": path("FILE.png, and behind it run folders", needed=True)}


def draw(records: Sequence[Record], out: Path) -> None:
    """One colour per run. Raises: ValueError for a run without a final score, or of another task or protocol."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a folder's name is no formula
    from matplotlib import pyplot

    if not records:
        raise ValueError("curves of which runs? Give their folders: out=FILE.png DIR ...")
    check_comparable(records)
    tasks = {task_name(record) for record in records}
    if len(tasks) != 1:
        raise ValueError(f"runs of one task only: nothing is compared across them (got {sorted(tasks)})")
    seeds = [f"seed {record.config['seed']}" for record in records]
    names = seeds if len(set(seeds)) == len(seeds) else [record.folder.name for record in records]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for record, name in zip(records, names, strict=True):
        if record.final is None or record.random is None:
            raise ValueError(f"{record.folder} holds no result.json: the run is not at its end")
        episodes = [row for row in record.training if "train/episode/return" in row]
        for axis, x, scale, y, tag in (
            (axes[0], "env_step", 1000.0, "success", "train/episode/success"),
            (axes[1], "wall_s", 60.0, "return", "train/episode/return"),
        ):
            (line,) = axis.plot([r[x] / scale for r in episodes], [r[tag] for r in episodes], lw=0.8, alpha=0.6)
            colour = line.get_color()
            interim = [row for row in record.greedy if y in row]
            axis.plot([r[x] / scale for r in interim], [r[y] for r in interim], "o-", color=colour, label=name)
            if y in record.final and y in record.random:
                axis.plot(record.final[x] / scale, record.final[y], "*", ms=13, color=colour, mec="black", mew=0.5)
                axis.axhline(record.random[y], ls="--", lw=0.8, color=colour)
    axes[0].set(xlabel="thousand env steps", ylabel="success", ylim=(-0.05, 1.05))
    axes[1].set(xlabel="minutes", ylabel="return of an episode")
    title = "dots: greedy on interim starts, star: final score, thin: training, dashed: random policy"
    figure.legend(*axes[0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{tasks.pop()}, protocol {protocol_name(records[0])}, {circumstances(records[0])}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(args: list[str]) -> int:
    """Command line."""
    folders = [Path(word) for word in args if "=" not in word]
    out = words("benchmarks.curves", [word for word in args if "=" in word], KEYS)["out"]
    draw([read_record(folder) for folder in folders], out)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
