"""Learning curves of finished runs as one picture: `python -m benchmarks.curves out=docs/curve.png runs/a runs/b`.

Runs are named by their seeds, or by their folders where two have the same seed.

Left: success over env steps; right: return over minutes of wall clock. Dots are interim evaluations, which have starts
and goals of their own, thin lines training episodes; the star is the final score, the dashed line the random policy on
the same starts and goals as the star.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of numbers; empty cells are left out."""
    with path.open() as lines:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(lines)]


def draw(folders: list[Path], out: Path) -> None:
    """One colour per run. Raises: ValueError if a folder holds no finished evaluation, or the runs differ in task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    infos = [json.loads((folder / "run.json").read_text()) for folder in folders]
    told = {(info["task"], info["protocol"]) for info in infos}
    if len(told) != 1:
        raise ValueError(f"runs of one task and protocol only: nothing is compared across them (got {sorted(told)})")
    seeds = [f"seed {info['seed']}" for info in infos]
    names = seeds if len(set(seeds)) == len(seeds) else [folder.name for folder in folders]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for folder, name in zip(folders, names, strict=True):
        scores, training = read(folder / "eval.csv"), read(folder / "metrics.csv")
        random_policy, final = scores[0], scores[-1]
        greedy = [row for row in scores[1:] if "weights_step" not in row]
        episodes = [row for row in training if "train/episode/return" in row]
        for axis, x, scale, y, tag in (
            (axes[0], "env_step", 1000.0, "success", "train/episode/success"),
            (axes[1], "wall_s", 60.0, "return", "train/episode/return"),
        ):
            (line,) = axis.plot([r[x] / scale for r in episodes], [r[tag] for r in episodes], lw=0.8, alpha=0.6)
            colour = line.get_color()
            axis.plot([r[x] / scale for r in greedy], [r[y] for r in greedy], "o-", color=colour, label=name)
            axis.plot(final[x] / scale, final[y], "*", ms=13, color=colour, mec="black", mew=0.5)
            axis.axhline(random_policy[y], ls="--", lw=0.8, color=colour)
    axes[0].set(xlabel="thousand env steps", ylabel="success", ylim=(-0.05, 1.05))
    axes[1].set(xlabel="minutes", ylabel="return of an episode")
    title = "dots: greedy on interim starts, star: final score, thin: training, dashed: random policy"
    figure.legend(*axes[0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=5, fontsize=8)
    task, protocol = told.pop()
    figure.suptitle(f"{task}, protocol {protocol}, {infos[0]['device']}, {infos[0]['threads']} threads")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(words: list[str]) -> int:
    """Command line."""
    named = [word.partition("=")[2] for word in words if word.startswith("out=")]
    folders = [Path(word) for word in words if "=" not in word]
    if not named or not folders:
        print("usage: python -m benchmarks.curves out=FILE.png RUN_FOLDER ...")
        return 2
    draw(folders, Path(named[-1]))
    print(f"written to {named[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
