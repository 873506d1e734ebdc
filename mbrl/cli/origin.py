"""Whose code an error comes from: the project's, or a user's (an agent, a world, a policy).

What a library raises is its caller's.

Reads tracebacks only.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from mbrl.rundir.build import OURS, named_packages

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(f"{ROOT / name.rstrip('.')}{os.sep}" for name in (*OURS, "benchmarks", "tests"))
STDLIB = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
BEGINNING = ("<module>", "build", "__init__", "__post_init__", "facts", "complaints")
"""Functions of a user's in which nothing has begun yet, so that what they raise is bad input."""


@dataclass(frozen=True)
class Place:
    """A line of code that is in no library."""

    code: CodeType
    line: int

    @property
    def ours(self) -> bool:
        """Whether it is the project's."""
        return self.code.co_filename.startswith(PACKAGES)

    def __str__(self) -> str:
        """`my_agents.py:31`; paths below here are relative."""
        path = os.path.relpath(self.code.co_filename)
        return f"{self.code.co_filename if path.startswith('..') else path}:{self.line}"


def places(error: BaseException) -> list[Place]:
    """The way to where an error was raised, outermost first, without libraries."""
    walked = traceback.walk_tb(error.__traceback__)
    return [
        Place(frame.f_code, line)
        for frame, line in walked
        if not in_library(frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")))
    ]


def in_library(path: str, module: str) -> bool:
    """Whether code belongs to Python or to an installed package that neither is ours nor was named by the user."""
    if path.startswith(PACKAGES):
        return False
    if any(part in path for part in INSTALLED):
        return module.split(".")[0] not in named_packages
    return path.startswith(("<", *STDLIB))


def users(error: BaseException) -> list[Place]:
    """The user's own part of the way, if the error was raised there, of whatever kind it is; else nothing."""
    way = places(error)
    return [] if not way or way[-1].ours else callers(error)


def callers(error: BaseException) -> list[Place]:
    """The user's own part of the way, wherever it led: what was given to a function of ours came from there."""
    return [place for place in places(error) if not place.ours]


def cause(error: BaseException) -> BaseException:
    """What an error was made of in the end."""
    seen = [error]
    while (last := seen[-1].__cause__) is not None and all(last is not one for one in seen):
        seen.append(last)
    return seen[-1]
