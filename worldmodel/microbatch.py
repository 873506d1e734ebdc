"""A clip as a part of a larger batch: with it a loss in pieces, on one machine or many, is the loss of the whole.

Knows rows, sums and generators; nothing of what is lost, and nothing of how processes talk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel import seeds


@dataclass(frozen=True, kw_only=True)
class RowNoise:
    """Random numbers for some rows of a batch: those that these rows get where the whole batch is drawn at once.

    Attributes:
        generator: the same state in every piece of the batch.
        first: the first of the rows.
        rows: of the whole batch.
    """

    generator: torch.Generator
    first: int
    rows: int

    @classmethod
    def all(cls, generator: torch.Generator, rows: int) -> RowNoise:
        """The rows are the whole batch."""
        return cls(generator=generator, first=0, rows=rows)


Source = torch.Generator | RowNoise


def uniform(shape: torch.Size, source: Source, *, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers in [0, 1), [rows, ...]."""
    if isinstance(source, torch.Generator):
        return torch.rand(shape, generator=source, device=device, dtype=dtype)
    whole = torch.rand((source.rows, *shape[1:]), generator=source.generator, device=device, dtype=dtype)
    return whole[source.first : source.first + shape[0]]


def normal(shape: torch.Size, source: Source, *, device: torch.device) -> Tensor:
    """Standard normal numbers, [rows, ...]."""
    if isinstance(source, torch.Generator):
        return torch.randn(shape, generator=source, device=device)
    whole = torch.randn((source.rows, *shape[1:]), generator=source.generator, device=device)
    return whole[source.first : source.first + shape[0]]


def integers(high: int, shape: torch.Size, source: Source, *, device: torch.device) -> Tensor:
    """Whole numbers in [0, high), int64 [rows, ...]."""
    if isinstance(source, torch.Generator):
        return torch.randint(high, shape, generator=source, device=device)
    whole = torch.randint(high, (source.rows, *shape[1:]), generator=source.generator, device=device)
    return whole[source.first : source.first + shape[0]]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Which part of a global batch a clip is. The loss of the batch is the mean of the losses of its pieces.

    Attributes:
        first: the clip's first row in the batch.
        rows: of the batch.
        piece: number of this clip among the pieces; all have equally many rows.
        pieces: how many there are, over all processes.
        processes: how many processes share the batch.
        whole: all clips of this process: its pieces one after another.
        total: sums a tensor over all processes, with gradient.
    """

    first: int
    rows: int
    piece: int
    pieces: int
    processes: int
    whole: Mapping[str, Tensor]
    total: Callable[[Tensor], Tensor]

    @classmethod
    def alone(cls, clip: Mapping[str, Tensor]) -> MicroBatch:
        """A clip that is the whole batch."""
        rows = len(clip["action"])
        return cls(first=0, rows=rows, piece=0, pieces=1, processes=1, whole=clip, total=lambda tensor: tensor)

    def noise(self, generator: torch.Generator) -> RowNoise:
        """Random numbers by row; `generator` has the same state in every piece."""
        return RowNoise(generator=generator, first=self.first, rows=self.rows)

    def own(self, generator: torch.Generator) -> torch.Generator:
        """A generator of this piece alone (dropout, which nobody can draw by row); `generator` as for `noise`."""
        return torch.Generator().manual_seed(seeds.seed_of(generator) + self.piece)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        return self.total(value) / self.processes

    def scale(self, known: Tensor, known_whole: Tensor) -> Tensor:
        """What the mean over a piece's known elements is to be multiplied by, so that all pieces count by how many.

        Args:
            known: bool, of this clip.
            known_whole: the same of `whole`.
        """
        expected = self.total(known_whole.sum().float()) / self.pieces
        return known.sum().clamp(min=1) / expected.clamp(min=1 / self.pieces)
