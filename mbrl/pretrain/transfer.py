"""Zero- and few-shot transfer: pre-trained weights, adapted to a few episodes of new data, against none.

All modes of a seed learn from the same episodes with the same number of updates, and are judged on the same clips of
episodes that nobody learned from.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.data.source import DataConfig
from mbrl.files import MOST_ROWS, read_plain, write_atomically
from mbrl.pretrain.assemble import begin_from, ready, training_source
from mbrl.pretrain.assemble import built_model as build_model
from mbrl.pretrain.configs import Configs, models
from mbrl.pretrain.side_by_side import draw_kept, keep
from mbrl.progress import told
from mbrl.rundir.build import make
from mbrl.rundir.sharing import pieces
from worldmodel.evaluation.lpips import load_lpips
from worldmodel.evaluation.predict import Evaluation, Judge, evaluate
from worldmodel.evaluation.predictors import Dreaming
from worldmodel.processes import Processes
from worldmodel.seeds import Seeds
from worldmodel.training.updater import UpdaterConfig

log = logging.getLogger("mbrl")

GROUPS = ("stage", "data", "tokenizer", "transformer", "worldmodel", "compute")
MODES = ("zero", "tokenizer", "transformer", "full", "scratch")
"""`zero`: as pre-trained; `tokenizer`: that part alone, codebooks frozen; `transformer`: that part alone; `full`: both;
`scratch`: both, from fresh weights."""
JUDGED = 0
"""Seed of the clips that everybody is judged on."""
ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What is to be compared (see configs/transfer.yaml), checked."""

    configs: Configs
    episodes: int
    modes: tuple[str, ...]
    seeds: tuple[int, ...]
    updates: int
    clips: int
    videos: int
    lpips: bool

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Transfer:
        """From plain containers. Raises: ValueError naming the key."""
        groups = {name: make(plain[name], name, trusted=True) for name in GROUPS}
        for complaint in (*models(groups), *pieces("stage", groups, 1)):
            raise ValueError(complaint)
        if groups["stage"].tokenizer is None or groups["stage"].dynamics is None:
            raise ValueError("stage must train both parts (modes choose among them); use stage=both")
        unknown = [mode for mode in plain["modes"] if mode not in MODES]
        if unknown or not plain["modes"]:
            raise ValueError(f"modes must be some of {', '.join(MODES)} (got {unknown})")
        for name in ("episodes", "updates", "clips"):
            if plain[name] < 1:
                raise ValueError(f"{name} must be >= 1 (got {plain[name]})")
        if plain["clips"] < 2:
            raise ValueError("clips must be >= 2: the actions of another clip are judged too (got 1)")
        if plain["videos"] < 0:
            raise ValueError(f"videos must be >= 0 (got {plain['videos']})")
        if not plain["seeds"] or any(not 0 <= seed < 2**31 for seed in plain["seeds"]):
            raise ValueError(f"seeds must be a list of numbers in [0, 2^31) (got {plain['seeds']})")
        groups["data"] = dataclasses.replace(groups["data"], episodes=plain["episodes"])
        configs = Configs(
            seed=0, keep=2, init=plain["init"], load=("tokenizer", "dynamics"), actions=True, groups=groups
        )
        return cls(
            configs=configs,
            episodes=plain["episodes"],
            modes=tuple(plain["modes"]),
            seeds=tuple(plain["seeds"]),
            updates=plain["updates"],
            clips=plain["clips"],
            videos=plain["videos"],
            lpips=plain["lpips"],
        )


def check(transfer: Transfer, plain: Mapping[str, Any], folder: Path) -> None:
    """Whatever is wrong shows before a folder is made, and before hours of work.

    Raises: ValueError where data or weights do not fit, or `folder` holds rows of another protocol.
    """
    stored(folder, protocol_of(plain))
    if transfer.lpips:
        load_lpips()
    ready(transfer.configs)
    held_out(transfer)
    trained(transfer, "zero", 0)


