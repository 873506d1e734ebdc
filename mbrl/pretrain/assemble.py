"""Config -> objects of a pre-training run, in dependency order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mbrl.data.prefetch import Prefetcher
from mbrl.data.source import ClipSource, DataConfig
from mbrl.io.checkpoint import Checkpoints, checkpoint_paths
from mbrl.io.video import Videos
from mbrl.pretrain.configs import Configs
from mbrl.pretrain.run import COLUMNS, Pretraining, Writer
from mbrl.rundir.machine import set_matmul_precision
from mbrl.rundir.origin import read_weights
from mbrl.rundir.stop import Stop
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.processes import Processes
from worldmodel.published.store import adopt
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, ModelSpec, Part
from worldmodel.training.whole import WholeModel

log = logging.getLogger("mbrl")

VIDEOS = 5  # videos of each kind that stay
TOKENIZER_SAMPLING = {"plain": "select", "goal": "shuffle"}
"""How the tokenizer's clips are drawn where the transformer's are drawn so (spec 10.3): frames far apart in time."""


def assemble(
    configs: Configs, folder: Path, *, info: Mapping[str, Any], stop: Stop, processes: Processes
) -> Pretraining:
    """The whole run; reading this function top to bottom is reading the object graph."""
    ready(configs)
    seeds = Seeds(configs.seed)
    model = built_model(configs, seeds).to(processes.device)
    sources = {part: training_source(configs, model.spec, seeds, part, processes) for part in configs.stage.parts}
    validation = {part: source(configs, model.spec, seeds, part, "validation", None) for part in configs.stage.parts}
    began_with: list[str] = []
    if configs.init is not None and not checkpoint_paths(folder / "checkpoints"):  # a continued run has its own
        began_with = begin_from(model, Path(configs.init).expanduser(), configs.load)
    sharding = configs.compute.sharding
    whole = WholeModel(model, processes=processes, sharding=sharding)
    updater = configs.stage.build(model=model, seeds=seeds, processes=processes, sharding=sharding, sources=sources)
    writer = None
    if processes.first:
        writer = Writer(
            logger=configs.logger.build(folder=folder, config=info, given=COLUMNS),
            videos=Videos(folder / "videos", keep=VIDEOS),
            checkpoints=Checkpoints(folder / "checkpoints", keep=configs.keep, info=info),
        )
    return Pretraining(
        folder=folder,
        schedule=configs.schedule,
        whole=whole,
        updater=updater,
        validation=validation,
        processes=processes,
        stop=stop,
        writer=writer,
        batch=sum(part.batch for part in configs.stage.parts.values()),
        began_with=began_with,
    )


def ready(configs: Configs) -> None:
    """Threads and matrix products as in `mbrl train`."""
    torch.set_num_threads(configs.compute.threads)
    set_matmul_precision(configs.compute.matmul)


def built_model(configs: Configs, seeds: Seeds) -> IVideoGPT:
    """The model with fresh weights, told actions where the data have them and the configuration wants them.

    Raises: ValueError where the data disagree, or a loss needs actions that are not there.
    """
    actions = action_dim(configs.data, seeds, image=configs.tokenizer.image) if configs.actions else 0
    if not actions and configs.worldmodel.losses.aux_coef:
        raise ValueError(
            "worldmodel.losses.aux_coef must be 0 for a model without actions, which it reads from the codes "
            f"(got {configs.worldmodel.losses.aux_coef}); add worldmodel.losses.aux_coef=0"
        )
    env = EnvSpec(
        image=configs.tokenizer.image,
        action_dim=actions,
        discrete=False,
        action_repeat=1,
        decisions=configs.worldmodel.max_frames,
        terminates=False,
    )
    model: IVideoGPT = configs.worldmodel.build(
        tokenizer=configs.tokenizer, transformer=configs.transformer, env_spec=env, seeds=seeds
    )
    return model


def begin_from(model: IVideoGPT, folder: Path, parts: Sequence[Part]) -> list[str]:
    """Weights of a published folder, a pre-training run or a training run; lines that say what was loaded.

    Raises: ValueError (Mismatch, with a table) where they do not fit.
    """
    found = read_weights(folder)
    return adopt(model, found.tokenizer, found.transformer, parts=parts, auxiliary=found.auxiliary)


def action_dim(data: DataConfig, seeds: Seeds, *, image: int) -> int:
    """A of all data sets; 0 if none has actions. Raises: ValueError where they differ."""
    spec = ModelSpec(image=image, context_frames=1, action_dim=0, max_frames=1, context="sliding", burn_in=0)
    dims = {part.data.card.action_dim for part in data.build(spec=spec, seeds=seeds, split="train").parts}
    if len(dims) > 1:
        raise ValueError(
            f"data must agree on the numbers of an action (got sets with {', '.join(map(str, sorted(dims)))}); "
            "set actions=false to learn from the videos alone, or choose other data.folders"
        )
    return dims.pop()


def source(
    configs: Configs, spec: ModelSpec, seeds: Seeds, part: Part, split: Any, processes: Processes | None
) -> ClipSource:
    """The clips of a part: this process's rows in training, all of them where the first process measures alone."""
    sampling = TOKENIZER_SAMPLING.get(configs.data.sampling) if part == "tokenizer" else None
    shared = {} if processes is None else {"rank": processes.rank, "world": processes.world}
    found: ClipSource = configs.data.build(spec=spec, seeds=seeds, split=split, sampling=sampling, **shared)
    return found


def training_source(
    configs: Configs, spec: ModelSpec, seeds: Seeds, part: Part, processes: Processes | None
) -> ClipSource | Prefetcher:
    """The clips that a part learns from, those of the coming updates under way."""
    found = source(configs, spec, seeds, part, "train", processes)
    return Prefetcher(found, configs.data.prefetch) if configs.data.prefetch else found
