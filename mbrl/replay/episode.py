"""One finished episode of real experience, and its file: an npz without object arrays, written once, read with care.

Knows nothing of other episodes, of sampling or of token codes: pixels are the source of truth.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mbrl.files import DamagedFile, NotPlain, read_plain, sha256, write_atomically

FORMATS = (2, 3)
"""What is read: 2 is an episode with actions and rewards, 3 one that lacks either; the members are the same.

A file says 2 wherever it can, so that what replay writes is what it always was, and says 3 where a version that knows
only 2 would have to call it damaged.
"""
MAX_SIDE, MAX_DECISIONS, MAX_ACTIONS, MAX_KNOWN, MAX_BYTES = 1024, 100_000, 1024, 100_000, 2**31
"""Caps that hold before anything is allocated: a hostile header must not exhaust the memory."""
NAME = re.compile(r"ep-(\d{6,})-e(\d{2,})-(\d+)-([0-9a-f]{8})\.npz")
WHOLE = ("format", "env", "number")
"""Members that are one integer."""
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<descr>[^']{1,8})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]{0,64})\), \} *\n",
    re.DOTALL,
)
DEFLATE_LEVEL = 6
"""On 101 Meta-World frames of 64x64 (1.24 MB): level 1 leaves 19 % in 6 ms, 6 leaves 12 % in 10 ms, 9 takes 54 ms."""


class DamagedEpisode(DamagedFile):
    """An episode file that must not be used."""


class OtherFormat(ValueError):
    """An episode file that another version of this program wrote: nothing is wrong with it, but it says too little."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A finished episode of L decisions. Row i of all but the first four belongs to the step from frame i to frame i+1.

    A video is an episode too: with no actions (A = 0), with rewards that nobody knows, or with neither.

    Attributes:
        pixels: frames, u8 [L+1, 3, H, W].
        proprio: what a robot knows of itself in each frame, f32 [L+1, Q]; Q may be 0.
        state: the simulator's knowledge, for instruments, f32 [L+1, S]; S may be 0.
        snapshot: what a simulator can go on from, f64 [L+1, P]; P is 0 unless the world model reads it.
        action: f32 [L, A]; in [-1, 1] where it is of a task of ours; A is 0 where there are none.
        reward: received on arriving in frame i+1, f32 [L]; NaN in all steps where rewards are unknown.
        terminated: the task ended in frame i+1, bool [L]; only the last may be set.
        truncated: the episode was cut after frame i+1, bool [L]; only the last may be set.
        success: bool [L].
        env: row of the environment that it comes from.
        number: counts the finished episodes of the run, over all environments.
    """

    pixels: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    state: NDArray[np.float32]
    snapshot: NDArray[np.float64]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    env: int
    number: int

    DTYPES: ClassVar[dict[str, str]] = {
        "pixels": "|u1",
        "proprio": "<f4",
        "state": "<f4",
        "snapshot": "<f8",
        "action": "<f4",
        "reward": "<f4",
        "terminated": "|b1",
        "truncated": "|b1",
        "success": "|b1",
    }

    def __post_init__(self) -> None:
        for name, dtype in self.DTYPES.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
                raise ValueError(
                    f"{name} must be an array of {np.dtype(dtype)} (got {getattr(array, 'dtype', type(array))})"
                )
            view = array.view()
            view.flags.writeable = False  # an episode never changes; others may hold the same memory
            object.__setattr__(self, name, view)
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        if (
            self.action.ndim != 2
            or not 1 <= len(self.action) <= MAX_DECISIONS
            or not self.action.shape[1] <= MAX_ACTIONS
        ):
            raise ValueError(f"action must be [L, A] with at least one decision (got {list(self.action.shape)})")
        decisions = len(self.action)
        sides = self.pixels.shape[2:]
        if self.pixels.shape[:2] != (decisions + 1, 3) or len(sides) != 2 or not all(1 <= s <= MAX_SIDE for s in sides):
            raise ValueError(f"pixels must be [{decisions + 1}, 3, H, W] (got {list(self.pixels.shape)})")
        for name in ("proprio", "state", "snapshot"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape[0] != decisions + 1 or shape[1] > MAX_KNOWN:
                raise ValueError(f"{name} must be [{decisions + 1}, <= {MAX_KNOWN}] (got {list(shape)})")
        for name in ("reward", "terminated", "truncated", "success"):
            if getattr(self, name).shape != (decisions,):
                raise ValueError(f"{name} must be [{decisions}] (got {list(getattr(self, name).shape)})")
        if self.env < 0 or self.number < 0:
            raise ValueError(f"env and number must be >= 0 (got {self.env} and {self.number})")

    def _check_values(self) -> None:
        for name in ("proprio", "state", "action", "reward"):
            if not np.isfinite(getattr(self, name)).all() and (name != "reward" or self.rewarded):
                or_unknown = " (or NaN in all steps, where it is unknown)" if name == "reward" else ""
                raise ValueError(f"{name} of episode {self.number} must be finite{or_unknown}")
        ended = self.terminated | self.truncated
        if not ended[-1] or ended[:-1].any():
            raise ValueError(
                f"episode {self.number} must be terminated or truncated at its last decision and nowhere else "
                f"(ended after {(np.flatnonzero(ended) + 1).tolist()} of {len(ended)})"
            )

    def __len__(self) -> int:
        """Decisions L."""
        return len(self.action)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Episode) and all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name), equal_nan=field.name == "reward")
            for field in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    @property
    def rewarded(self) -> bool:
        """Whether the rewards are known."""
        return not np.isnan(self.reward).all()

    @property
    def format(self) -> int:
        """What its file says: the oldest format that can hold it."""
        return 2 if self.rewarded and self.action.shape[1] else 3

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in memory."""
        return sum(getattr(self, name).nbytes for name in self.DTYPES)


