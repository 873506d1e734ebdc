"""What a person is told when something goes wrong: one line, and an exit code that scripts can rely on.

Opens no configuration (mbrl/cli/compose.py does) and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable

from mbrl.cli.origin import BEGINNING, Place, callers, cause, places, users
from mbrl.files import DamagedFile
from mbrl.memory import out_of_memory
from mbrl.progress import leave_line
from mbrl.rundir.build import OURS
from worldmodel.answers import MOST, raised, said, shortened

DONE = 0
BUG = 1
BAD_INPUT = 2
DAMAGED = 3
DIVERGED = 4
INTERRUPTED = 130  # 128 + SIGINT, as a shell counts
MOST_NOTES = 4 * MOST
"""Letters of what was said of an error on its way: where the run was, what is saved, the command that goes on."""


class BadInput(ValueError):
    """What the user typed or pointed at cannot work; the message names the key, the value and the mend."""


CODES: tuple[tuple[type[BaseException], int], ...] = (
    (DamagedFile, DAMAGED),
    (FloatingPointError, DIVERGED),  # losses, rewards or observations that stopped being numbers
    (ValueError, BAD_INPUT),
    (IsADirectoryError, BAD_INPUT),  # a folder stands where a file belongs
    (OSError, BUG),  # disk full, no permission: the line says it, a traceback adds nothing
    (KeyboardInterrupt, INTERRUPTED),
)
CODES_BY_NAME = {  # classes whose modules are too heavy to import here; they come before their base classes in CODES
    "mbrl.envs.simulator.EnvDataError": DIVERGED,  # an action or a reward that is no number, a world that breaks
    "mbrl.io.tree.Diverged": DIVERGED,  # a checkpoint would hold numbers that are none
    "worldmodel.answers.WrongAnswer": DIVERGED,  # what a class of the user's returned
    "worldmodel.processes.Lost": BUG,  # another process has said why, or was killed
    "mbrl.envs.back_end.NoRendering": BAD_INPUT,  # its message is the package to install
}


def foreseen(error: BaseException) -> int | None:
    """The exit code of an error that has one; None for whatever nobody foresaw, which is a bug of this project."""
    if isinstance(error, KeyboardInterrupt):  # wherever it arrived
        return INTERRUPTED
    if own := blamed(error):
        return BAD_INPUT if own[0].code.co_name in BEGINNING else DIVERGED
    return of_kind(error)


def of_kind(error: BaseException) -> int | None:
    """The exit code of an error of the project's own, by its kind."""
    if out_of_memory(error):
        return BUG
    for kind in type(error).__mro__:
        code = CODES_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
        if code is not None:
            return code
    return next((code for kind, code in CODES if isinstance(error, kind)), None)


def blamed(error: BaseException) -> list[Place]:
    """The user's own part of the way, where the mistake is there and not on the command line.

    That is: the error was raised there, or a function of ours refused what it was given from there.
    """
    if own := users(error):
        return own
    own = callers(error)
    return own if own and own[0].code.co_name not in BEGINNING and of_kind(error) == BAD_INPUT else []


def exit_code(error: BaseException) -> int:
    """The exit code an error ends the process with."""
    code = foreseen(error)
    return BUG if code is None else code


def one_line(error: BaseException) -> str:
    """The error as a person reads it, on one line of bounded length: its words, where it comes from, its notes."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text, kind = words(error), type(error).__name__
    if own := blamed(error):
        text = raised(own[0].code.co_qualname, error, own[-1], words(error))
    elif out_of_memory(error):
        text = f"out of memory{where(error)}" + (f": {text}" if text else "")
    elif isinstance(error, OSError) and error.errno and error.filename is None:
        text += where(error)
    elif foreseen(error) == DIVERGED and (own := users(cause(error))):
        text += f", at {own[-1]}"  # of a world or a policy, whose place in the run the words tell
    notes = getattr(error, "__notes__", None)
    added = shortened("; ".join(map(str, notes)), MOST_NOTES) if isinstance(notes, list) else ""
    return "; ".join(filter(None, (text or kind, added)))


def words(error: BaseException) -> str:
    """What an error says of itself, on one line; an OSError begins with its paths."""
    if isinstance(error, OSError) and error.strerror:
        paths = " to ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
        return shortened(f"{paths}: {error.strerror}" if paths else error.strerror, MOST)
    ours = type(error).__module__.startswith(OURS)  # of another's error these names may mean anything
    return shortened(error.headline, MOST) if ours and hasattr(error, "headline") else said(error)


def where(error: BaseException) -> str:
    """` in Updater.update at worldmodel/training/updater.py:88`."""
    return f" in {way[-1].code.co_qualname} at {way[-1]}" if (way := places(error)) else ""


def guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Runs `work` and turns what it raises into a line on stderr and an exit code.

    Foreseen errors and those of a user's code show no traceback unless `debug`; an error that nobody foresaw always
    shows it.
    """
    try:
        return work()
    except KeyboardInterrupt as error:
        leave_line()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return exit_code(error)
    except BaseException as error:  # a user's class may raise any, GeneratorExit too
        if isinstance(error, SystemExit | BrokenPipeError) and not users(error):
            raise  # a library ends the program; the reader has gone, and there is nobody to tell
        leave_line()
        if debug or foreseen(error) is None:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        if type(error).__module__.startswith(OURS) and hasattr(error, "table"):
            print(error.table, file=sys.stderr)  # of weights that do not fit: a row for each
        return exit_code(error)


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of `known` that look like `word`, best first; for dotted keys the last part counts by itself too."""
    known = sorted(set(known))
    whole = difflib.get_close_matches(word, known, n=n, cutoff=0.7)
    last = word.rsplit(".", 1)[-1]
    tails = {name: name.rsplit(".", 1)[-1] for name in known}
    close = set(difflib.get_close_matches(last, set(tails.values()), n=n, cutoff=0.75))
    exact = [name for name in known if tails[name] == last]
    return list(dict.fromkeys(exact + whole + [name for name in known if tails[name] in close]))[:n]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean a, b or c?`, or nothing when nothing is near."""
    names = nearest(word, known)
    if not names:
        return ""
    return "; did you mean " + (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}") + "?"