def run(transfer: Transfer, plain: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Fills the table, one row per mode and seed (`zero`: one in all); rows that `folder` holds are not made again."""
    ready(transfer.configs)
    clips, protocol = held_out(transfer), protocol_of(plain)
    rows = stored(folder, protocol)
    for seed in transfer.seeds:
        for mode in transfer.modes:
            once = mode == "zero"  # nothing is learned there, so a seed changes nothing
            if any(row["mode"] == mode and (once or row["seed"] == seed) for row in rows):
                continue
            model = trained(transfer, mode, seed)
            found = judged(transfer, model, clips)
            rows.append({"mode": mode, "seed": seed, **numbers(found)})
            log.info("%s", summary(rows[-1]))
            write(folder, rows, protocol)
            if found.videos and [row["mode"] for row in rows].count(mode) == 1:  # the first seed of each mode is drawn
                keep(folder, mode, found.videos, num_observed=Dreaming(model).num_observed)
                draw_kept(folder, [name for name in MODES if any(row["mode"] == name for row in rows)])
    return rows


def held_out(transfer: Transfer) -> Any:
    """The clips that everybody is judged on."""
    configs, seeds = transfer.configs, Seeds(JUDGED)
    spec = build_model(configs, seeds).spec
    data: DataConfig = configs.data
    validation = data.build(spec=spec, seeds=seeds, split="validation")
    return validation.clips(transfer.clips, configs.stage.dynamics.length, stream="transfer", draw=0)


def trained(transfer: Transfer, mode: str, seed: int) -> Any:
    """The model of one mode, adapted to the episodes of this seed."""
    configs, seeds = transfer.configs, Seeds(seed)
    processes = Processes(rank=0, world=1, device=_device(configs))
    model = build_model(configs, seeds).to(processes.device)
    if mode != "scratch":
        lines = begin_from(model, Path(str(configs.init)).expanduser(), configs.load)
        log.debug("%s", "; ".join(lines))
    stage = stage_of(mode, configs.stage)
    if stage is None:
        return model.eval()
    sources = {part: training_source(configs, model.spec, seeds, part, None) for part in stage.parts}
    updater = stage.build(model=model, seeds=seeds, processes=processes, sharding="ddp", sources=sources)
    for update in range(transfer.updates):
        for part in stage.parts:
            losses = updater.update(part, update)
        if (update + 1) % 100 == 0:
            log.info("%s, seed %d: update %d/%d, %s", mode, seed, update + 1, transfer.updates, shown(losses))
    return model.eval()


def stage_of(mode: str, both: UpdaterConfig) -> UpdaterConfig | None:
    """What a mode trains; None for nothing."""
    assert both.tokenizer is not None
    if mode == "zero":
        return None
    if mode == "tokenizer":
        return dataclasses.replace(
            both, tokenizer=dataclasses.replace(both.tokenizer, codebooks="frozen"), dynamics=None
        )
    if mode == "transformer":
        return dataclasses.replace(both, tokenizer=None)
    return both


def judged(transfer: Transfer, model: Any, clips: Any) -> Evaluation:
    """Open-loop prediction of the held-out clips, most likely codes."""
    metrics = ["psnr", "ssim", *(["lpips"] if transfer.lpips else [])]
    judge = Judge(metrics, lpips=load_lpips().to(model.device) if transfer.lpips else None)
    methods = ("model", "copy", *(("shuffled",) if model.spec.action_dim else ()))
    return evaluate(
        Dreaming(model),
        clips,
        judge,
        methods=methods,
        samples=1,
        rows=ROWS,
        seeds=Seeds(JUDGED),
        sampled=False,
        videos=transfer.videos,
        on_progress=told("clips judged"),
    )


def numbers(found: Evaluation) -> dict[str, float]:
    """Means over the predicted frames alone: `psnr`, ... of the model, `psnr_copy`, ... of the others."""
    return {
        (metric if method == "model" else f"{metric}_{method}"): float(scores.per_sample(metric, "predicted").mean())
        for method, scores in found.scores.items()
        for metric in scores.frames
    }


# -- the table ---------------------------------------------------------------------------------------------------------


def protocol_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What rows must share to stand in one table: everything but modes, seeds, what is drawn, and speed."""
    kept = {key: value for key, value in plain.items() if key not in ("modes", "seeds", "videos", "out")}
    return {**kept, "data": {key: value for key, value in kept["data"].items() if key not in ("cache", "prefetch")}}


def stored(folder: Path, protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run. Raises: ValueError if they are of another protocol."""
    path = folder / "transfer.json"
    if not path.is_file():
        return []
    held = json.loads(read_plain(path, most=MOST_ROWS))
    if protocol_of(held["protocol"]) != json.loads(json.dumps(protocol)):
        raise ValueError(f"{path} holds results of other settings: they are not comparable; choose another out=DIR")
    return list(held["rows"])


def write(folder: Path, rows: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> None:
    """transfer.json with the protocol, transfer.csv with a row per mode and seed, transfer.md with the means."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"protocol": protocol, "rows": list(rows)}, indent=1) + "\n"
    write_atomically(folder / "transfer.json", content.encode())
    stream = io.StringIO()
    table = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / "transfer.csv", stream.getvalue().encode())
    write_atomically(folder / "transfer.md", markdown(rows, protocol).encode())


def markdown(rows: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """Means over the seeds with their standard deviation."""
    metrics = [name for name in rows[0] if name not in ("mode", "seed")]
    lines = [
        f"{protocol['episodes']} episodes, {protocol['updates']} updates, {protocol['clips']} held-out clips; "
        "mean over seeds (standard deviation).",
        "",
        "| mode | seeds | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        own = [row for row in rows if row["mode"] == mode]
        cells = [_cell([row[metric] for row in own]) for metric in metrics]
        lines.append(f"| {mode} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def summary(row: Mapping[str, Any]) -> str:
    """A row as one line."""
    return f"{row['mode']}, seed {row['seed']}: {shown({k: v for k, v in row.items() if k not in ('mode', 'seed')})}"


def shown(values: Mapping[str, float]) -> str:
    """Numbers by name."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _device(configs: Configs) -> Any:
    import torch

    return torch.device(configs.compute.device)
