"""`key=value` words of a verb that has no configuration, and how far its work is, for a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from mbrl.cli.errors import BadInput, did_you_mean


def words(verb: str, args: Sequence[str], keys: Mapping[str, str], *, needed: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a dictionary. Raises: BadInput naming what is unknown or missing."""
    given: dict[str, str] = {}
    for word in args:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            hint = did_you_mean(key, keys) or f"; {verb} takes {', '.join(f'{name}=' for name in keys)}"
            raise BadInput(f"{word} is not understood{hint}")
        given[key] = value
    for key in needed:
        if not given.get(key):
            raise BadInput(f"{key}= is missing: {keys[key]}")
    return given


def whole(given: Mapping[str, str], key: str, default: int, *, least: int = 1) -> int:
    """A whole number. Raises: BadInput."""
    text = given.get(key, str(default))
    if not text.isdigit() or not least <= int(text) < 2**31:
        raise BadInput(f"{key} must be a whole number >= {least} (got {text}); for example {key}={max(default, least)}")
    return int(text)


def listed(text: str) -> list[str]:
    """`[a,b]` or `a,b` or `a` as a list."""
    return [item.strip() for item in text.strip().removeprefix("[").removesuffix("]").split(",") if item.strip()]


def progress(what: str, *, every: float = 5.0) -> Callable[[int, int], None]:
    """A function of (done, total) that keeps one line up to date on a screen, or writes one now and then elsewhere."""
    began, last, screen = time.monotonic(), [-every], sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        now = time.monotonic() - began
        if not total or (done < total and now - last[0] < (0.2 if screen else every)):
            return
        last[0] = now
        left = f", {(total - done) * now / done:.0f} s left" if done else ""
        end = "\r" if screen and done < total else "\n"
        print(f"{done} of {total} {what}, {now:.0f} s{left}".ljust(60), end=end, file=sys.stderr, flush=True)

    return tell


def show(rows: Sequence[tuple[str, str]]) -> None:
    """A table on the screen."""
    if rows:
        wide = max(len(where) for where, _ in rows)
        print("\n".join(f"  {where.ljust(wide)}  {what}" for where, what in rows))
