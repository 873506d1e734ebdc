"""Frames as captured CUDA graphs: a frame's hundreds of small kernels are started by one call of the host.

A graph repeats what was started while it was recorded, on the same memory: so there is one for each shape and position,
its inputs are copied into tensors of its own, and it lives as long as weights, keys and values stay where they are
(`FusedTransformer` refreshes them in place). Rows that share a prefix, which is new memory, are drawn without graphs.
Each new graph is played once against the frame that was drawn without it; where it cannot be recorded, or gives
something else, the engine goes on without graphs and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger("worldmodel")

Work = Callable[..., tuple[Tensor, ...]]
"""Tensors in, tensors out; starts the same operations each time, reads nothing on the host, draws no numbers."""
Record = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Callable[[], None], tuple[Tensor, ...]]]
"""Of work without arguments: what plays it again, and the tensors that hold its results then."""
CLOSE = 1e-3
"""Hidden states of a graph and of its twin may differ by that: a library may choose another kernel."""


def recorded_on_card(work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """A CUDA graph of `work`, which has run before: libraries have their workspaces. Raises: RuntimeError."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may copy clips meanwhile
        results = work()
    return graph.replay, results


def agree(played: Tensor, drawn: Tensor) -> bool:
    """Whether a graph gave what its twin gave: the same ids, and nearly the same numbers. A host sync, once a graph."""
    if not drawn.is_floating_point():
        return torch.equal(played, drawn)
    return torch.allclose(played, drawn, rtol=CLOSE, atol=CLOSE)


@dataclass(frozen=True)
class Played:
    """A graph with the tensors that it reads and writes, and where the memory lies that it was recorded on."""

    play: Callable[[], None]
    inputs: Sequence[Tensor]
    results: tuple[Tensor, ...]
    places: tuple[int, ...]


class Graphs:
    """The graphs of one engine.

    Attributes:
        record: how one is made; tests repeat the work instead.
    """

    def __init__(self, record: Record = recorded_on_card) -> None:
        self.record = record
        self.failed = False
        self._held: dict[tuple[object, ...], Played] = {}

    def __call__(
        self, key: object, work: Work, *inputs: Tensor, places: Callable[[], tuple[int, ...]]
    ) -> tuple[Tensor, ...]:
        """What `work(*inputs)` gives, by a graph where the inputs are on a card.

        Args:
            key: all that decides which operations `work` starts, but for the shapes of the inputs.
            places: addresses of all else that it reads and writes.
        """
        if self.failed or (self.record is recorded_on_card and not inputs[0].is_cuda):
            return work(*inputs)
        full_key, now = (key, *(tuple(x.shape) for x in inputs)), places()
        graph = self._held.get(full_key)
        if graph is None or graph.places != now:
            return self._first(full_key, work, inputs, now)
        for own, given in zip(graph.inputs, inputs, strict=True):
            own.copy_(given)
        graph.play()
        return tuple(x.clone() for x in graph.results)

    def _first(
        self, key: tuple[object, ...], work: Work, inputs: Sequence[Tensor], places: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Runs the work, records it, and compares."""
        plain = work(*inputs)
        own = [x.clone() for x in inputs]
        try:
            play, results = self.record(lambda: work(*own))
            play()
            if not all(map(agree, results, plain)):
                raise RuntimeError("it gives something else than the same frame without it")
        except RuntimeError as error:
            self.failed, self._held = True, {}
            log.warning("frames are drawn without CUDA graphs: %s", " ".join(str(error).split())[:200])
            return plain
        self._held[key] = Played(play, own, results, places)
        return plain
