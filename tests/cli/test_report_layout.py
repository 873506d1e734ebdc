"""Where things stand on a report's page: measured boxes, not looks; names as they are; several seeds as one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mbrl.report.groups import grouped
from mbrl.report.heading import heading
from mbrl.report.letters import FIXED_SPACE, Letters, glyphs
from mbrl.report.page import DPI, draw
from mbrl.report.panels import PANELS
from mbrl.report.plots import COLOURS, colour_of, letter
from mbrl.report.record import Record, read_record
from mbrl.rundir.result import RESULT
from mbrl.rundir.schema import write_json
from tests.cli.report_runs import DONE, NEW, make_run
from tests.cli.test_report import entries, panel

LONG = "a rather long name, with $x^2$, under_scores, Umläute and 日本語, as somebody may well call a folder, number"
WIDE = {f"probe/what_the_codes_know_of_the_{place}_th_thing_on_the_table_{'W' * 40}_r2": "0.5" for place in range(5)}


def boxes(figure: Figure) -> dict[str, list[Bbox]]:
    """The boxes of what is written, by the panel it belongs to; of what belongs to none by itself."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    places: dict[tuple[float, ...], str] = {}
    found: dict[str, list[Bbox]] = {}
    for axis in figure.axes:  # an axis at the right lies over its panel's
        title = axis.get_title(loc="left")
        name = places.setdefault(tuple(np.round(axis.get_position().bounds, 6)), title)
        written = [axis._left_title, *axis.texts, *([legend] if (legend := axis.get_legend()) else [])]
        own = [axis.xaxis.get_tightbbox(renderer), axis.yaxis.get_tightbbox(renderer)]
        own += [artist.get_window_extent(renderer) for artist in written]
        found.setdefault(name, []).extend(box for box in own if box is not None and box.width > 0)
    for text in figure.texts:
        found[text.get_text()] = [text.get_window_extent(renderer)]
    (footing,) = figure.legends
    return found | {"footing": [footing.get_window_extent(renderer)]}


