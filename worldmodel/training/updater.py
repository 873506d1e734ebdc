"""Updates of a world model: draw own clips, split them into pieces, sum gradients over processes, step or skip.

Knows the WorldModel protocol, clips and processes; not what the model is made of, nor where the clips come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from worldmodel.answers import shown, wrong
from worldmodel.api import Tokenizing, WorldModel
from worldmodel.augment import shifted
from worldmodel.losses.adversarial import Adversary, AdversaryConfig
from worldmodel.microbatch import MicroBatch, RowNoise
from worldmodel.optim import OptimConfig, ScheduledOptimConfig
from worldmodel.processes import Processes, Sharding, without_sync
from worldmodel.seeds import Seeds
from worldmodel.spec import Part

PATIENCE = 10  # non-finite losses in a row before the run is called diverged


class Clips(Protocol):
    """The one thing that an updater asks of replay or data."""

    def clips(self, n: int, length: int, *, stream: str, draw: int) -> TensorDict:
        """This process's rows of draw `draw` of `n` clips with `length` frames, as pixels or as codes."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """How one part of the world model is trained.

    Attributes:
        batch: clips per update, over all processes and pieces.
        accumulate: pieces that a process works through one after another for one update.
        length: frames of a clip behind its context.
    """

    batch: int
    accumulate: int
    length: int
    optim: OptimConfig

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate={self.accumulate} (got {self.batch})")


@dataclass(frozen=True, kw_only=True)
class TokenizerPartConfig(PartConfig):
    """How the tokenizer is trained.

    Attributes:
        codebooks: `frozen` keeps the meaning of the codes for a transformer that is trained already (published
            fine-tuning): no codebook learns, and the statistics of a quantiser without one stay; `trained` moves both.
        discriminator: an adversary, or null.
    """

    codebooks: Literal["frozen", "trained"]
    discriminator: AdversaryConfig | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebooks not in ("frozen", "trained"):
            raise ValueError(f"codebooks must be frozen or trained (got {self.codebooks})")


@dataclass(frozen=True, kw_only=True)
class UpdaterConfig:
    """What is trained: tokenizer, dynamics, or both.

    Attributes:
        tokenizer, dynamics: null for a part that stays as it is.
        random_shift: each clip is moved by up to so many pixels (`worldmodel.augment`); its codes are then made anew at
            each draw.
        precision: `float32`, or `bfloat16` for autocast.
    """

    tokenizer: TokenizerPartConfig | None
    dynamics: PartConfig | None
    random_shift: int
    precision: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("tokenizer or dynamics must be given (got null for both): nothing would be trained")
        if self.random_shift < 0:
            raise ValueError(f"random_shift must be >= 0 (got {self.random_shift})")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16 (got {self.precision})")

    @property
    def parts(self) -> dict[Part, PartConfig]:
        """What is trained, in the order of an update."""
        asked: dict[Part, Any] = {"tokenizer": self.tokenizer, "dynamics": self.dynamics}
        return {part: config for part, config in asked.items() if config is not None}

    def build(
        self,
        *,
        model: WorldModel,
        seeds: Seeds,
        processes: Processes,
        sources: Mapping[Part, Clips],
        sharding: Sharding = "ddp",
    ) -> Updater:
        """What trains `model` on clips of `sources`. Raises: ValueError where a network is missing."""
        return Updater(self, model, seeds=seeds, processes=processes, sources=sources, sharding=sharding)


class PartLosses(nn.Module):
    """One part's losses as a module's forward: what DDP and FSDP2 wrap. Other parts are not in it."""

    _whole: WorldModel

    def __init__(self, model: WorldModel, part: Part) -> None:
        super().__init__()
        self.__dict__["_whole"] = model  # not a submodule
        self._part: Part = part
        for child in dict.fromkeys(name.partition(".")[0] for name in model.parameters_of(part)):
            setattr(self, child, getattr(model, child))

    def forward(self, clip: TensorDict, step: int, generator: torch.Generator, micro: MicroBatch) -> dict[str, Tensor]:
        """`WorldModel.losses`."""
        return self._whole.losses(clip, self._part, step=step, generator=generator, micro=micro)


def checked(model: WorldModel, losses: Any) -> dict[str, Tensor]:
    """What `model.losses` returned. Raises: WrongAnswer unless that is `loss` with a gradient, and scalars to log."""
    if not isinstance(losses, Mapping) or "loss" not in losses:
        got = f"the keys {', '.join(map(str, losses))}" if isinstance(losses, Mapping) else shown(losses)
        raise wrong(model, "losses", "a mapping with the key loss", got)
    for name, value in losses.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.ndim or value.is_complex():
            raise wrong(model, "losses", f"a tensor [] of one number as {shown(name)}", shown(value))
    if not losses["loss"].requires_grad:
        raise wrong(model, "losses", "a loss with a gradient", "one without")
    return dict(losses)


class Updater:
    """Takes optimizer steps on the parts of a model; the model's version moves with each."""

    def __init__(
        self,
        config: UpdaterConfig,
        model: WorldModel,
        *,
        seeds: Seeds,
        processes: Processes,
        sources: Mapping[Part, Clips],
        sharding: Sharding,
    ) -> None:
        self.config, self.model, self.seeds = config, model, seeds
        self.processes, self.sources = processes, sources
        self.adversary: Adversary | None = None
        self._frozen: list[nn.Module] = []
        """Codebooks that keep the meaning of their codes."""
        if config.tokenizer is not None and model.spec.codes is not None:
            self._ready_tokenizer(config.tokenizer)
        self.parts: dict[Part, PartConfig] = {}
        for part in model.spec.parts:
            if (own := getattr(config, part)) is not None:
                self.parts[part] = own
            else:
                for parameter in model.parameters_of(part).values():
                    parameter.requires_grad_(False)
        self._modules: dict[Part, nn.Module] = {}
        for part in self.parts:
            model.prepare(part)
            self._modules[part] = processes.shared(PartLosses(model, part), sharding)
        self.optimizers = {part: own.optim.build(model.parameters_of(part)) for part, own in self.parts.items()}
        self.skipped = 0

    def _ready_tokenizer(self, config: TokenizerPartConfig) -> None:
        named = PartLosses(self.model, "tokenizer").named_modules()
        books = [module for name, module in named if "quantize" in name.rpartition(".")[2]]
        for book in books:
            if config.codebooks == "frozen":
                book.requires_grad_(False)  # so that they are not in the clipped norm either (QUIRK 16)
                self._frozen.append(book)
            if self.processes.world > 1 and hasattr(book, "across"):
                book.across = self.processes.mean
        if config.discriminator is not None:
            objective: Any = getattr(self.model, "objective", None)
            average = None if self.processes.world == 1 else self.processes.mean
            device = self.processes.device
            self.adversary = config.discriminator.build(seeds=self.seeds, device=device, average=average)
            objective.opponent = self.adversary

    def update(self, part: Part, number: int) -> dict[str, float]:
        """One update of one part; every process calls it with the same `number`.

        Args:
            number: 0-based count of this part's updates; names the random draws.
        Raises: FloatingPointError after 10 non-finite losses in a row.
        """
        clip = self._clip(part, number)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}  # batch statistics
        losses = self._backward(part, clip, number)
        optimizer = self.optimizers[part]
        scalars = {"lr": optimizer.lr} if isinstance(self.parts[part].optim, ScheduledOptimConfig) else {}
        grad_norm = optimizer.apply(losses["loss"])  # of the same numbers everywhere: all step, or none
        if grad_norm is None:
            self._skip(part, number, buffers)
            return {f"{part}/skipped": 1.0}
        self.skipped = 0
        self.model.updated(part)
        judged = self.adversary.update() if part == "tokenizer" and self.adversary is not None else {}
        values = torch.stack(list(losses.values())).tolist()  # sync: one per update
        scalars |= {**dict(zip(losses, values, strict=True)), "grad_norm": grad_norm}
        return {name if "/" in name else f"{part}/{name}": value for name, value in scalars.items()} | judged

    def _clip(self, part: Part, number: int) -> TensorDict:
        """This process's rows; for the dynamics as codes if the model has any, beside another row's context."""
        config, processes, shift = self.parts[part], self.processes, self.config.random_shift
        clip = self.sources[part].clips(config.batch, config.length, stream=part, draw=number)
        first = processes.rank * len(clip)
        if shift:
            generator = self.seeds.torch(f"shift/{part}", number)
            clip = shifted(clip, shift, RowNoise(generator=generator, first=first, rows=config.batch))
        clip = clip.to(processes.device)
        if part == "tokenizer" or not isinstance(self.model, Tokenizing):
            return clip
        if "codes" not in clip.keys():  # noqa: SIM118 - a TensorDict has no `in`
            with self._autocast():
                pieces = clip.chunk(config.accumulate)
                made = [self.model.tokenize(piece["context"], piece["pixels"]) for piece in pieces]
            clip = clip.exclude("context", "pixels")
            clip["context_codes"], clip["codes"] = (torch.cat(held) for held in zip(*made, strict=True))
        others = processes.all_gather_rows(clip["context_codes"]).roll(1, 0)
        clip["other_codes"] = others[first : first + len(clip)]
        return clip

    def _backward(self, part: Part, clip: TensorDict, number: int) -> dict[str, Tensor]:
        """Gradients of the whole batch's loss, and the losses' means over it, detached."""
        config, module, processes = self.parts[part], self._modules[part], self.processes
        rows = len(clip) // config.accumulate
        sums: dict[str, Tensor] = {}
        module.train()
        for book in self._frozen:
            book.eval()  # statistics are what the codes of fsq mean
        for place, piece in enumerate(clip.split(rows)):
            micro = MicroBatch(
                first=processes.rank * len(clip) + place * rows,
                rows=config.batch,
                piece=processes.rank * config.accumulate + place,
                pieces=processes.world * config.accumulate,
                processes=processes.world,
                whole=clip,
                total=processes.total,
            )
            without_sync(module, last=place == config.accumulate - 1)
            generator = self.seeds.torch(f"loss/{part}", number)
            with self._autocast():
                losses = checked(self.model, module(piece, number, generator, micro))
            (losses["loss"] / config.accumulate).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().to(processes.device).float() / config.accumulate
        together = processes.mean(torch.stack(list(sums.values())))
        return dict(zip(sums, together, strict=True))

    def _skip(self, part: Part, number: int, buffers: Mapping[str, Tensor]) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        if self.adversary is not None:
            self.adversary.forget()
        self.skipped += 1
        if self.skipped >= PATIENCE:
            raise FloatingPointError(f"{part}: {PATIENCE} non-finite losses in a row at update {number}")

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def state_dict(self) -> dict[str, Any]:
        """Moments by part, whole, and counts; all processes must ask."""
        optimizers = {part: optimizer.state_dict() for part, optimizer in self.optimizers.items()}
        state: dict[str, Any] = {"skipped": self.skipped, "optimizers": optimizers}
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.skipped = state["skipped"]
        for part, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
