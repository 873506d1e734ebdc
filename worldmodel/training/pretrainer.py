"""Pre-training on clips of a data set: draw, split into pieces, sum their gradients over processes, step.

Knows iVideoGPT's two parts, clips and processes; nothing of files or schedules.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from worldmodel.ivideogpt import IVideoGPT
from worldmodel.losses.adversarial import Adversary, AdversaryConfig
from worldmodel.losses.tokenizer import evaluating
from worldmodel.microbatch import MicroBatch
from worldmodel.optim import ScheduledOptimConfig, copy_to_dtensor, whole
from worldmodel.processes import Processes, Sharding, without_sync
from worldmodel.seeds import Seeds
from worldmodel.spec import Part

PATIENCE = 10  # non-finite losses in a row before the run is called diverged


class Clips(Protocol):
    """The one thing that pre-training asks of data."""

    def clips(self, n: int, length: int, *, stream: str, draw: int) -> TensorDict:
        """This process's rows of draw `draw` of `n` clips with `length` frames behind their context."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig:
    """How the tokenizer is trained.

    Attributes:
        batch: clips per update, over all processes and pieces.
        accumulate: pieces that a process works through one after another for one update.
        length: frames of a clip behind its context.
        codebooks: `frozen` keeps the meaning of the tokens for a transformer that is trained already.
        discriminator: an adversary, or null.
    """

    batch: int
    accumulate: int
    length: int
    codebooks: Literal["trained", "frozen"]
    discriminator: AdversaryConfig | None
    optim: ScheduledOptimConfig

    def __post_init__(self) -> None:
        _check_pieces(self)
        if self.codebooks not in ("trained", "frozen"):
            raise ValueError(f"codebooks must be trained or frozen (got {self.codebooks})")


