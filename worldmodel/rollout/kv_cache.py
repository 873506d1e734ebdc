"""Static buffers for keys and values: written in place, rewound by moving the position.

Knows nothing of tokens, frames or networks.
"""

# L layers, B rows, H heads, N positions, C channels per head, T new positions

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of up to `positions` positions of up to `rows` rows; all rows share one position."""

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        positions: int,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.k_LBHNC = torch.empty(layers, rows, heads, positions, channels, dtype=dtype, device=device)
        self.v_LBHNC = torch.empty_like(self.k_LBHNC)
        self._position = 0

    @property
    def position(self) -> int:
        """Positions held: the next one to be written."""
        return self._position

    def extend(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions of one layer; returns views of keys and values [B, H, position + T, C].

        Raises: ValueError if the rows or positions do not fit.
        """
        rows, _, new, _ = k_BHTC.shape
        _, most_rows, _, most, _ = self.k_LBHNC.shape
        end = self._position + new
        if rows > most_rows or end > most:
            raise ValueError(
                f"{rows} rows of {end} positions do not fit a cache of {most_rows} rows of {most} positions"
            )
        k_BHNC, v_BHNC = self.k_LBHNC[layer, :rows, :, :end], self.v_LBHNC[layer, :rows, :, :end]
        k_BHNC[:, :, self._position :] = k_BHTC
        v_BHNC[:, :, self._position :] = v_BHTC
        return k_BHNC, v_BHNC

    def advance(self, positions: int) -> None:
        """Move on once every layer has written."""
        self._position += positions

    def take(self, source: KVCache, *, rows: int, copies: int, positions: int) -> None:
        """Hold the first `rows` rows of `source` (perhaps this cache itself), each `copies` times, and nothing else."""
        for own, theirs in ((self.k_LBHNC, source.k_LBHNC), (self.v_LBHNC, source.v_LBHNC)):
            for layer in range(len(own)):
                content = theirs[layer, :rows, :, :positions].repeat_interleave(copies, 0)
                own[layer, : rows * copies, :, :positions] = content
        self._position = positions

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on; costs nothing.

        Raises: ValueError if the cache does not reach that far.
        """
        if not 0 <= position <= self._position:
            raise ValueError(f"cannot rewind to position {position}: the cache holds {self._position}")
        self._position = position
