"""The NumPy arrays in a pickle, read as data: the instructions of the pickle are looked at, never carried out.

A pickle is a program. This reads the few instructions of which nested dicts of plain arrays are made, keeps books on
what they would have built, and refuses every other one; no name in the file is ever imported or called.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Path = tuple[str, ...]

RECONSTRUCT, NDARRAY, DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"
SAME = {"numpy._core.multiarray _reconstruct": RECONSTRUCT}  # as NumPy 2 writes it
NUMBERS = ("f4", "f8", "f2", "i4", "i8", "u1")
PLAIN = {
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MOST_INSTRUCTIONS = 1_000_000


@dataclass(frozen=True)
class Name:
    """A name that the pickle would import; only compared with the three above."""

    text: str


@dataclass
class Kind:
    """A dtype under construction."""

    code: str
    order: str = "="


@dataclass
class Array:
    """An array under construction."""

    value: NDArray | None = None


class _Mark:
    """Where a list of operands begins."""


def arrays_of_pickle(content: bytes) -> dict[Path, NDArray]:
    """Every array of a pickled nested dict, by the path of its keys.

    Args:
        content: the pickle.
    Raises: ValueError, in one line, for anything but dicts of arrays: an instruction that would import or call
        something else, a cut file, an array whose bytes are not what its shape says.
    """
    return dict(_leaves(_Books().read(content), (), set()))


def _leaves(node: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, NDArray]]:
    """`seen`: the dicts that were met, by identity: one met twice could hold itself, or stand for 2^n others."""
    if isinstance(node, dict) and id(node) not in seen:
        seen.add(id(node))
        for key, child in node.items():
            yield from _leaves(child, (*path, key), seen)
    elif isinstance(node, Array) and node.value is not None:
        yield path, node.value
    else:
        raise ValueError(f"{'/'.join(path) or 'the pickle'} is no array and no dict of arrays; nothing was loaded")


class _Books:
    """What the instructions so far would have built: a stack and a memo of plain values and placeholders."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        try:
            for count, (instruction, argument, place) in enumerate(pickletools.genops(content)):
                if count > MOST_INSTRUCTIONS:
                    raise ValueError(f"it has more than {MOST_INSTRUCTIONS} instructions")
                if instruction.name == "STOP":
                    return self.stack.pop()
                self.step(instruction.name, argument, place)
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the pickle is damaged ({error!r}); nothing was loaded") from error
        raise ValueError("the pickle ends too early; nothing was loaded")

    def step(self, name: str, argument: Any, place: int | None) -> None:
        stack, memo = self.stack, self.memo
        if name in PLAIN:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(_Mark)
        elif name in SIZES:
            self.stack[-SIZES[name] :] = [tuple(stack[-SIZES[name] :])]
        elif name == "TUPLE":
            items = self.since_mark()
            stack.append(tuple(items))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items([stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            stack.append(self.named(text, place))
        elif name == "REDUCE":
            operands = stack.pop()
            stack.append(self.begun(stack.pop(), operands))
        elif name == "BUILD":
            self.filled(stack.pop(), stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle wants {name} at byte {place}, which no dict of arrays needs; refused")

    def since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("the pickle holds a dict whose keys are not text; refused")
        target.update(zip(items[::2], items[1::2], strict=True))

    @staticmethod
    def named(text: str, place: int | None) -> Name:
        text = SAME.get(text, text)
        if text not in (RECONSTRUCT, NDARRAY, DTYPE):
            raise ValueError(
                f"the pickle wants to import {text.replace(' ', '.')[:80]} at byte {place}; refused: only arrays, "
                "as protocols 3 and 4 write them, are read, and nothing of the file was carried out"
            )
        return Name(text)

    @staticmethod
    def begun(called: Any, operands: Any) -> Array | Kind:
        """An empty array or a dtype, as `_reconstruct` and `dtype` would begin them."""
        if called == Name(RECONSTRUCT) and operands[0] == Name(NDARRAY):
            return Array()
        if called == Name(DTYPE) and operands[0] in NUMBERS:
            return Kind(code=operands[0])
        raise ValueError(f"the pickle wants to call {getattr(called, 'text', type(called).__name__)}; refused")

    @staticmethod
    def filled(state: Any, target: Any) -> None:
        """The bytes of an array, or the byte order of a dtype."""
        if isinstance(target, Kind) and isinstance(state, tuple) and state[1] in ("<", ">", "|", "="):
            target.order = state[1]
            return
        if not (isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5):
            raise ValueError("the pickle wants to set the state of something that is no array; refused")
        _, shape, kind, fortran, data = state
        if not (isinstance(kind, Kind) and isinstance(data, bytes) and isinstance(shape, tuple)):
            raise ValueError("the pickle holds an array of objects; refused")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"the pickle holds an array of shape {shape}; refused")
        dtype = np.dtype(f"{kind.order}{kind.code}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array says {list(shape)} of {dtype} but has {len(data)} bytes; refused")
        target.value = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
