"""From a folder to a model whose predictions can be judged: published layout, pre-training run, or training run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import worldmodel
from mbrl.io.checkpoint import load_part, read_newest
from mbrl.rundir.build import make
from mbrl.rundir.folder import allowed_classes, holds_run, read_config, world_model
from worldmodel import proprio
from worldmodel.evaluation.predictors import Dreaming, Generating, Predictor
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.published.folder import read_folder
from worldmodel.published.model import SAMPLINGS
from worldmodel.published.store import adopt, published_in
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

PARTS = ("tokenizer", "transformer", "worldmodel")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model and what is to be said of it.

    Attributes:
        kind: `published`, `pretrain` or `train`.
        weights: which of its weights these are.
        rule: how its codes are drawn.
        plain: the run's stored configuration; empty for a published folder.
    """

    predictor: Predictor
    kind: str
    weights: str
    rule: SamplingConfig
    plain: Mapping[str, Any]

    @property
    def sampled(self) -> bool:
        """Whether chance has a part in its predictions."""
        return self.rule.temperature > 0


def load_predictor(
    folder: Path, *, temperature: float | None, top_k: int | None, device: str, own: Path | None = None
) -> Loaded:
    """The model in `folder`, ready to predict.

    Args:
        temperature, top_k: in place of the model's own, where given.
        own: the user's folder of configurations, whose classes are trusted.
    Raises: ValueError in one line where there is no model, or it does not fit its configuration.
    """
    if not folder.is_dir():
        raise ValueError(f"init={folder} is not a folder; give a published model's, or that of a run")
    asked = {"temperature": temperature, "top_k": top_k}
    changed = {name: value for name, value in asked.items() if value is not None}
    if not holds_run(folder):
        return _published(folder, changed, device)
    plain = read_config(folder, verb="train", marks=("seed", "worldmodel"))
    trusted = allowed_classes(plain, own)
    if world_model(plain) != "ivideogpt":
        raise ValueError(f"init={folder} has no model that learned: its world model is {world_model(plain)}")
    nodes = {name: copy.deepcopy(plain[name]) for name in PARTS}
    nodes["worldmodel"]["sampling"] |= changed
    configs = {name: make(nodes[name], name, trusted=trusted) for name in PARTS}
    model, weights = _pretrained(folder, configs) if "stage" in plain else _trained(folder, configs)
    return Loaded(
        predictor=Dreaming(model.to(device)),
        kind="pretrain" if "stage" in plain else "train",
        weights=weights,
        rule=configs["worldmodel"].sampling,
        plain=plain,
    )


def _published(folder: Path, changed: Mapping[str, Any], device: str) -> Loaded:
    model = worldmodel.load(folder).to(device)
    values = {"temperature": SAMPLINGS["published"].temperature, "top_k": SAMPLINGS["published"].top_k, **changed}
    rule = SamplingConfig(codes_only=False, **values)
    layout, positions = model.layout, model.transformer.llm.config.positions
    horizon = (positions - layout.prelude) // layout.stride
    predictor = Generating(model, rule=rule, horizon=horizon)
    return Loaded(predictor=predictor, kind="published", weights=str(folder), rule=rule, plain={})


def _pretrained(folder: Path, configs: Mapping[str, Any]) -> tuple[IVideoGPT, str]:
    """Weights in the published layout, in the run's `model/`."""
    tokenizer, transformer = read_folder(published_in(folder))
    model = _built(configs, action_dim=transformer.action_dim, proprio_dim=0, terminates=False)
    adopt(model, tokenizer, transformer)
    return model, str(published_in(folder))


def _trained(folder: Path, configs: Mapping[str, Any]) -> tuple[IVideoGPT, str]:
    """The newest weights of the run's newest checkpoint."""
    checkpoint = read_newest(folder / "checkpoints")
    state: Mapping[str, Tensor] = checkpoint.states["model"]
    proprio_dim = len(state["tokens.proprio_linear.weight"]) if configs["worldmodel"].proprio else 0
    condition_dim = state["tokens.action_linear.weight"].shape[1] if "tokens.action_linear.weight" in state else 0
    model = _built(
        configs,
        action_dim=condition_dim - proprio.WIDTH * proprio_dim,
        proprio_dim=proprio_dim,
        terminates=any("continue_linear" in name for name in state),
    )
    load_part(model, state, origin=folder)
    return model, f"checkpoint of step {checkpoint.step}"


def _built(configs: Mapping[str, Any], *, action_dim: int, proprio_dim: int, terminates: bool) -> IVideoGPT:
    env = EnvSpec(
        image=configs["tokenizer"].image,
        action_dim=action_dim,
        discrete=False,
        action_repeat=1,
        decisions=configs["worldmodel"].max_frames,
        terminates=terminates,
        proprio_dim=proprio_dim,
    )
    parts = {"tokenizer": configs["tokenizer"], "transformer": configs["transformer"]}
    model: IVideoGPT = configs["worldmodel"].build(**parts, env_spec=env, seeds=Seeds(0))
    return model.requires_grad_(requires_grad=False)


def ready(threads: int) -> None:
    """Threads; matrix products stay exact float32, unlike in training."""
    torch.set_num_threads(threads)
