"""The report of a benchmark: all in one file, honest about what failed and what may not be averaged."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mbrl.bench.figures import efficiency, profiles
from mbrl.bench.page import MOST_VIDEO, page
from mbrl.bench.plan import PLAN, Cell, extend_plan, write_failure
from mbrl.bench.published import read_published
from mbrl.bench.results import finished_in, read_runs, runs_in
from mbrl.cli.compose import packaged_configs
from mbrl.cli.main import main
from mbrl.io.checkpoint import Checkpoints
from tests.bench.finished import cell, finished

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Balanced(HTMLParser):
    """Raises where an element is not closed in order; remembers what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def benchmark(to: Path) -> list[Cell]:
    """Two tasks, two methods, two seeds; one run failed, one was never begun."""
    cells = [
        cell(to, task, method, seed)
        for task in ("door-close-v3", "hammer-v3")
        for method in ("dreamer", "mbpo")
        for seed in range(2)
    ]
    for number, one in enumerate(cells[:-2]):
        run = finished(to, one.task, one.method, one.seed, success=number / 10)
        (run / "videos").mkdir()
        (run / "videos" / "eval-000003000.gif").write_bytes(b"GIF89a" + bytes(number))
    finished(to, "hammer-v3", "mbpo", 7, success=1.0)
    cells[-2].folder.mkdir(parents=True, exist_ok=True)
    write_failure(cells[-2], 2, "error: no <b>luck</b>")
    return [*cells, cell(to, "hammer-v3", "mbpo", 7)]


def drawn(to: Path, *, cells: list[Cell] | None = None) -> str:
    published = list(read_published(packaged_configs() / "published").values())
    cells = cells or benchmark(to)
    runs, damaged = read_runs(finished_in(to))
    return page("Benchmark a & b", cells, runs, published, "success", damaged=damaged)


def test_the_page_needs_nothing_beside_it_and_is_well_formed(tmp_path: Path) -> None:
    text = drawn(tmp_path)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert all(source.startswith(("data:", "#")) for source in parser.sources)
    assert "<script" not in text
    assert len(re.findall(r"<svg\b", text)) == 4
    assert "color-scheme:light dark" in text
    assert "Benchmark a &amp; b" in text


def test_every_planned_run_is_there_with_what_became_of_it(tmp_path: Path) -> None:
    text = drawn(tmp_path)
    assert "7 done, 1 failed, 1 queued of 9 runs" in text
    assert "exit code 2: error: no &lt;b&gt;luck&lt;/b&gt;" in text
    rows = re.search(r"Every run that was planned</h2>.*?</table>", text, re.DOTALL)
    assert rows is not None
    assert rows.group().count("<tr") == 10
    assert "mbrl train task.name=door-close-v3 seed=0" in text
    assert "metaworld=3.1.1 mujoco=3.3.0" in text
    assert "Reported by others, under another protocol" in text


def test_the_best_and_the_worst_run_of_each_method_are_shown(tmp_path: Path) -> None:
    cells = benchmark(tmp_path)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", drawn(tmp_path, cells=cells))
    assert captions == [
        "dreamer, worst: door-close-v3, seed 0, 0.00",
        "dreamer, best: hammer-v3, seed 1, 0.50",
        "mbpo, worst: door-close-v3, seed 0, 0.20",
    ]  # the best of mbpo left no video
    next((cells[0].run / "videos").iterdir()).write_bytes(bytes(MOST_VIDEO + 1))
    assert "dreamer, worst" not in drawn(tmp_path, cells=cells)


def test_what_may_not_be_averaged_is_told_in_place_of_the_table(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "door-close-v3", "dreamer", seed) for seed in range(2)]
    finished(tmp_path, seed=0)
    finished(tmp_path, seed=1, result={"demos": 5})
    text = page("b", cells, runs_in(tmp_path), [], "success", damaged={})
    assert re.search(r'class="refused">.*has demos=0 and .* has demos=5', text)
    assert "Every run that was planned" in text


