"""What a machine can do at most, measured: beside it stands what a benchmark reaches."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
SIDE = 1024
"""Of the square matrices that are multiplied."""
COPIED = 2**28
"""Bytes, many times what any cache of a processor holds."""


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of one call, and what it gave."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    return timed(work, device)[0]


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device) -> float:
    """Operations per second of a product of large float32 matrices, the best of ten."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).unbind(0)
    return 2.0 * SIDE**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a large block; the best of five."""
    source, target = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    return 2.0 * COPIED / min(seconds(lambda: target.copy_(source), device) for _ in range(5))


def peak_mib(device: torch.device) -> float:
    """Most memory that this process has held, on a GPU the tensors there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
