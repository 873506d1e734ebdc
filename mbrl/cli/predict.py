"""Predict clips of a data set or an episode: numbers, and clips to look at.

usage: mbrl predict init=MODEL data=EPISODES [key=value ...]

  mbrl predict init=runs/pretrain/mine             on the clips that the run itself held out
  mbrl predict init=runs/mine data=data/door split=all n=100
  mbrl predict init=published/robonet data=data/robonet clips=256 n=100 metrics=[mse,psnr,ssim,lpips,fvd]
  mbrl predict init=published/goal data=ep.npz mode=goal

MODEL is a folder in the published layout, or one of mbrl pretrain or mbrl train. EPISODES is a data set, a folder of
data sets, a run folder, or the file of one episode. All keys with what they mean: configs/predict.yaml.
Beside the model it judges the same model with actions of zero and with those of other clips, the last frame again and
again, and the true codes. Writes prediction.json, clips.gif and clips.png to predictions/NAME, or to=DIR.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.cli.compose import compose, own_folder, take_config_dir
from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import expanded, target
from mbrl.memory import asking, sizes_in
from mbrl.progress import told


def run(args: list[str]) -> int:
    """Prints a table; writes prediction.json, clips.gif and clips.png."""
    config, data, composed, own = understand(args)

    from mbrl.files import write_atomically
    from mbrl.predict.clips import drawn, learned_from
    from mbrl.predict.draw import draw, rows_of
    from mbrl.predict.models import load_predictor, ready
    from mbrl.predict.numbers import as_json, table
    from worldmodel.evaluation.predict import check, evaluate
    from worldmodel.seeds import Seeds

    ready(config.threads)
    judge, missing = judge_of(config)
    loaded = load_predictor(
        config.folder, temperature=config.temperature, top_k=config.top_k, device=config.device, own=own
    )
    spec = loaded.predictor.spec
    clips = drawn(config, data, spec)
    methods, sampled = ways_of(config.baselines, actions=spec.action_dim > 0, clips=len(clips.clips)), loaded.sampled
    samples = config.n if sampled else 1
    check(loaded.predictor, clips.clips, judge, methods=methods, samples=samples, sampled=sampled)
    for metric, why in missing.items():
        print(f"without {metric}: {why}", file=sys.stderr)
    seen = learned_from(config.folder, clips.files, own=own)
    if seen and config.split != "train":
        print(
            f"{seen} of the {len(clips.files)} episodes are among those that this model learned from: that is no test"
            + ("; without data=... it is judged on what it held out" if loaded.kind == "pretrain" else ""),
            file=sys.stderr,
        )
    print(
        f"{loaded.kind} model {config.init} ({loaded.weights})\n"
        f"{len(clips.clips)} clips, mode {clips.mode}: {loaded.predictor.num_observed} frames shown, "
        f"{clips.horizon} predicted" + (f"; {clips.left_out} episodes are too short" if clips.left_out else "")
    )
    with asking(*sizes_in(config)):
        evaluation = evaluate(
            loaded.predictor,
            clips.clips,
            judge,
            methods=methods,
            samples=samples,
            rows=config.rows,
            seeds=Seeds(config.seed),
            sampled=sampled,
            videos=min(config.videos, len(clips.clips)),
            on_progress=told("clips"),
        )
    found = as_json(config, loaded, clips, evaluation, data=composed, missing=missing, seen=seen)
    print("\n".join(table(evaluation, judge.metrics, samples=samples)))
    folder = expanded(config.to)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "prediction.json", (json.dumps(found, indent=1) + "\n").encode())
    if evaluation.videos:
        draw([rows_of(video, loaded.predictor.num_observed) for video in evaluation.videos], folder, fps=config.fps)
    print(f"written to {folder}: prediction.json" + (", clips.gif, clips.png" if evaluation.videos else ""))
    return DONE


def understand(args: list[str]) -> tuple[Any, Any, Mapping[str, Any], Path | None]:
    """The settings; the data (a DataConfig, or the file of an episode) and how they were composed; the user's folder.

    Raises: BadInput or ValueError naming key, value and the mend.
    """
    from omegaconf import OmegaConf

    from mbrl.data.source import DataConfig
    from mbrl.predict.configs import PredictConfig
    from mbrl.rundir.build import make

    words, own = take_config_dir(args)
    typed, episode = data_words(words)
    stored = (
        None if any(word.startswith(("data=", "data.folders=", "data.root=")) for word in typed) else own_data(words)
    )
    if stored is not None:
        typed.append("data.folders=[stored]")
    composed = compose("predict", [*typed, *([f"--config-dir={own}"] if own else [])])
    plain: Any = OmegaConf.to_container(composed)
    node = plain.pop("data") if stored is None else (plain.pop("data"), stored)[1]
    to = str(target("to", plain.pop("to") or f"predictions/{expanded(plain['init']).resolve().name}"))
    try:
        lists = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        config = PredictConfig(**{**plain, **lists, "to": to})
    except TypeError as error:
        raise BadInput(f"a value is of the wrong kind: {error}") from error
    if episode is not None:
        return config, episode, {"episode": str(episode)}, own and own_folder(own)
    data = make(node, "data", trusted=stored is None)
    assert isinstance(data, DataConfig)
    return config, data, node, own and own_folder(own)


def data_words(words: list[str]) -> tuple[list[str], Path | None]:
    """`data=FOLDER` as Hydra's words for it; `data=EPISODE.npz` as the file. Raises: BadInput if nothing is there."""
    typed, episode = [], None
    for word in words:
        key, _, value = word.partition("=")
        path = expanded(value)
        if key != "data" or (not path.exists() and "/" not in value and path.suffix != ".npz"):
            typed.append(word)  # a variant of the group, such as data=oxe
            continue
        if not path.exists():
            raise BadInput(f"data={value} is not there; give a data set, a run folder, or the file of an episode")
        episode = path if path.is_file() else None
        typed.append(f"data.folders=[{json.dumps(str(path))}]")
    return typed, episode