@pytest.mark.parametrize(
    "change", [{"protocol": {"success": "last"}}, {"agent": {"gamma": 0.5}}], ids=["rules", "configurations"]
)
def test_no_figure_over_tasks_averages_what_no_table_does(tmp_path: Path, change: dict[str, Any]) -> None:
    for task, more in (("door-close-v3", {}), ("hammer-v3", change)):
        for seed in range(2):
            finished(tmp_path, task, seed=seed, **more)
    for drawing in (efficiency, profiles):
        with pytest.raises(ValueError, match=r"has (success_rule=any|agent.gamma=0.96) and .* has"):
            drawing(runs_in(tmp_path), "success")


def test_the_verb_writes_it_at_any_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extend_plan(tmp_path, [cell(tmp_path, "door-close-v3", "dreamer", seed) for seed in range(2)])
    assert (tmp_path / PLAN).exists()
    for _ in range(2):
        assert main(["bench", "report", f"to={tmp_path}"]) == 0
        assert "written to" in capsys.readouterr().out
        text = (tmp_path / "report.html").read_text()
        if "2 queued of 2 runs" in text:
            finished(tmp_path, seed=0)
    assert "1 done, 1 queued of 2 runs" in text
    assert main(["results", f"from={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path} is not finished: 1 done, 1 queued of 2 runs\n")
    assert main(["bench", "report", f"to={tmp_path / 'nothing'}"]) == 2


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = [cell(tmp_path, "door-close-v3", "dreamer", seed) for seed in range(4)]
    extend_plan(tmp_path, planned)
    whole, cut, other, halved = (finished(tmp_path, seed=seed, success=seed / 10) for seed in range(4))
    (cut / "result.json").write_text((cut / "result.json").read_text()[:200])
    (other / "config.yaml").write_text("task: []\nseed: 2\nformat: 2\n")
    saved(halved, metrics=1, eval=4)
    (halved / "metrics.csv").unlink()
    said = (f"{cut}/result.json is not JSON", f"{other}/config.yaml is not the", f"{halved}/metrics.csv is missing")
    out = tmp_path / "out.csv"
    for line in (["bench", "report", f"to={tmp_path}"], ["results", f"from={tmp_path}", f"to={out}"]):
        assert main(line) == 3
        told = capsys.readouterr()
        for reason, line_said in zip(said, told.err.splitlines(), strict=True):
            assert line_said.startswith(f"damaged, left out: {reason}")
    assert {run["source"] for run in csv.DictReader(out.read_text().splitlines())} == {str(whole)}
    assert "1 run\n" in told.out
    text = (tmp_path / "report.html").read_text()
    assert "4 done of 4 runs; damaged and in no table: 3." in text
    for reason in said:
        assert re.search(rf'<tr class="failed"><td>door.*<td>damaged</td>.*<td>{re.escape(reason)}', text)
    (whole / "result.json").write_text("{}")
    assert main(["results", f"from={tmp_path}"]) == 3, "nothing is left to show"
    assert main(["bench", "status", f"to={tmp_path}"]) == 0
    assert main(["bench", "report", f"to={tmp_path}"]) == 3


def saved(run: Path, **rows: int) -> None:
    """A checkpoint that was saved with so many rows of each table."""
    tables = {name: {"rows": count, "columns": []} for name, count in rows.items()}
    Checkpoints(run / "checkpoints", keep=2).save(
        3000, {"logger": SimpleNamespace(state_dict=lambda: {"tables": tables})}
    )


LOADED = """<script>window.onload = () => {
  const whole = [...document.images].every(image => image.complete && image.naturalWidth > 0);
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  document.title = `images ${whole}, figures ${document.querySelectorAll("svg").length}, too wide ${wide}`;
}</script>"""


@pytest.mark.parametrize("width", [1200, 420], ids=["desk", "phone"])
def test_a_browser_shows_all_of_it_and_has_no_complaint(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser (Debian: apt-get install chromium)")
    cells = benchmark(tmp_path / "b")
    for video in (tmp_path / "b").rglob("eval-*.gif"):
        Image.new("RGB", (64, 64)).save(video)
    file = tmp_path / "page.html"
    file.write_text(drawn(tmp_path / "b", cells=cells) + LOADED)
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    line += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    shown = subprocess.run([*line, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    assert "<title>images true, figures 4, too wide false</title>" in shown.stdout
