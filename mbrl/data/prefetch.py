"""Drawing before it is asked for: the clips of coming updates are made in threads while the current one computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from tensordict import TensorDict

from mbrl.data.mixture import Part
from mbrl.data.source import ClipSource


class Prefetcher:
    """A source whose next draws are under way. Draws are functions of their number, so nothing else changes.

    Args:
        source: what is drawn from.
        prefetch: draws that are made beside the one that was asked for, each in a thread of its own; at least 1.
    """

    def __init__(self, source: ClipSource, prefetch: int) -> None:
        self._source, self._prefetch = source, prefetch
        self._threads = ThreadPoolExecutor(prefetch, thread_name_prefix="clips")
        self._coming: dict[tuple[int, int, str, int], Future[TensorDict]] = {}

    @property
    def episodes(self) -> list[tuple[Part, int]]:
        """As of the source."""
        return self._source.episodes

    def clips(self, n: int, length: int, *, stream: str, draw: int) -> TensorDict:
        """`ClipSource.clips`; errors of a draw are raised when it is asked for."""
        wanted = {(n, length, stream, number): number for number in range(draw, draw + 1 + self._prefetch)}
        for key in self._coming.keys() - wanted.keys():  # of before a jump
            self._coming.pop(key).cancel()
        for key, number in wanted.items():
            if key not in self._coming:
                self._coming[key] = self._threads.submit(self._source.clips, n, length, stream=stream, draw=number)
        return self._coming.pop((n, length, stream, draw)).result()