@dataclass(frozen=True, kw_only=True)
class DynamicsStageConfig:
    """How the transformer is trained: `batch`, `accumulate` and `length` as of the tokenizer."""

    batch: int
    accumulate: int
    length: int
    optim: ScheduledOptimConfig

    def __post_init__(self) -> None:
        _check_pieces(self)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What is trained: tokenizer, transformer, or one update of each in turn.

    Attributes:
        tokenizer, dynamics: null for a part that stays as it is.
        precision: `float32`, or `bfloat16` for autocast.
    """

    tokenizer: TokenizerStageConfig | None
    dynamics: DynamicsStageConfig | None
    precision: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.dynamics is None:
            raise ValueError("tokenizer or dynamics must be given (got null for both): nothing would be trained")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16 (got {self.precision})")

    @property
    def parts(self) -> dict[Part, TokenizerStageConfig | DynamicsStageConfig]:
        """What is trained, in the order of an update."""
        asked: dict[Part, Any] = {"tokenizer": self.tokenizer, "dynamics": self.dynamics}
        return {part: config for part, config in asked.items() if config is not None}

    def build(
        self,
        *,
        model: IVideoGPT,
        seeds: Seeds,
        processes: Processes,
        sharding: Sharding,
        sources: Mapping[Part, Clips],
    ) -> Pretrainer:
        """What trains `model` on clips of `sources`. Raises: ValueError where a network is missing."""
        return Pretrainer(self, model, seeds=seeds, processes=processes, sharding=sharding, sources=sources)


class PartLosses(nn.Module):
    """One part's losses as a module's forward: what DDP and FSDP2 wrap. The other part is not in it."""

    model: IVideoGPT

    def __init__(self, model: IVideoGPT, part: Part) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule
        self.name: Part = part
        self.add_module("part", model.tokenizer if part == "tokenizer" else model.tokens)
        if part == "tokenizer" and model.auxiliary is not None:
            self.add_module("auxiliary", model.auxiliary)

    def forward(self, clip: TensorDict, step: int, generator: torch.Generator, micro: MicroBatch) -> dict[str, Tensor]:
        """`IVideoGPT.losses`."""
        return self.model.losses(clip, self.name, step=step, generator=generator, micro=micro)


class Pretrainer:
    """Updates of one or both parts of a model."""

    def __init__(
        self,
        config: StageConfig,
        model: IVideoGPT,
        *,
        seeds: Seeds,
        processes: Processes,
        sharding: Sharding,
        sources: Mapping[Part, Clips],
    ) -> None:
        self.config, self.model, self.seeds, self.processes = config, model, seeds, processes
        self.sources = sources
        self._books = [model.tokenizer.quantize, model.tokenizer.dynamics_quantize]
        self.adversary: Adversary | None = None
        if config.tokenizer is not None:
            self._ready_tokenizer(config.tokenizer)
        for part in ("tokenizer", "dynamics"):
            if part not in config.parts:
                for parameter in model.parameters_of(part).values():
                    parameter.requires_grad_(False)
        self._sharded = sharding == "fsdp2"
        # a sharded model cannot run in one process alone: what is measured and written is a copy
        self._twin = copy.deepcopy(model) if self._sharded and processes.first else None
        self._modules: dict[Part, nn.Module] = {}
        for part in config.parts:
            model.prepare(part)
            blocks = list(model.tokens.llm.model.layers) if part == "dynamics" else []
            self._modules[part] = processes.shared(PartLosses(model, part), sharding, blocks)
        self.optimizers = {part: own.optim.build(model.parameters_of(part)) for part, own in config.parts.items()}
        self.skipped = 0

    def _ready_tokenizer(self, config: TokenizerStageConfig) -> None:
        for book in self._books:
            if config.codebooks == "frozen":
                book.requires_grad_(False)  # so that they are not in the clipped norm either (QUIRK 16)
            if self.processes.world > 1 and hasattr(book, "across"):
                book.across = self.processes.mean
        if config.discriminator is not None:
            average = None if self.processes.world == 1 else self.processes.mean
            device = self.model.device
            self.adversary = config.discriminator.build(seeds=self.seeds, device=device, average=average)
            self.model.objective.opponent = self.adversary

    def update(self, part: Part, number: int) -> dict[str, float]:
        """One update of one part; every process calls it with the same `number`.

        Raises: FloatingPointError after 10 non-finite losses in a row.
        """
        config = self.config.parts[part]
        clip = self._clip(part, config, number)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}  # batch statistics
        losses = self._backward(part, clip, number)
        optimizer = self.optimizers[part]
        lr = optimizer.lr
        grad_norm = optimizer.apply(losses["loss"])
        if grad_norm is None:
            self._skip(part, number, buffers)
            return {f"{part}/skipped": 1.0}
        self.skipped = 0
        self.model.updated(part)
        judged = self.adversary.update() if part == "tokenizer" and self.adversary is not None else {}
        names, values = zip(*losses.items(), strict=True)
        scalars = torch.stack([value.float() for value in values]).tolist()  # sync: one per update
        named = {name if "/" in name else f"{part}/{name}": value for name, value in zip(names, scalars, strict=True)}
        return {**named, **judged, f"{part}/grad_norm": grad_norm, f"{part}/lr": lr}

    def _clip(self, part: Part, config: TokenizerStageConfig | DynamicsStageConfig, number: int) -> TensorDict:
        """This process's rows; for the transformer as codes, beside those of another clip's context."""
        clip = self.sources[part].clips(config.batch, config.length, stream=part, draw=number)
        clip = clip.to(self.processes.device)
        if part == "tokenizer":
            return clip
        with self._autocast():
            made = [self.model.tokenize(piece["context"], piece["pixels"]) for piece in clip.chunk(config.accumulate)]
        context_BN, codes_BFK = (torch.cat(held) for held in zip(*made, strict=True))
        clip = clip.exclude("context", "pixels")
        clip["context_codes"], clip["codes"] = context_BN, codes_BFK
        if self.model.config.losses.context_swap_prob:
            rows = len(context_BN)
            others = self.processes.all_gather_rows(context_BN).roll(1, 0)
            clip["other_codes"] = others[self.processes.rank * rows : (self.processes.rank + 1) * rows]
        return clip

    def _backward(self, part: Part, clip: TensorDict, number: int) -> dict[str, Tensor]:
        """Gradients of the whole batch's loss, and the losses' means over it, detached."""
        config, module, processes = self.config.parts[part], self._modules[part], self.processes
        rows = len(clip) // config.accumulate
        sums: dict[str, Tensor] = {}
        self.model.train()
        if self.config.tokenizer is not None and self.config.tokenizer.codebooks == "frozen":
            for book in self._books:
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
                losses = module(piece, number, generator, micro)
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

    @contextlib.contextmanager
    def measuring(self) -> Iterator[IVideoGPT]:
        """The whole model in eval mode, to be read, in the first process; all must enter."""
        model = self.model
        if self._sharded:
            weights = self._weights()
            if self._twin is not None:
                self._twin.load_state_dict(weights)
                self._twin.updated("dynamics")
                model = self._twin
        with evaluating(model):
            yield model

    def _weights(self) -> dict[str, Tensor]:
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments and counts, whole; all processes must ask."""
        state: dict[str, Any] = {
            "model": self._weights(),
            "optimizers": {part: optimizer.state_dict() for part, optimizer in self.optimizers.items()},
            "skipped": self.skipped,
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. Raises: ValueError where names differ."""
        own = self.model.state_dict()
        if wrong := own.keys() ^ state["model"].keys():
            raise ValueError(f"the state of the model must hold its own tensors (differs in {sorted(wrong)[:5]})")
        with torch.no_grad():
            for name, tensor in own.items():
                copy_to_dtensor(tensor, state["model"][name])
        for part in self.config.parts:
            self.optimizers[part].load_state_dict(state["optimizers"][part])
            self.model.updated(part)
        self.skipped = state["skipped"]
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])


def _check_pieces(config: TokenizerStageConfig | DynamicsStageConfig) -> None:
    for name in ("batch", "accumulate", "length"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1 (got {getattr(config, name)})")
    if config.batch % config.accumulate:
        raise ValueError(f"batch must be a multiple of accumulate={config.accumulate} (got {config.batch})")
