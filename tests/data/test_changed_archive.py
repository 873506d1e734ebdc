"""A conversion that goes on over an archive that is not what it was, or with other words, doubles and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbrl.data.convert.arrays import Keys, published_npz
from mbrl.data.convert.clip import Item
from mbrl.data.convert.run import ITEMS, append, read_names
from mbrl.files import MOST_TEXT
from tests.data.test_convert import converted, published


def test_an_archive_that_changed_and_another_size_are_refused_where_episodes_were_made_of_it(tmp_path: Path) -> None:
    folder = published(tmp_path / "in", 4)
    names = sorted(path.name for path in folder.iterdir())
    late = (folder / names[1]).rename(tmp_path / names[1])

    def items() -> list[Item]:
        return list(published_npz(folder, Keys(image="image")))

    converted(items()[:2], tmp_path / "out")
    with pytest.raises(ValueError, match="converted with another image="):
        converted(items(), tmp_path / "out", side=8)
    with pytest.raises(ValueError, match="converted with another crop="):
        converted(items(), tmp_path / "out", crop=True)
    assert converted(items(), tmp_path / "out").written == 1, "what came behind the last one is new"
    late.rename(folder / names[1])
    before = sorted((tmp_path / "out").glob("*.npz"))
    with pytest.raises(ValueError, match=f"has {names[2]} as episode 1, where {names[1]} stands now"):
        converted(items(), tmp_path / "out")
    assert sorted((tmp_path / "out").glob("*.npz")) == before
    assert not (tmp_path / "out" / "converting.json").exists(), "it is the data set that it was"


def test_a_list_that_a_kill_cut_off_loses_one_line(tmp_path: Path) -> None:
    append(tmp_path / ITEMS, [0, "a"])
    with (tmp_path / ITEMS).open("a") as file:
        file.write('\n[1, "cut')
    append(tmp_path / ITEMS, [2, "c"])
    assert read_names(tmp_path) == {0: "a", 2: "c"}


def test_a_long_list_is_read(tmp_path: Path) -> None:
    (tmp_path / ITEMS).write_text("".join(f'\n[{number}, "episode {number:040d}"]' for number in range(40_000)))
    assert (tmp_path / ITEMS).stat().st_size > MOST_TEXT and len(read_names(tmp_path)) == 40_000
