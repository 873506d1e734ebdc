"""`key=value` words of a verb that has no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl.cli.errors import BadInput, did_you_mean


@dataclass(frozen=True)
class Word:
    """One key that a verb takes.

    Attributes:
        what: what its value must be, in words.
        read: makes the value of its text; a ValueError of it is told with `what` and `example`.
        default: the value where it is not given.
        needed: whether it must be given.
        example: a text that is right.
    """

    what: str
    read: Callable[[str], Any] = str
    default: Any = None
    needed: bool = False
    example: str = ""


def words(verb: str, args: Sequence[str], keys: Mapping[str, Word]) -> dict[str, Any]:
    """The value of every key. Raises: BadInput naming what is unknown, given twice, missing or wrong, and the mend."""
    given: dict[str, str] = {}
    for word in args:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            hint = did_you_mean(key, keys) or f"; {verb} takes {', '.join(f'{name}=' for name in keys)}"
            raise BadInput(f"{word} is not understood{hint}")
        if key in given:
            raise BadInput(f"{key} is given twice ({key}={given[key]} and {word}); write the one that you mean")
        given[key] = value
    if lacking := next((key for key, kind in keys.items() if kind.needed and not given.get(key)), None):
        raise BadInput(f"{lacking}= is missing: {keys[lacking].what}")
    return {key: valued(key, given[key], kind) if key in given else kind.default for key, kind in keys.items()}


def valued(key: str, text: str, kind: Word) -> Any:
    """The value of one word. Raises: BadInput."""
    try:
        return kind.read(text)
    except BadInput:
        raise
    except ValueError as error:
        example = f"; for example {key}={kind.example}" if kind.example else did_you_mean(text, kind.what.split())
        raise BadInput(f"{key} must be {kind.what} (got {text}){example}") from error


def whole(default: int | None, *, least: int = 1) -> Word:
    """A whole number."""

    def read(text: str) -> int:
        if not text.isdigit() or not least <= int(text) < 2**31:
            raise ValueError(text)
        return int(text)

    return Word(f"a whole number >= {least}", read, default, example=str(max(default or 0, least)))


def number(default: float | None, *, most: float, example: str) -> Word:
    """A number > 0."""

    def read(text: str) -> float:
        if not 0 < (value := float(text)) <= most:
            raise ValueError(text)
        return value

    return Word(f"a number > 0 and <= {most:g}", read, default, example=example)


def choice(*names: str, default: str | None = None, needed: bool = False) -> Word:
    """One of these."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    said = " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"
    return Word(said, read, default, needed)


def expanded(text: str | Path) -> Path:
    """A path as it was typed, with `~` for a home. Raises: BadInput where nobody has that name."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{text} names the home of nobody here; write ./{text} if a folder is called so") from error


def path(what: str, *, needed: bool = False) -> Word:
    """A path, there or not."""
    return Word(what, expanded, needed=needed)


def there(key: str, what: str, *, needed: bool = True) -> Word:
    """A folder that is there; where it is not needed a file will do."""

    def read(text: str) -> Path:
        found = expanded(text)
        if not (found.is_dir() or (found.exists() and not needed)):
            raise BadInput(f"{key}={text} is not {'a folder' if needed else 'there'}; give {what}")
        return found

    return Word(what, read, needed=needed)


def place(key: str, what: str, *, needed: bool = False, file: bool = False) -> Word:
    """A folder, or a file, that will be written, there or not."""

    def read(text: str) -> Path:
        found = expanded(text)
        target(key, found.parent if file else found)
        return found

    return Word(what, read, needed=needed)


def target(key: str, value: str | Path) -> Path:
    """The folder that something will be written into, there or not. Raises: BadInput if a file is in the way."""
    folder = expanded(value)
    found = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not found.is_dir():
        raise BadInput(f"{key}={value} cannot be made: {found} is no folder; give a new or an empty folder")
    return folder


def listed(text: str) -> list[str]:
    """`[a,b]` or `a,b` or `a` as a list."""
    return [item.strip() for item in text.strip().removeprefix("[").removesuffix("]").split(",") if item.strip()]


def paths_in(text: str) -> list[str]:
    """Paths with commas between, in brackets or not; the longest name that is there is one."""
    if text and expanded(text).exists():
        return [text]
    left, found = text.strip().removeprefix("[").removesuffix("]").split(","), []
    while left:
        names = (
            (count, ",".join(left[:count]).strip()) for count in range(len(left), 0, -1)
        )  # the longest that is there
        count, name = next(((n, name) for n, name in names if name and expanded(name).exists()), (1, left[0].strip()))
        found.append(name)
        left = left[count:]
    return [name for name in found if name]


def is_place(word: str) -> bool:
    """Whether a word is a path and no `key=value`: folders have such names too."""
    return "=" not in word or expanded(word).exists()


def show(rows: Sequence[tuple[str, str]]) -> None:
    """A table on the screen."""
    if rows:
        wide = max(len(where) for where, _ in rows)
        print("\n".join(f"  {where.ljust(wide)}  {what}" for where, what in rows))
