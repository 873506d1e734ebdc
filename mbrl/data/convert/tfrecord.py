"""TFRecord files of tf.train.Example, read without TensorFlow; and BAIR robot pushing, which comes in them.

A record is: length (u64), its masked crc32c, that many bytes, their masked crc32c. The bytes are one Example, a message
of protocol buffers: Example{1: Features{1: {1: name, 2: Feature{1: bytes | 2: floats | 3: integers}} ...}}.
Everything is checked against what is left of its own message before it is cut out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl.data.convert.clip import Clip, Item, Items, Unreadable, frames_of, raising, rows_of
from mbrl.data.convert.files import listed
from mbrl.data.convert.pictures import picture

MAX_RECORD = 2**28
Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


def _table() -> list[int]:
    """Of crc32c (Castagnoli), reflected."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def masked_crc(content: bytes) -> int:
    """The checksum that a TFRecord carries.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    value, table = 0xFFFFFFFF, TABLE
    for byte in content:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def offsets(path: Path) -> list[tuple[int, int]]:
    """(where its bytes begin, how many) of every record that the file says it has. Raises: Unreadable."""
    found: list[tuple[int, int]] = []
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            header = file.read(12)
            if len(header) < 12:
                raise Unreadable(f"the header of record {len(found)} is cut off")
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc(header[:8]):
                raise Unreadable(f"the length of record {len(found)} does not agree with its checksum")
            if length > MAX_RECORD or at + 16 + length > size:
                raise Unreadable(f"record {len(found)} says {length} bytes, {size - at - 16} are left")
            found.append((at + 12, length))
            at += 16 + length
            file.seek(at)
    return found


def record(path: Path, begin: int, length: int) -> bytes:
    """The bytes of one record, checked. Raises: Unreadable."""
    with path.open("rb") as file:
        file.seek(begin)
        content, tail = file.read(length), file.read(4)
    if len(content) < length or len(tail) < 4 or struct.unpack("<I", tail)[0] != masked_crc(content):
        raise Unreadable("its bytes do not agree with their checksum")
    return content


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A number of 7-bit pieces, and where the next thing begins."""
    value = 0
    for place in range(10):
        if at >= len(content):
            raise Unreadable("a number is cut off")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at
    raise Unreadable("a number has more than 10 bytes")


def _fields(content: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """(field, wire type, content) of every field of a message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, kind, value
            continue
        if kind == 2:
            length, at = _varint(content, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise Unreadable(f"wire type {kind} is unknown")
        if length > len(content) - at:
            raise Unreadable(f"a field says {length} bytes, {len(content) - at} are left")
        yield key >> 3, kind, content[at : at + length]
        at += length


def _inside(content: memoryview, field: int) -> Iterator[memoryview]:
    """The messages under one field number."""
    for number, kind, value in _fields(content):
        if number == field and kind == 2 and isinstance(value, memoryview):
            yield value


def _feature(content: memoryview) -> Feature:
    for number, kind, value in _fields(content):
        if kind != 2 or not isinstance(value, memoryview):
            continue
        if number == 1:
            return [bytes(item) for item in _inside(value, 1)]
        if number == 2:
            pieces = [bytes(v) for n, k, v in _fields(value) if n == 1 and k in (2, 5) and isinstance(v, memoryview)]
            joined = b"".join(pieces)
            if len(joined) % 4:
                raise Unreadable("floats are cut off")
            return np.frombuffer(joined, "<f4")
        if number == 3:
            return np.array(list(_integers(value)), np.int64)
    return []


def _integers(content: memoryview) -> Iterator[int]:
    for number, kind, value in _fields(content):
        if number != 1:
            continue
        if kind == 0 and isinstance(value, int):
            yield _signed(value)
        elif kind == 2 and isinstance(value, memoryview):
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                yield _signed(one)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def example(content: bytes) -> dict[str, Feature]:
    """The features of one serialized tf.train.Example. Raises: Unreadable."""
    found: dict[str, Feature] = {}
    for features in _inside(memoryview(content), 1):
        for entry in _inside(features, 1):
            names = [bytes(name) for name in _inside(entry, 1)]
            values = list(_inside(entry, 2))
            if len(names) == 1 and len(values) == 1:
                found[names[0].decode("utf-8", errors="replace")] = _feature(values[0])
    return found


def bair(folder: Path, *, view: str) -> Items:
    """Every record of every TFRecord file in `folder` (or below it), by name and place.

    Frame i lies under `i/<view>/encoded` as raw 64x64x3 bytes or as a picture, its action under `i/action`.
    Raises: ValueError if there is no such file.
    """
    paths = listed(folder, lambda path: path.is_file() and "tfrecord" in path.name, deep=True)
    if not paths:
        raise ValueError(f"from={folder} holds no file with tfrecord in its name")
    return _records(paths, view)


def _records(paths: list[Path], view: str) -> Iterator[Item]:
    for path in paths:
        try:
            places = offsets(path)
        except (Unreadable, OSError) as error:
            yield Item(path.name, raising(error))  # one row of the table for the whole file
            continue
        for place, (begin, length) in enumerate(places):
            yield Item(
                f"{path.name}#{place}",
                lambda path=path, begin=begin, length=length: pushed(record(path, begin, length), view=view),  # type: ignore[misc]
            )


def pushed(content: bytes, *, view: str) -> Clip:
    """One episode of BAIR. Raises: Unreadable."""
    features = example(content)
    frames: list[NDArray[np.uint8]] = []
    actions: list[NDArray] = []
    while isinstance(held := features.get(f"{len(frames)}/{view}/encoded"), list) and held:
        raw = held[0]
        frames.append(np.frombuffer(raw, np.uint8).reshape(64, 64, 3) if len(raw) == 64 * 64 * 3 else picture(raw))
        action = features.get(f"{len(actions)}/action")
        actions.append(action if isinstance(action, np.ndarray) else np.zeros(0))
    if len(frames) < 2:
        raise Unreadable(f"it has no frames under 0/{view}/encoded; it has {', '.join(sorted(features)[:4])} ...")
    if len({frame.shape for frame in frames}) > 1:
        raise Unreadable("its frames differ in size")
    widths = {len(action) for action in actions[:-1]}
    if len(widths) > 1:
        raise Unreadable(f"its actions have {sorted(widths)} numbers")
    known = None if widths == {0} else rows_of(np.stack(actions[:-1]), len(frames), what="action")
    return Clip(frames=frames_of(np.stack(frames), what=view), action=known)
