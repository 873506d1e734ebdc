"""EnginePool: the rollout engines of one model, one for each size; all of them share one set of laid-out weights."""

from __future__ import annotations

import torch

from worldmodel.layout import TokenLayout
from worldmodel.rollout.engine import TokenEngine, laid_out
from worldmodel.rollout.fused import Precision
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.transformer.llama import TransformerConfig
from worldmodel.transformer.token_model import TokenModel

ENGINES = 8
"""Sizes (acting, evaluating, dreaming, measuring, ...) whose keys and values are kept."""
STEP = 64


def bucket(rows: int) -> int:
    """Rows that a cache is made for: the next power of two, and from 64 on the next multiple of 64.

    >>> [bucket(rows) for rows in (1, 3, 20, 64, 65, 640)]
    [1, 4, 32, 64, 128, 640]
    """
    return 1 << (rows - 1).bit_length() if rows <= STEP else -(-rows // STEP) * STEP


def kv_bytes(
    transformer: TransformerConfig, layout: TokenLayout, *, rows: int, frames: int, starts: int = 0, shared: int = 0
) -> int:
    """What the engine for `rows` rows of `frames` frames takes for keys and values in float32.

    Args:
        starts: rows that these are forks of, after `shared` frames; 0: they have nothing in common.
    """
    common = layout.length(shared) if starts else 0
    positions = bucket(rows) * (layout.length(frames) - common) + starts * common
    return 2 * transformer.layers * transformer.hidden * positions * torch.float32.itemsize


class EnginePool:
    """Makes engines as they are asked for; the one that was not used for longest goes. What it held is rebuilt."""

    def __init__(
        self, model: TokenModel, *, frames: int, sampling: SamplingConfig, precision: Precision = "float32"
    ) -> None:
        """`frames`: most future frames; as for `TokenEngine`, nothing is allocated yet."""
        self._model, self._frames, self._sampling = model, frames, sampling
        self._weights = laid_out(model, sampling, precision)
        self._engines: dict[int, TokenEngine] = {}  # the newest is the last

    def engine(self, rows: int) -> TokenEngine:
        """The engine for so many rows."""
        size = bucket(rows)
        engine = self._engines.pop(size, None)
        if engine is None:
            engine = TokenEngine(
                self._model, rows=size, frames=self._frames, sampling=self._sampling, weights=self._weights
            )
        self._engines[size] = engine
        if len(self._engines) > ENGINES:
            del self._engines[next(iter(self._engines))]
        return engine

    def forget(self) -> None:
        """The weights have changed."""
        self._weights.forget()
