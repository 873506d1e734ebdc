"""How this program is called: commands that can be pasted back."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def packaged_configs() -> Path:
    """The configurations that came with this installation: `configs/` of a checkout, or package data of a wheel."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def program() -> str:
    """`mbrl` where the shell finds it, else a path to it, or `<python> -m mbrl`; paths below here are relative.

    Anything else that imports this package (a notebook, a test) is told the usual name.
    """
    started = Path(sys.argv[0])
    if (started.parent.name, started.name) == ("mbrl", "__main__.py"):
        return f"{found_as(Path(sys.executable))} -m mbrl"
    return found_as(started) if started.name == "mbrl" else "mbrl"


def command(verb: str, own: Path | None = None, **words: object) -> str:
    """A command line that can be pasted as it stands, whatever the folders in it are called.

    Args:
        own: the user's folder of configurations, where there is one.
    """
    typed = [f"--config-dir={own.absolute()}"] if own is not None else []
    typed += [f"{key}={value}" for key, value in words.items()]
    return " ".join([program(), verb, *map(shlex.quote, typed)])


def found_as(path: Path) -> str:
    """An executable as one types it here: its bare name if that means this very file, else its path, quoted."""
    on_path = shutil.which(path.name)
    if on_path is not None and Path(on_path).absolute() == path.absolute():
        return path.name
    relative = os.path.relpath(path.absolute())
    return shlex.quote(str(path.absolute()) if relative.startswith("..") else relative)
