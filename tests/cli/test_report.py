"""`mbrl report`: one page about tiny run folders; what is drawn, what is said to be missing, what is refused."""

from __future__ import annotations

import io
import re
import resource
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mbrl.cli.main import main
from mbrl.report.groups import grouped
from mbrl.report.heading import heading
from mbrl.report.page import draw
from mbrl.report.panels import PANELS
from mbrl.report.record import differences, read_record, read_table
from mbrl.rundir.result import RESULT
from mbrl.rundir.schema import write_json
from tests.children import run_child
from tests.cli.report_runs import DONE, FINAL, NEW, OLD, make_run

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(name: str = "mine", more: Mapping[str, str] = {}, **changed: Mapping[str, Any]) -> Path:
        return make_run(tmp_path / name, more, **changed)

    return made


def panel(figure: Figure, number: int) -> Any:
    """The axes of a panel."""
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(f"{number}  "))


def words(axis: Any) -> list[str]:
    """What is written inside the axes."""
    return [text.get_text() for text in axis.texts]


def entries(axis: Any) -> list[str]:
    """What the legend says."""
    return [text.get_text() for text in axis.get_legend().get_texts()]


def upright(axis: Any) -> list[float]:
    """Where the vertical lines of the axes stand."""
    return [
        line.get_xdata()[0]
        for line in axis.lines
        if list(line.get_ydata()) == [0, 1] and len(set(line.get_xdata())) == 1
    ]


def test_the_page_is_a_picture_1600_pixels_wide_in_the_run_folder(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(more=NEW)
    assert main(["report", f"run={folder}"]) == 0
    assert capsys.readouterr().out.endswith(f"written to {folder / 'report.png'}\n")
    with Image.open(io.BytesIO((folder / "report.png").read_bytes())) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        assert 1700 < picture.height < 2100
        assert len(picture.convert("RGB").getcolors(1 << 22) or []) > 50, "curves were drawn"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "eval.csv", "metrics.csv", "report.png"]


