"""What classes of others say and do, told in one line of bounded length: their errors, and answers that are wrong.

Whatever an object does when it is looked at, these functions answer. Imports nothing.
"""

from __future__ import annotations

from typing import Any

MOST = 500
"""Letters of a line about somebody else's error; `--debug` shows the rest."""


class WrongAnswer(TypeError):
    """A method of somebody's class returned what it must not (exit code 4)."""


def wrong(owner: Any, name: str, right: str, got: str) -> WrongAnswer:
    """`Mine.learn must return <right> (got <got>)`."""
    return WrongAnswer(f"{method(owner, name)} must return {right} (got {got})")


def method(owner: Any, name: str) -> str:
    """`Mine.learn`, of an object or its class; a function or a lambda is called by its own name."""
    if name == "__call__" and hasattr(owner, "__qualname__"):
        return str(owner.__qualname__)
    return f"{(owner if isinstance(owner, type) else type(owner)).__qualname__}.{name}"


def said(error: BaseException, most: int = MOST) -> str:
    """The words of an error, even of one whose `__str__` raises."""
    try:
        return shortened(str(error), most)
    except Exception as other:  # a user's class may do anything in `__str__`
        return f"(its __str__ raised {type(other).__name__})"


def raised(who: str, error: BaseException, place: object = "", words: str | None = None) -> str:
    """`Mine.learn raised ValueError at my_agents.py:31: no such key`; `words`: the error's, where they are known."""
    line = f"{who} raised {type(error).__name__}{f' at {place}' if place else ''}"
    words = shortened(said(error) if words is None else words, max(MOST // 4, MOST - len(line) - 2))
    return f"{line}: {words}" if words else line


def shown(value: Any) -> str:
    """A value that is of the wrong kind, shortly; of arrays and tensors their kind and shape."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    try:
        if getattr(value, "shape", ()) and hasattr(value, "dtype"):
            return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
        text = " ".join(repr(value).split())
    except Exception:  # as above, in `__repr__`
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."


def shortened(text: str, most: int) -> str:
    """`text` on one line, unprintable letters spelled out; of a longer one its beginning and its end."""
    line = _cut(" ".join(text.split()), most)
    return _cut("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line), most)


def _cut(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    end = (most - 5) // 3
    return f"{line[: most - 5 - end]} ... {line[len(line) - end :]}"
