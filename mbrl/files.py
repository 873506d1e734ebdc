"""Files that survive a crash: written whole and on disk before anybody can see them, set aside when damaged.

Knows paths and bytes only. Everything ends in `os.write`, `os.fsync` and `os.rename`, so that a test can kill the
process at each of them.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
"""How the name of everything unfinished begins; whoever owns a folder deletes these when it starts."""


MOST_TEXT, MOST_ROWS = 2**20, 2**28
"""Bytes of a configuration or a record, and of a table, that are read before anything is known of them."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSYNCED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system answers that does not know `fsync`."""
_warned: set[int] = set()
"""File systems of which that was said."""


class DamagedFile(Exception):
    """A file is not what was once written (exit code 3); the message names it and says what is wrong."""


class NotPlain(ValueError):
    """Something in a folder is neither a plain file nor a folder, or larger than a run makes it (exit code 2)."""


def check_plain(folder: Path) -> None:
    """Looks through a whole folder that somebody else may have made, before anything in it is opened or written.

    A link could lead what is written to a file outside, a pipe would let a reader wait for ever. What `wandb` keeps in
    its own folder is not looked at: it links, and nobody here opens anything there.
    Raises: NotPlain naming the first thing that is neither a plain file nor a folder.
    """
    for place, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            path = Path(place, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a run that goes on renames and rotates its files
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
                raise NotPlain(f"{path} is {what}; a run folder holds plain files and folders only: remove it")
        if Path(place) == folder and "wandb" in folders:
            folders.remove("wandb")


def read_plain(path: Path, *, most: int = MOST_TEXT) -> bytes:
    """The bytes of a plain file of at most `most` bytes. Raises: NotPlain; OSError where it cannot be opened."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would block
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotPlain(f"{path} is no plain file")
        if status.st_size > most:
            raise NotPlain(f"{path} has {status.st_size} bytes; at most {most} are right")
        with named(path), open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def sha256(content: bytes | memoryview) -> str:
    """The hash, in hex, that manifests and listings carry."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def named(path: Path, *, needed: int = 0) -> Iterator[None]:
    """An OSError of the body names the path, and of a full disk how many bytes were to be written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        room = f"; {needed} bytes were to be written" if error.errno in FULL and needed else ""
        raise type(error)(error.errno, f"{error.strerror}{room}", str(path)) from error


def fsync(handle: int, path: Path) -> None:
    """Waits until an open file or folder is on disk; where its file system cannot promise that, says so once."""
    try:
        with named(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        if (device := os.fstat(handle).st_dev) not in _warned:
            _warned.add(device)
            log.warning("WARNING: %s lies where nothing can be waited for: a power cut may lose what was saved", path)


def fsync_folder(folder: Path) -> None:
    """Makes creations and renames inside `folder` durable (a file's own fsync does not)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(handle, folder)
    finally:
        os.close(handle)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a new file and waits until it is on disk. For a file inside a folder that is not published yet."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content).cast("B")
        with named(path, needed=len(rest)):
            while rest:
                rest = rest[os.write(handle, rest) :]  # one call may write less than it was given
        fsync(handle, path)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes or replaces `path`: whatever happens, a reader sees the old content or the new one, never a part.

    Raises: OSError (disk full, no permission); the temporary file is gone then and the old content still there.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        write_durably(temporary, content)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error  # nobody asked for the temporary one
    fsync_folder(path.parent)


def set_aside(path: Path, folder: Path) -> Path:
    """Moves `path` (file or folder) into `folder` under a free name; nothing is ever overwritten or deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    target, copies = folder / path.name, 0
    while target.exists():
        copies += 1
        target = folder / f"{path.name}.{copies}"
    path.rename(target)
    fsync_folder(folder)
    fsync_folder(path.parent)
    return target


def clear_temporaries(folder: Path) -> int:
    """Deletes what a killed writer left unfinished directly inside `folder`; returns how many."""
    left = list(folder.glob(f"{TEMPORARY}*"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return len(left)
