"""Counted randomness: every draw comes from a generator named by (run seed, stream, counters).

Nothing here has state, so a checkpoint stores counters and never a generator.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seeds:
    """The family of random streams of one run.

    >>> Seeds(1).integer("env", 0, 3) == Seeds(1).integer("env", 0, 3)
    True
    >>> Seeds(1).integer("env", 0, 3) == Seeds(1).integer("env", 3, 0)
    False
    """

    run: int

    def _sequence(self, stream: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
        # crc32, not hash(): the latter changes with PYTHONHASHSEED
        return np.random.SeedSequence([self.run, zlib.crc32(stream.encode()), *counters])

    def integer(self, stream: str, *counters: int) -> int:
        """A seed in [0, 2**31) for libraries that take a plain integer."""
        return int(self._sequence(stream, counters).generate_state(1)[0] >> 1)

    def numpy(self, stream: str, *counters: int) -> np.random.Generator:
        """A NumPy generator for draw number `counters` of `stream`."""
        return np.random.default_rng(self._sequence(stream, counters))

    def torch(self, stream: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device` for draw number `counters` of `stream`."""
        generator = torch.Generator(device=device)
        generator.manual_seed(int(self._sequence(stream, counters).generate_state(1, np.uint64)[0] >> 1))
        return generator


@contextmanager
def seeded_globally(generator: torch.Generator) -> Iterator[None]:
    """Torch's global generator, which initialisers and dropout insist on, follows `generator` inside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(generator))
        yield


def generator_on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on `device` whose numbers follow from `generator`, which lives on the CPU."""
    return torch.Generator(device).manual_seed(seed_of(generator))


def seed_of(generator: torch.Generator) -> int:
    """The next number in [0, 2**62) of a generator on the CPU: a seed for another one."""
    return int(torch.randint(2**62, (), generator=generator))