def write_episode(folder: Path, episode: Episode) -> tuple[str, str]:
    """Writes one file that is on disk when this returns; gives its name and the sha256 of its bytes.

    The same episode always gives the same name and bytes. Raises: OSError where the disk refuses.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in _members(episode).items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            # ZipInfo's own date is 1980: no clock gets into the bytes. Its own compression is none, whatever the
            # archive's is
            info = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, DEFLATE_LEVEL)
    content = buffer.getvalue()
    digest = sha256(content)
    name = f"ep-{episode.number:06d}-e{episode.env:02d}-{len(episode)}-{digest[:8]}.npz"
    write_atomically(folder / name, content)
    return name, digest


def read_episode(path: Path, *, digest: str = "") -> Episode:
    """Reads one episode file; executes nothing and allocates nothing that the caps forbid.

    Args:
        path: the file; a name as `write_episode` gives must agree with the bytes and with what is inside.
        digest: the sha256 that the bytes must have, where it is known.

    Raises: DamagedEpisode where the file is missing, changed, or not an episode; OtherFormat.
    """
    try:
        content = read_plain(path, most=MAX_BYTES)
    except OSError as error:
        raise DamagedEpisode(f"{path}: cannot be read ({error.strerror})") from error
    except NotPlain as error:
        raise DamagedEpisode(str(error)) from error
    named = NAME.fullmatch(path.name)
    found = sha256(content)
    if not found.startswith(named[4] if named else "") or (digest and found != digest):
        raise DamagedEpisode(f"{path}: its bytes changed since it was written (sha256 is {found[:8]}...)")
    try:
        arrays = _parse(content)
        written = int(arrays.pop("format"))
        if written not in FORMATS:
            raise OtherFormat(
                f"{path}: is an episode of format {written}, this version reads {' and '.join(map(str, FORMATS))}: "
                "go on with the version that wrote it, or begin a new run"
            )
        episode = Episode(env=int(arrays.pop("env")), number=int(arrays.pop("number")), **arrays)
    except OtherFormat:
        raise
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DamagedEpisode(f"{path}: is not an episode file ({error})") from error
    if named and (int(named[1]), int(named[2]), int(named[3])) != (episode.number, episode.env, len(episode)):
        raise DamagedEpisode(f"{path}: holds episode {episode.number} of env {episode.env}, {len(episode)} decisions")
    return episode


def _members(episode: Episode) -> dict[str, NDArray]:
    """What the file holds, by name."""
    whole = dict(zip(WHOLE, (episode.format, episode.env, episode.number), strict=True))
    return {name: np.asarray(value, dtype="<i8") for name, value in whole.items()} | {
        # C order, so that Fortran arrays of equal content give equal bytes
        name: np.ascontiguousarray(getattr(episode, name), dtype=dtype)
        for name, dtype in Episode.DTYPES.items()
    }


def _parse(content: bytes) -> dict[str, NDArray]:
    """The arrays of an npz, each checked against its own header before it is made; of another format `format` alone.

    Raises: ValueError and zip errors.
    """
    dtypes = Episode.DTYPES | dict.fromkeys(WHOLE, "<i8")
    arrays: dict[str, NDArray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
        held = sorted(member.filename for member in members)
        if "format.npy" in held:  # before all others: another format has other members
            arrays["format"] = _array("format", archive.read("format.npy"), np.dtype("<i8"))
            if arrays["format"] not in FORMATS:
                return arrays
        if held != sorted(f"{name}.npy" for name in dtypes):
            raise ValueError(f"it holds {held}")
        for name, dtype in dtypes.items():
            arrays[name] = _array(name, archive.read(f"{name}.npy"), np.dtype(dtype))
    return arrays


def _array(name: str, content: bytes, dtype: np.dtype) -> NDArray:
    """One npy member; its header must say `dtype` and exactly the bytes that follow."""
    # not numpy's own header reader: that one evaluates a literal, and fails in many ways on a hostile one
    header = NPY_HEADER.match(content)
    if header is None or header["descr"] != dtype.str.encode():
        raise ValueError(f"{name} must be {dtype} in C order, as npy version 1 (it begins {content[:48]!r})")
    shape = tuple(int(size) for size in header["shape"].replace(b",", b" ").split())
    start = 10 + int.from_bytes(content[8:10], "little")
    if header.end() != start or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{name} says {list(shape)} but {len(content) - start} bytes follow")
    if name in WHOLE and shape:
        raise ValueError(f"{name} must be one number (got {list(shape)})")
    if dtype.kind == "b" and np.frombuffer(content, np.uint8, offset=start).max(initial=0) > 1:
        raise ValueError(f"{name} must hold 0 and 1 only")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)
