"""Pickled arrays are read as data: what they hold comes out, and nothing that they would do is done."""

from __future__ import annotations

import pickle  # noqa: TID251 - the tests make the files that the reader must survive
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.evaluation.networks.numpy_pickle import arrays_of_pickle

ARRAYS: dict[str, Any] = {
    "trunk": {"kernel": np.arange(30, dtype=np.float32).reshape(2, 3, 5), "bias": np.arange(3, dtype=">f8")},
    "lin": {"w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), "n": np.array(7, np.int64)},
}


@pytest.mark.parametrize("protocol", [3, 4])
def test_nested_arrays_come_out_as_they_went_in(protocol: int) -> None:
    found = arrays_of_pickle(pickle.dumps(ARRAYS, protocol=protocol))
    assert set(found) == {("trunk", "kernel"), ("trunk", "bias"), ("lin", "w"), ("lin", "n")}
    for (part, leaf), array in found.items():
        assert array.dtype == ARRAYS[part][leaf].dtype
        np.testing.assert_array_equal(array, ARRAYS[part][leaf])


class Hostile:
    """Unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Evaluates:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (self.text,))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_hostile_pickle_is_refused_by_name_and_not_carried_out(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    for hostile in (Hostile(mark), Evaluates(f"open({str(mark)!r}, 'w')")):
        content = pickle.dumps({"a": ARRAYS["lin"], "b": hostile}, protocol=protocol)
        with pytest.raises(ValueError, match=r"refused|no dict of arrays"):
            arrays_of_pickle(content)
        assert not mark.exists()
        pickle.loads(content)  # the file is one: opened in the ordinary way, it runs
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # the classic
        b"cnumpy\nndarray\ncbuiltins\ngetattr\n.",
        b"cnumpy\ndtype\n)R.",
        b"\x80\x04cnumpy\nload\nX\x01\x00\x00\x00x\x85R.",
        b"(lp0\n.",
        b"\x80\x04K\x07.",
        b"\x80\x04}X\x01\x00\x00\x00a}ub.",
        b"",
        b"\x80\x04}",
        b"\x80\x04t.",
        b"\x80\x04h\x07.",
        b"\x80\x04P5\n.",
    ],
)
def test_other_instructions_are_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ValueError) as refused:
        arrays_of_pickle(content)
    assert "\n" not in str(refused.value)


def test_a_dict_that_is_met_twice_is_refused_before_it_is_unrolled() -> None:
    itself: dict[str, object] = {}
    itself["a"] = itself
    many: dict[str, object] = {}
    for _ in range(40):
        many = {"a": many, "b": many}
    for held in (itself, many):
        with pytest.raises(ValueError, match="is no array and no dict of arrays"):
            arrays_of_pickle(pickle.dumps(held, protocol=4))


def test_an_array_whose_bytes_are_not_its_shape_s_is_refused() -> None:
    content = pickle.dumps({"a": np.zeros((2, 3), np.float32)}, protocol=4)
    assert content.count(b"K\x02K\x03\x86") == 1
    with pytest.raises(ValueError, match=r"says \[2, 4\] of float32 but has 24 bytes"):
        arrays_of_pickle(content.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"))


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="refused"):
        arrays_of_pickle(pickle.dumps({"a": np.array([None, "x"], dtype=object)}, protocol=4))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_pickle_is_refused_or_gives_arrays_and_never_anything_else(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(ARRAYS, protocol=data.draw(st.sampled_from([3, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = arrays_of_pickle(bytes(content))
    except ValueError:
        return
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in found.values())


def test_the_machine_that_runs_pickles_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(ARRAYS, protocol=4)
    for name in ("loads", "load", "Unpickler", "_loads", "_load", "_Unpickler"):
        monkeypatch.delattr(pickle, name)
    assert len(arrays_of_pickle(content)) == 4