def own_data(words: list[str]) -> Mapping[str, Any] | None:
    """What a pre-training run learned from, as it is stored in it; None for other folders."""
    from mbrl.rundir.folder import holds_run, read_config

    init = next((word.partition("=")[2] for word in words if word.startswith("init=")), "")
    folder = expanded(init)
    if not init or not holds_run(folder):
        return None
    found = read_config(folder, verb="pretrain", marks=("seed",)).get("data")
    return found if isinstance(found, Mapping) else None


def judge_of(config: Any) -> tuple[Any, dict[str, str]]:
    """The metrics that can be had, and why the others cannot.

    Raises: ValueError for a file that was named and is not there or not that network, or where no metric is left.
    """
    from worldmodel.evaluation.i3d import load_i3d
    from worldmodel.evaluation.lpips import load_lpips
    from worldmodel.evaluation.networks.cache import cached, how_to_get
    from worldmodel.evaluation.predict import Judge

    missing, metrics, networks = {}, list(config.metrics), {"lpips": "lpips-vgg", "fvd": "i3d"}
    for metric, given in (("lpips", config.lpips), ("fvd", config.i3d)):
        if metric in metrics and given is None and not cached(networks[metric]).is_file():
            missing[metric] = f"its network is not there: {how_to_get(networks[metric])}"
            metrics.remove(metric)
    if not [name for name in metrics if name != "fvd"]:
        lost = "; ".join(f"without {metric}: {why}" for metric, why in missing.items())
        raise BadInput(f"metrics: none of frames is left; add mse, psnr or ssim ({lost})")
    lpips = load_lpips(path_of(config.lpips)).to(config.device) if "lpips" in metrics else None
    i3d = load_i3d(path_of(config.i3d)).to(config.device) if "fvd" in metrics else None
    return Judge(metrics, lpips=lpips, i3d=i3d), missing


def path_of(text: str | None) -> Path | None:
    """The file that a user named."""
    return None if text is None else expanded(text)


def ways_of(baselines: Any, *, actions: bool, clips: int) -> list[Any]:
    """What is judged: the model, and beside it what was asked for or applies."""
    if baselines is not None:
        return ["model", *baselines]
    on_progress = ["zero", *(["shuffled"] if clips > 1 else [])] if actions else []
    return ["model", *on_progress, "copy", "reconstruction"]
