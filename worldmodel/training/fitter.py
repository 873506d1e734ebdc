"""Fine-tuning the world model on replay: draw clips, take the part's losses, step its optimizer.

Knows the WorldModel protocol and what a replay answers; not what the model is made of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict

from worldmodel.api import WorldModel
from worldmodel.augment import shifted
from worldmodel.optim import OptimConfig, Optimizer
from worldmodel.seeds import Seeds
from worldmodel.spec import Part

PATIENCE = 10  # non-finite losses in a row before the run is called diverged


class Clips(Protocol):
    """The one thing the fitter asks of a replay."""

    def clips(self, n: int, length: int, *, stream: str, draw: int, codes: bool = False) -> TensorDict:
        """`n` random training clips of `length` frames."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """How one part of the world model is trained: clips per update, frames per clip, optimizer."""

    batch: int
    length: int
    optim: OptimConfig

    def __post_init__(self) -> None:
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fine-tuning of a model's parts, each on its own cadence (configs/schedule); a model takes those that it has.

    Attributes:
        random_shift: each clip is moved by up to so many pixels (`worldmodel.augment`); its codes are then made anew at
            each draw.
        codebooks: `frozen` keeps the meaning of the tokens (published), `trained` moves the codebooks too.
        precision: `float32`, or `bfloat16` for autocast.
    """

    tokenizer: PartConfig
    dynamics: PartConfig
    random_shift: int
    codebooks: Literal["frozen", "trained"]
    precision: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        if self.random_shift < 0:
            raise ValueError(f"random_shift must be >= 0 (got {self.random_shift})")
        if self.codebooks not in ("frozen", "trained"):
            raise ValueError(f"codebooks must be frozen or trained (got {self.codebooks})")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16 (got {self.precision})")

    def build(self, *, model: WorldModel, seeds: Seeds) -> Fitter:
        """The fitter of one model."""
        return Fitter(self, model, seeds=seeds)


class Fitter:
    """Takes optimizer steps on a world model's parts; the model's version moves with each."""

    def __init__(self, config: FitConfig, model: WorldModel, *, seeds: Seeds) -> None:
        self.config = config
        self.model = model
        self.seeds = seeds
        self.parts: dict[Part, PartConfig] = {part: getattr(config, part) for part in model.spec.parts}
        if config.codebooks == "frozen" and model.spec.codes is not None:
            for name, parameter in model.parameters_of("tokenizer").items():
                parameter.requires_grad_("quantize" not in name)
        for part in self.parts:
            model.prepare(part)
        self.optimizers = {part: Optimizer(model.parameters_of(part), held.optim) for part, held in self.parts.items()}
        self.skipped = 0

    def update(self, replay: Clips, part: Part, number: int) -> dict[str, float]:
        """One update of one part.

        Args:
            number: 0-based count of this part's updates; names the random draws.
        Raises: FloatingPointError after 10 non-finite losses in a row.
        """
        config, shift = self.parts[part], self.config.random_shift
        codes = self.model.spec.codes is not None and part != "tokenizer" and not shift
        clip = replay.clips(config.batch, config.length, stream=part, draw=number, codes=codes)
        if shift:
            clip = shifted(clip, shift, self.seeds.torch(f"shift/{part}", number))
        generator = self.seeds.torch(f"loss/{part}", number)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}  # batch statistics
        with self._autocast(part):
            losses = self.model.losses(clip, part, step=number, generator=generator)
        grad_norm = self.optimizers[part].step(losses["loss"])
        if grad_norm is None:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            self.skipped += 1
            if self.skipped >= PATIENCE:
                raise FloatingPointError(f"{part}: {PATIENCE} non-finite losses in a row at update {number}")
            return {f"{part}/skipped": 1.0}
        self.skipped = 0
        self.model.updated(part)
        names, values = zip(*losses.items(), strict=True)
        scalars = torch.stack([v.detach().float() for v in values]).tolist()  # sync: one per update
        named = {name if "/" in name else f"{part}/{name}": value for name, value in zip(names, scalars, strict=True)}
        return {**named, f"{part}/grad_norm": grad_norm}

    def _autocast(self, part: Part) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        weight = next(iter(self.model.parameters_of(part).values()))
        return torch.autocast(weight.device.type, torch.bfloat16)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer moments by part, and the count of skipped updates."""
        return {"skipped": self.skipped, **{part: held.state_dict() for part, held in self.optimizers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.skipped = state["skipped"]
        for part, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[part])