def touch(one: Bbox, other: Bbox) -> bool:
    """Whether two boxes share more than a pixel's edge."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def check_layout(figure: Figure) -> None:
    """Nothing leaves the page, no text of a panel touches another panel, no legend touches its own plot or title."""
    found = boxes(figure)
    page = figure.bbox
    for name, own in found.items():
        outside = [b for b in own if b.x0 < 0 or b.y0 < 0 or b.x1 > page.x1 or b.y1 > page.y1]
        assert not outside, f"{name} leaves the page"
    plots = {axis.get_title(loc="left"): axis.get_window_extent() for axis in figure.axes if axis.get_title(loc="left")}
    whole = {name: [*own, *([plots[name]] if name in plots else [])] for name, own in found.items()}
    for (name, own), (other, theirs) in itertools.permutations(whole.items(), 2):
        assert not any(touch(a, b) for a in own for b in theirs), f"{name} touches {other}"
    for axis in figure.axes:
        if legend := axis.get_legend():
            box = legend.get_window_extent()
            title = axis._left_title.get_window_extent()  # type: ignore[attr-defined]
            inner = axis.get_window_extent()
            assert box.y0 >= inner.y0 + inner.height - 3 and not touch(box, title), axis.get_title(loc="left")


def records(folder: Path, count: int, more: Mapping[str, str], name: str = LONG) -> list[Record]:
    """Runs of as many configurations."""
    made = (make_run(folder / f"{name} {n}", more, agent={"gamma": 0.9 + n / 1000}) for n in range(count))
    return [read_record(one) for one in made]


@pytest.mark.parametrize("more", [NEW, NEW | WIDE | {"heldout/reward_r2_5": "nan"}, {}], ids=["usual", "wide", "bare"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_nothing_collides(count: int, more: Mapping[str, str], tmp_path: Path) -> None:
    check_layout(draw(records(tmp_path, count, more)))


@pytest.mark.parametrize("value", ["0.00012345", "-1234567.8", "123456789012", "-3.00000001"])
def test_nothing_collides_however_wide_the_numbers_beside_a_plot_are(value: str, tmp_path: Path) -> None:
    figure = draw(records(tmp_path, 1, dict.fromkeys(NEW, value), name="r"))
    check_layout(figure)
    assert panel(figure, 9).get_window_extent().width > 300


def test_nothing_collides_with_very_many_runs(tmp_path: Path) -> None:
    figure = draw(records(tmp_path, 28, NEW, name="r"))
    check_layout(figure)
    assert "AB" in [text.get_text() for text in figure.texts], "the letter behind Z and AA"


@pytest.mark.parametrize("panels", [PANELS[:1], PANELS[:5], [*PANELS, *PANELS[:1]]], ids=len)
def test_nothing_collides_with_any_number_of_panels(panels: Sequence[Any], tmp_path: Path) -> None:
    figure = draw(records(tmp_path, 2, NEW), panels)
    drawn = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(drawn) == len(panels)
    if len(panels) <= len(PANELS):  # two of one title would be taken for one
        check_layout(figure)


def test_the_check_itself_finds_a_legend_in_the_next_panel_and_a_text_off_the_page(tmp_path: Path) -> None:
    figure = draw(records(tmp_path, 1, NEW))
    axis = panel(figure, 4)
    text = axis.text(0.9, 1.1, "far into the next panel " * 3, transform=axis.transAxes)
    with pytest.raises(AssertionError, match="touches"):
        check_layout(figure)
    text.set_text("far off the page " * 40)
    with pytest.raises(AssertionError, match="leaves the page"):
        check_layout(figure)


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    figure = draw(records(tmp_path, 2, NEW, name="$a_b$ über_Größe Ωμ Жук"))
    told = " ".join(text.get_text() for text in figure.texts)
    assert "$a_b$ über_Größe Ωμ Жук 0: agent dreamer" in told
    assert not [text.get_text() for text in figure.texts if text.get_parse_math()], "dollars are no formula"


def test_letters_that_no_font_has_are_written_as_their_numbers() -> None:
    letters = Letters.of(["日 \x07é\udcff"], dpi=DPI)
    here = "日" if ord("日") in letters.known else "\\u65e5"
    assert letters.drawable("a$日") == f"a${here}"
    assert letters.drawable("bell\x07 line\n") == "bell\\x07 line\\n"
    assert letters.drawable("byte\udcff") == "byte\\udcff"
    assert letters.drawable("u\u0308") == "ü", "as a Mac stores it"
    assert letters.drawable(f"1{FIXED_SPACE}2") == f"1{FIXED_SPACE}2"


def test_a_font_that_has_the_letters_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_letter = {f.name: f.fname for f in __import__("matplotlib").font_manager.fontManager.ttflist}["STIXGeneral"]
    only = min(glyphs(with_letter) - Letters.of([], dpi=DPI).known)
    letters = Letters.of([chr(only)], dpi=DPI)
    assert len(letters.families) == 2 and letters.has(chr(only)) == chr(only).isprintable()


def test_lines_break_where_they_must() -> None:
    letters = Letters.of([], dpi=DPI)
    lines = letters.wrapped(f"some words and {'x' * 300} more", 12.5, most=400)
    assert all(letters.width(line, 12.5) <= 400 for line in lines)
    assert "".join(lines).replace(" ", "") == f"somewordsand{'x' * 300}more"
    short = letters.shortened("W" * 300, 9.5, most=200)
    assert short.endswith("W…") and 180 < letters.width(short, 9.5) <= 200
    assert letters.shortened("fits", 9.5, most=200) == "fits"


def finished(folder: Path, name: str, seed: int, **changed: Any) -> Record:
    """A run at its end; one in so many of its episodes fails."""
    run = make_run(folder / name, NEW, seed=seed, **changed)
    success = [True] * (20 - seed) + [False] * seed
    final = {"returns": [100.0 + seed] * 20, "success": success, "success_last": success}
    write_json(run / RESULT, DONE | {"final": final})
    return read_record(run)


def test_seeds_of_one_configuration_are_one_line_with_its_interval(tmp_path: Path) -> None:
    own = [finished(tmp_path, f"a{seed}", seed) for seed in (0, 5, 10)]
    other = [finished(tmp_path, f"b{seed}", seed, agent={"gamma": 0.9}) for seed in (1, 2)]
    groups = grouped([own[0], other[0], *own[1:], other[1]])
    assert [[run.folder.name for run in group.runs] for group in groups] == [["a0", "a5", "a10"], ["b1", "b2"]]
    lines = heading(groups)
    assert lines[0].startswith("5 runs: ")
    assert "A  a0, a5, a10: " in lines[1] and "seeds 0, 5, 10" in lines[1]
    assert "final scores of 3 seeds: success 0.75 [0.50, 1.00], return 105 [100, 110]" in lines[1]
    figure = draw([*own, *other])
    check_layout(figure)
    assert entries(panel(figure, 1))[0] == "greedy, mean of seeds, 95 %"
    assert len(panel(figure, 1).containers) == 2, "one curve with intervals for each configuration"
    assert [tick.get_text() for tick in panel(figure, 12).get_yticklabels()] == ["A", "B"]


def test_seeds_alone_are_drawn_as_one_run_with_bands(tmp_path: Path) -> None:
    figure = draw([finished(tmp_path, f"a{seed}", seed) for seed in (0, 4)])
    check_layout(figure)
    axis = panel(figure, 10)
    assert len(axis.collections) == 1, "the interval over seeds"
    assert {line.get_color() for line in axis.lines if line.get_linewidth() == 1.6} == {COLOURS[0]}
    assert [tick.get_text() for tick in panel(figure, 12).get_yticklabels()] == ["0", "4"]
    assert figure.texts[0].get_text() == "door-close-v3, protocol default, seeds 0, 4"


def test_a_seed_that_comes_again_is_no_second_seed(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "first", 1), finished(tmp_path, "again", 1), finished(tmp_path, "two", 2)]
    assert [len(group.runs) for group in grouped(runs)] == [2, 1]


def test_a_mean_is_drawn_where_all_seeds_were_measured(tmp_path: Path) -> None:
    runs = [finished(tmp_path, f"a{seed}", seed) for seed in (0, 4)]
    table = runs[1].folder / "metrics.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[:2]]) + "\n")
    figure = draw([runs[0], read_record(runs[1].folder)])
    mean = next(line for line in panel(figure, 2).lines if line.get_linewidth() == 1.1)
    assert list(mean.get_xdata()) == [1000, 2000], "the second has no row of 3000"


def test_no_two_colours_and_letters_are_the_same() -> None:
    assert len({colour_of(number) for number in range(200)}) == 200
    assert [letter(number) for number in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