def test_a_page_of_several_runs_lies_beside_them(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in (("a", "b"), ("deep/er/c", "deep/d")):
        (tmp_path / names[0]).parent.mkdir(parents=True, exist_ok=True)
        folders = [make(name) for name in names]
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert main(["report", f"run={','.join(map(str, folders))}"]) == 0
        place = tmp_path / "deep" if "deep" in names[0] else tmp_path
        assert (
            capsys.readouterr().out.endswith(f"written to {place / 'report.png'}\n")
            and (place / "report.png").is_file()
        )
        assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_run_has_every_panel_in_order_and_none_without_data(make: Make) -> None:
    figure = draw([read_record(make(more=NEW))])
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
    assert titles == [one.title for one in PANELS]
    assert [int(title.split()[0]) for title in titles] == list(range(1, 13))
    assert not any("not measured" in word for axis in figure.axes for word in words(axis))
    assert entries(panel(figure, 4)) == ["after 1", "after 5", "after 10", "gate: 0.3"]
    assert entries(panel(figure, 5)) == ["in the newest episodes", "gate: 40"]
    assert entries(panel(figure, 6)) == ["hand (rmse 1.2)", "object"]
    assert entries(panel(figure, 11)) == ["future L1", "context L1"]
    assert entries(panel(figure, 12)) == ["collect 20", "fit 70", "evaluate 10"]


def test_panels_of_an_old_run_stay_and_say_that_nothing_was_measured(make: Make) -> None:
    figure = draw([read_record(make())])
    empty = [n for n in range(1, 13) if words(panel(figure, n)) == ["not measured in this run"]]
    assert empty == [3, 4, 5, 6, 7, 8, 9, 11]


def test_end_of_prefill_and_start_of_the_actor_are_marked(make: Make) -> None:
    figure = draw([read_record(make())])
    assert upright(panel(figure, 2)) == upright(panel(figure, 10)) == [1500, 3000]


def test_scores_are_drawn_with_their_interval_and_the_random_policy(make: Make) -> None:
    axis = panel(draw([read_record(make())]), 1)
    level = [set(line.get_ydata()) for line in axis.lines if line.get_linestyle() == "--"]
    assert {0.05} in level
    (bars,) = axis.containers
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert (round(low, 2), round(high, 2)) == (0.31, 0.83)


def test_the_title_tells_what_was_run_and_how_it_went(make: Make) -> None:
    told = "\n".join(heading(grouped([read_record(make())])))
    for word in ("door-close-v3", "protocol default", "seed 7", "dreamer", "ivideogpt (3 layers of 128)", "1.0 min"):
        assert word in told
    assert "newest interim score, step 3000: success 0.60 [0.31, 0.83]" in told
    folder = make("done", schedule={"total": 3000}, worldmodel={"proprio": True})
    with (folder / "eval.csv").open("a") as table:
        table.write(FINAL)
    assert read_record(folder).final is None, "a row of eval.csv is no result"
    write_json(folder / RESULT, DONE)
    done = read_record(folder)
    assert done.finished and [row["success"] for row in done.greedy] == [0.6], "the final score is of other starts"
    told = "\n".join(heading(grouped([done])))
    assert "final score of the weights of step 2500: success 0.80 [0.58, 0.92]" in told
    star = [line for line in panel(draw([done]), 1).lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in star] == [(2500, 0.8)]
    assert "with proprioception" in told


def test_a_perfect_world_model_cannot_be_overlooked(make: Make) -> None:
    perfect = read_record(make("p", worldmodel={"_target_": "mbrl.oracle.OracleModelConfig"}))
    learned = read_record(make("l"))
    for records, wanted in (([perfect], "PERFECT WORLD MODEL:"), ([learned, perfect], "PERFECT WORLD MODEL IN B:")):
        banner = [text for text in draw(records).texts if text.get_text().startswith(wanted)]
        assert [text.get_color() for text in banner] == ["white"]
    assert not [text for text in draw([learned]).texts if "PERFECT" in text.get_text()]


def test_several_runs_share_the_panels_with_one_colour_each(make: Make) -> None:
    records = [read_record(make("a", more=NEW)), read_record(make("b", agent={"gamma": 0.9}))]
    figure = draw(records)
    colours = [line.get_color() for line in panel(figure, 10).lines if len(line.get_xdata()) == 1]
    assert len(colours) == len(set(colours)) == 2
    assert "not measured in B" in words(panel(figure, 5))
    assert words(panel(figure, 10)) == []
    told = [text.get_text() for text in figure.texts]
    assert "differ in: agent.gamma = 0.96 | 0.9".replace(" ", "") in [
        t.replace("\xa0", "").replace(" ", "") for t in told
    ]
    assert [tick.get_text() for tick in panel(figure, 12).get_yticklabels()] == ["A", "B"]


def test_a_group_of_another_class_is_one_difference(make: Make) -> None:
    perfect = make("p", worldmodel={"_target_": "mbrl.oracle.OracleModelConfig", "max_frames": 3})
    assert differences([read_record(make("l")), read_record(perfect)]) == {"worldmodel": ["ivideogpt", "oracle"]}


def test_values_that_cannot_be_drawn_are_told(make: Make) -> None:
    assert words(panel(draw([read_record(make(more=NEW))]), 4)) == [
        "lowest: -7, below what is drawn\n1 values are no finite numbers"
    ]


def test_a_gate_that_is_switched_off_is_not_drawn(make: Make) -> None:
    folder = make(more=NEW, schedule={"gate": {"episodes": 0, "reward_r2": 0.0, "codes_alive": 0}})
    assert entries(panel(draw([read_record(folder)]), 5)) == ["in the newest episodes"]


def test_a_row_that_is_just_being_written_is_left_out(make: Make) -> None:
    path = make() / "metrics.csv"
    whole = read_table(path)
    path.write_text(path.read_text() + "4000,2000,80,9")
    assert read_table(path) == whole
    assert len(whole) == 3


def test_a_run_without_evaluations_is_drawn(make: Make) -> None:
    folder = make()
    (folder / "eval.csv").unlink()
    record = read_record(folder)
    assert "no greedy evaluation yet" in "\n".join(heading(grouped([record])))
    assert entries(panel(draw([record]), 2)) == [
        "greedy, 95 %",
        "final score, other starts",
        "random policy",
        "training episodes",
    ]


def refused(args: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on stderr of a refusal."""
    assert main(["report", *args]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_what_is_typed_wrongly_is_refused_in_one_line(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make()
    for args, wanted in (
        ([], "run= is missing: the folder of a run"),
        (["run=/nowhere/at/all"], "run=/nowhere/at/all is not a folder"),
        (["run=,"], "run=, is not a folder"),
        ([f"run={folder},{folder}"], "twice"),
        ([f"runs={folder}"], "did you mean run?"),
        ([f"run={folder}", "outt=x.png"], "did you mean out?"),
        ([f"run={folder}", "out=page.pdf"], "out must be a file that ends in .png (got page.pdf)"),
        ([f"run={folder}", "out="], "out must be a file that ends in .png (got .)"),
        ([str(folder)], "report takes run=, out="),
    ):
        assert wanted in refused(args, capsys)
    assert not (folder / "report.png").exists()


def test_folders_that_hold_no_rows_are_refused_in_one_line(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.yaml" in refused([f"run={tmp_path / 'empty'}"], capsys)
    folder = make()
    (folder / "metrics.csv").write_text(f"{OLD}\n")
    assert "metrics.csv holds no row" in refused([f"run={folder}"], capsys)
    (folder / "metrics.csv").unlink()
    assert "metrics.csv is missing" in refused([f"run={folder}"], capsys)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("metrics.csv", "env_step,agent/std\n1000,wide\n", "line 2: agent/std is no number (got wide)"),
        ("metrics.csv", "env_step,agent/std\n1000,1\n2000\n", "line 3 has 1 cells; the header names 2"),
        ("metrics.csv", "env_step\n" + '"' + "1\n" * 100_000, "is no table"),
        ("metrics.csv", "step,agent/std\n1000,1\n", "line 2 has no env_step"),
        ("run.json", "{", "is not JSON"),
    ],
)
def test_damaged_files_are_named(
    name: str, text: str, wanted: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make()
    (folder / name).write_text(text)
    said = refused([f"run={folder}"], capsys, code=3)
    assert str(folder / name) in said
    assert wanted in said


@pytest.mark.parametrize(
    ("protocol", "wanted"),
    [
        ({"name": "tdmpc2"}, "protocol.name=default against tdmpc2"),
        ({"camera": {"distance": 2.0}}, "protocol.camera.distance=1.15 against 2.0"),
        ({"action_repeat": 4}, "protocol.action_repeat=absent against 4"),
    ],
)
def test_runs_of_different_protocols_are_not_drawn_together(
    protocol: dict[str, Any], wanted: str, make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "both.png"
    assert wanted in refused([f"run={make('a')},{make('b', protocol=protocol)}", f"out={out}"], capsys)
    assert not out.exists()


def test_several_runs_are_written_where_one_is_unless_told(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    both = f"run={make('a')},{make('b')}"
    assert main(["report", both]) == 0
    assert main(["report", both, "out=deep/er/page.png"]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == [
        "deep/er/page.png",
        "report.png",
    ]


def test_a_folder_of_runs_or_of_copies_says_what_to_give_instead(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all" / "reach" / "seed-0").mkdir(parents=True)
    run = make("all/reach/seed-0/my run")
    (tmp_path / "all" / "latest").symlink_to(run)
    (line,) = refused([f"run={tmp_path / 'all'}"], capsys).splitlines()
    assert "it has no config.yaml; give one of the runs in it" in line
    *_, verb, word = shlex.split(line.split("`")[1])
    assert (verb, word) == ("report", f"run={run}")
    assert main([verb, word]) == 0 and (run / "report.png").exists(), "what is proposed is accepted"
    capsys.readouterr()
    for folder in (ROOT / "docs" / "results", ROOT / "docs" / "results" / "door-close"):
        assert "copies out of run folders, of which `python -m benchmarks.tables`" in refused([f"run={folder}"], capsys)


def test_a_full_disk_names_the_page_and_how_much_was_to_be_written(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:  # in the child alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    out = tmp_path / "page.png"
    assert run_child(["report", f"run={make()}", f"out={out}"], first=full) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(rf"error: {re.escape(str(out))}: File too large; .* were to be written", line)
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob(".tmp-*"))
