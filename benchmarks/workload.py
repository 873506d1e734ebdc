"""What the benchmark of rollouts works on: a random model of a size, its starts, one rollout, what that must read."""

# B rows, S starts, t context frames, N codes of a context frame, H imagined frames, K codes of a frame, A action

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import timed
from benchmarks.twin import GREEDY
from worldmodel.layout import TokenLayout
from worldmodel.rollout import TokenEngine
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision
from worldmodel.seeds import Seeds
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.transformer.decoding import DecodingConfig

PUBLISHED = TokenLayout(context=2)
SMALL = TokenLayout(context=1, codes_context=64, codes_future=4, vocab_context=512, vocab_future=512)
ACTION_DIM = 4
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
CONFIGS = Path(__file__).parents[1] / "configs" / "transformer"


@dataclass(frozen=True)
class Case:
    """What is measured of one size unless the command line says otherwise."""

    layout: TokenLayout
    rows: int
    horizon: int
    repeats: int
    copies: int = 1


CASES = {
    "micro": Case(SMALL, 64, 10, 7),
    "tiny": Case(SMALL, 64, 10, 7),
    "s": Case(SMALL, 16, 10, 3),
    "base138m": Case(PUBLISHED, 4, 4, 3),
    "medium436m": Case(PUBLISHED, 1, 4, 1),
}


class Rollout(NamedTuple):
    """Seconds of the prefill and of the frames, and the ids [B, H, K]."""

    prefill_s: float
    frames_s: float
    ids_BHK: Tensor  # noqa: N815


def set_up(size: str, case: Case, decoding: DecodingConfig, device: torch.device) -> tuple[TokenModel, Tensor, Tensor]:
    """A random model, the context codes [S, t*N] of its starts, and actions [B, H, A]."""
    layout, draw = case.layout, Seeds(0).torch("benchmark")
    model = random_model(size, case, decoding, draw).to(device)
    shape = (case.rows // case.copies, layout.context * layout.codes_context)
    starts_SN = torch.randint(layout.vocab_context, shape, generator=draw).to(device)
    actions_BHA = (torch.rand(case.rows, case.horizon, ACTION_DIM, generator=draw) * 2 - 1).to(device)
    return model, starts_SN, actions_BHA


def engine_of(model: TokenModel, case: Case, how: Precision) -> TokenEngine:
    """An engine for all rows of a case."""
    weights = laid_out(model, GREEDY, how)
    return TokenEngine(model, rows=case.rows, frames=case.horizon, sampling=GREEDY, weights=weights)


def rollout(engine: TokenEngine, starts_SN: Tensor, actions_BHA: Tensor, case: Case, device: torch.device) -> Rollout:
    """One, from reading the starts to its last frame."""
    nothing_SFK = starts_SN.new_empty(len(starts_SN), 0, case.layout.codes_future)
    prefill_s, _ = timed(partial(engine.prefill, starts_SN, nothing_SFK, None, copies=case.copies), device)
    return Rollout(prefill_s, *timed(partial(imagined, engine, actions_BHA), device))


def bytes_of_frame(model: TokenModel, case: Case, how: Precision) -> float:
    """What the passes of a frame read at least: weights, and the keys and values of all rows; the mean over frames."""
    config, layout = model.llm.config, case.layout
    matrices = config.layers * config.hidden * (4 * config.hidden + 3 * config.mlp)
    head = len(laid_out(model, GREEDY, how).ids) * config.hidden * torch.float32.itemsize
    a_position = 2 * config.layers * config.hidden * torch.float32.itemsize
    codes = layout.codes_future
    if model.decoding.has_queries:  # passes of K queries, then one that reads the frame
        drawing, lengths = len(model.draws), [*(codes for _ in model.draws), layout.stride]
    else:
        drawing, lengths = codes, list(range(1, layout.stride + 1))
    shared, total = layout.prelude if case.copies > 1 else 0, 0.0
    for frame in range(case.horizon):
        for length in lengths:
            own = layout.length(frame) + length - shared
            total += a_position * (case.rows * own + case.rows // case.copies * shared)
    return total / case.horizon + len(lengths) * matrices * BYTES[how] + drawing * head


class Launches(TorchDispatchMode):
    """Counts the operations that are started inside, views and unset memory left out: kernels, on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one, and does it."""
        lent = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        self.count += not lent and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


class Growth(NamedTuple):
    """Whole rollouts of the engine at one, two and four times a number: ms = base + each * number, by least squares."""

    size: str
    along: str
    numbers: list[int]
    ms: list[float]
    base: float
    each: float

    def __str__(self) -> str:
        fitted = [self.base + self.each * number for number in self.numbers]
        off = max(abs(a - b) / b for a, b in zip(fitted, self.ms, strict=True))
        points = ", ".join(f"{number}: {ms:.1f}" for number, ms in zip(self.numbers, self.ms, strict=True))
        return (
            f"{self.size} ms by {self.along} ({points}) = {self.base:.1f} + {self.each:.3f} x, off by {off:.0%} at most"
        )


def growth(size: str, case: Case, decoding: DecodingConfig, along: str, device: torch.device) -> Growth:
    """How a rollout's time grows with `rows`, `horizon`, `codes` or `copies`; exact products."""
    numbers, spent = [], []
    for factor in (1, 2, 4):
        if along == "codes":
            grown = replace(case, layout=replace(case.layout, codes_future=factor * case.layout.codes_future))
            numbers.append(grown.layout.codes_future)
        else:
            grown = replace(case, **{along: factor * getattr(case, along)})
            grown = replace(grown, rows=max(grown.rows, grown.copies))
            numbers.append(getattr(grown, along))
        model, starts_SN, actions_BHA = set_up(size, grown, decoding, device)
        engine = engine_of(model, grown, "float32")
        runs = [rollout(engine, starts_SN, actions_BHA, grown, device) for _ in range(case.repeats + 1)][1:]
        spent.append(1e3 * statistics.median(one.prefill_s + one.frames_s for one in runs))
    each, base = np.polyfit(numbers, spent, 1)
    return Growth(size, along, numbers, spent, float(base), float(each))


def random_model(size: str, case: Case, decoding: DecodingConfig, draw: torch.Generator) -> TokenModel:
    """A model of this size with weights from `draw`, as it is for imagining, with positions enough."""
    transformer = TransformerConfig(**{k: v for k, v in _preset(size).items() if k != "_target_"})
    positions = max(transformer.positions, case.layout.length(case.horizon))
    transformer = replace(transformer, positions=positions)
    heads = HeadConfig(action="slot", reward="none", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
    model = TokenModel(
        transformer, case.layout, condition_dim=ACTION_DIM, heads=heads, feature_dim=0, continues=False, generator=draw,
        decoding=decoding,
    )  # fmt: skip
    torch.nn.init.normal_(model.action_linear.weight, std=0.02, generator=draw)  # else actions would not matter
    return model.eval()


def imagined(engine: TokenEngine, actions_BHA: Tensor) -> Tensor:
    """Most likely ids [B, H, K] behind what the engine holds."""
    return torch.stack([engine.sample_frame(action_BA, None).ids_BK for action_BA in actions_BHA.unbind(1)], 1)


def _preset(size: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{size}.yaml").read_text())
