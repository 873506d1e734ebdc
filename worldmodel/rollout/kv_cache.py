"""Buffers for keys and values: written in place, rewound by moving the position; what rows share is held once.

Knows nothing of tokens, frames or networks.
"""

# L layers, B rows, H heads, N positions of a row's own, C channels per head, T new positions, S starts,
# P positions that all rows of a start share

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of up to `positions` positions of up to `rows` rows; all rows share one position.

    The first positions may be the same for several rows (`take`): then they are held once for all of these, and the
    rows' own positions follow them.
    """

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
        """Own positions are allocated when the first of them is written: no more than can follow the shared ones."""
        self.k_LBHNC = torch.empty(layers, rows, heads, 0, channels, dtype=dtype, device=device)
        self.v_LBHNC = torch.empty_like(self.k_LBHNC)
        self._most, self._position, self._shared = positions, 0, 0
        self._shared_kv: tuple[Tensor, Tensor] | None = None  # [L, S, H, P, C], never written to; at least `_shared`

    @property
    def position(self) -> int:
        """Positions held: the next one to be written."""
        return self._position

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that are allocated."""
        return sum(x.nbytes for x in (self.k_LBHNC, self.v_LBHNC, *(self._shared_kv or ())))

    @property
    def shares(self) -> bool:
        """Whether rows have positions in common."""
        return self._shared_kv is not None and self._shared > 0

    def empty(self, *, rows: int, positions: int) -> KVCache:
        """One of another size for the same layers."""
        layers, _, heads, _, channels = self.k_LBHNC.shape
        return KVCache(
            layers=layers,
            rows=rows,
            heads=heads,
            positions=positions,
            channels=channels,
            dtype=self.k_LBHNC.dtype,
            device=self.k_LBHNC.device,
        )

    def shared(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [S, H, P, C] of what all rows of each start hold in common, before their own; or None."""
        if self._shared_kv is None or not self.shares:
            return None
        k_LSHPC, v_LSHPC = self._shared_kv
        return k_LSHPC[layer, :, :, : self._shared], v_LSHPC[layer, :, :, : self._shared]

    def extend(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions of one layer; views of the rows' own, [B, H, N + T, C] (all, if none are shared).

        Raises: ValueError if the rows or positions do not fit.
        """
        rows, _, new, _ = k_BHTC.shape
        most_rows, end, own = self.k_LBHNC.shape[1], self._position + new, self._position - self._shared
        if rows > most_rows or end > self._most:
            raise ValueError(
                f"{rows} rows of {end} positions do not fit a cache of {most_rows} rows of {self._most} positions"
            )
        if own == 0:
            self._make_room()
        k_BHNC, v_BHNC = (x[layer, :rows, :, : own + new] for x in (self.k_LBHNC, self.v_LBHNC))
        k_BHNC[:, :, own:] = k_BHTC
        v_BHNC[:, :, own:] = v_BHTC
        return k_BHNC, v_BHNC

    def _make_room(self) -> None:
        """For all own positions that can come; there is none yet."""
        layers, rows, heads, there, channels = self.k_LBHNC.shape
        if there < (room := self._most - self._shared):
            self.k_LBHNC, self.v_LBHNC = (self.k_LBHNC.new_empty(layers, rows, heads, room, channels) for _ in "kv")

    def advance(self, positions: int) -> None:
        """Move on once every layer has written."""
        self._position += positions

    def take(self, source: KVCache, *, rows: int, copies: int, positions: int) -> None:
        """Hold the first `rows` rows of another cache, each `copies` times, and nothing else.

        What the rows of the source share they go on to share; if they share nothing, each becomes a start.
        """
        if source._shared_kv is None:
            self._shared_kv = (
                source.k_LBHNC[:, :rows, :, :positions].clone(),
                source.v_LBHNC[:, :rows, :, :positions].clone(),
            )
            self._shared = positions
        else:
            self._shared_kv, self._shared = source._shared_kv, min(source._shared, positions)
            self._make_room()
            for own, theirs in ((self.k_LBHNC, source.k_LBHNC), (self.v_LBHNC, source.v_LBHNC)):
                for layer in range(len(own)):
                    content = theirs[layer, :rows, :, : positions - self._shared].repeat_interleave(copies, 0)
                    own[layer, : rows * copies, :, : positions - self._shared] = content
        self._position = positions

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on; costs nothing.

        Raises: ValueError if the cache does not reach that far.
        """
        if not 0 <= position <= self._position:
            raise ValueError(f"cannot rewind to position {position}: the cache holds {self._position}")
        self._position, self._shared = position, min(position, self._shared)
        if position == 0:
            self._shared_kv = None
