"""One process per run folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
from pathlib import Path
from types import TracebackType

from mbrl.files import NotPlain, named, read_plain

log = logging.getLogger(__name__)

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""


class RunInUse(ValueError):
    """Another process writes to the same run folder (exit code 2)."""


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock now; creates nothing, and keeps nobody out but for an instant."""
    try:
        handle = os.open(folder / "run.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    finally:
        os.close(handle)
    return False


def orphaned(folder: Path) -> bool:
    """Whether the lock is held by a child of a process of this machine that has died since (it inherited the lock)."""
    if not in_use(folder):
        return False
    said = re.fullmatch(r"pid (\d+) on host (.+)\n?", read_plain(folder / "run.lock").decode(errors="replace"))
    if said is None or said[2] != socket.gethostname():
        return False
    try:
        os.kill(int(said[1]), 0)  # asks only
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        return False
    return False


class RunLock:
    """Holds `run.lock` in `folder` from construction until `close` or the end of the process, however it ends.

    Also a context manager. On a file system without locks it warns and goes on.

    Raises: RunInUse with process id and host of the holder; NotPlain where the lock is none.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "run.lock"
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise NotPlain(f"{self._path} is a link, a pipe or a folder; a lock is a plain file: remove it")
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 256, 0).decode(errors="replace").strip() or "another process"
            self.close()
            raise RunInUse(f"{folder} is in use by {holder}: wait for it, or choose another run_dir") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                self.close()
                raise
            log.warning("%s cannot be locked (%s): do not start a second process on it", folder, error.strerror)
        try:
            with named(self._path):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """The open file. A child process that inherits it holds the lock too, whatever becomes of this process."""
        return self._handle

    def close(self) -> None:
        """Lets go. The file stays: deleting it could take the lock from under a process that just opened it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
