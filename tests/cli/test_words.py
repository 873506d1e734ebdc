"""One parser of `key=value` words: what it reads, and the one line in which it refuses, in every verb."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mbrl.cli.compose import compose, composed
from mbrl.cli.errors import BadInput
from mbrl.cli.main import main
from mbrl.cli.words import Word, choice, number, whole, words

KEYS = {
    "n": whole(3),
    "rate": number(None, most=2, example="0.5"),
    "kind": choice("a", "b", "c", default="b"),
    "name": Word("a name", needed=True),
}


def test_what_is_given_is_read_and_what_is_not_has_its_default() -> None:
    assert words("verb", ["name=x=y", "n=7"], KEYS) == {"n": 7, "rate": None, "kind": "b", "name": "x=y"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("name=x n=1 n=2", "n is given twice (n=1 and n=2); write the one that you mean"),
        ("name=x nam=y", "nam=y is not understood; did you mean name?"),
        ("name=x loose", "loose is not understood; verb takes n=, rate=, kind=, name="),
        ("n=1", "name= is missing: a name"),
        ("name=", "name= is missing: a name"),
        ("name=x n=0", "n must be a whole number >= 1 (got 0); for example n=3"),
        ("name=x rate=3", "rate must be a number > 0 and <= 2 (got 3); for example rate=0.5"),
        ("name=x rate=nan", "rate must be a number > 0 and <= 2 (got nan); for example rate=0.5"),
        ("name=x kind=d", "kind must be one of a, b, c (got d)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_mend(line: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        words("verb", line.split(), KEYS)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "line",
    [
        "train run_dir=a run_dir=b",
        "train seed=1 seed=1",
        "train seed=1 +seed=2",
        "train agent=random agent=scripted",
        "train prefill=random agent@prefill=scripted",
        "train schedule.log.every=5 schedule.log={every:6}",
        "pretrain stage=both stage=tokenizer",
        "transfer init=a init=b",
        "predict init=a init=b",
        "doctor seed=1 seed=2",
        "eval run=a run=b",
        "report run=a run=b",
        "metrics to=a to=b",
        "weights inspect tokenizer=res64 tokenizer=tiny",
        "weights export run=a run=b",
        "weights import from=a from=b",
        "data collect to=a to=b",
        "data convert to=a to=b",
        "data preview DIR out=a.png out=b.png",
        "data mixture root=a root=b",
        *("train --config-dir=a --config-dir=b", "eval run=a --config-dir=a --config-dir=b"),
    ],
)
def test_every_verb_refuses_a_word_that_is_given_twice(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert "given twice" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("module", ["curves", "planner", "rollout", "pretrain"])
def test_the_benchmarks_read_their_words_in_the_same_way(module: str) -> None:
    bench = importlib.import_module(f"benchmarks.{module}")
    key = next(iter(bench.KEYS))
    with pytest.raises(BadInput, match="twice"):
        bench.main([f"{key}=1", f"{key}=2"])


def test_several_experiments_are_laid_over_each_other_and_the_later_one_wins(tmp_path: Path) -> None:
    plain = compose("train", ["experiment=[demos,proprio]"])
    assert (plain.demos, plain.schedule.prefill, plain.schedule.total) == (5, 6000, 40000)
    assert compose("train", ["experiment=[proprio,demos]"]).schedule.total == 20000
    assert compose("train", ["experiment=[proprio,demos]", "schedule.total=7000"]).schedule.total == 7000
    assert composed("train", ["experiment=[toy,oracle]"])[1]["worldmodel"] == "oracle"
    with pytest.raises(BadInput, match=r"got toyy.*did you mean toy"):
        compose("train", ["experiment=[toyy,demos]"])
    with pytest.raises(BadInput, match="agent must be one of"):
        compose("train", ["agent=[random,scripted]"])


def test_the_advice_for_two_experiments_is_one_that_is_accepted() -> None:
    with pytest.raises(BadInput, match=r"write experiment=\[demos,proprio\]") as caught:
        compose("train", ["experiment=demos", "experiment=proprio"])
    assert compose("train", [str(caught.value).split("write ")[1].split(":")[0]]).demos == 5


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_a_graphics_card_is_asked_for_alike_by_both_verbs(verb: str) -> None:
    data = ["data.folders=[d]"] if verb == "pretrain" else []
    for word in ("compute=gpu", "compute.device=cuda"):
        assert compose(verb, [word, *data]).compute.device == "cuda"
    with pytest.raises(BadInput, match=r"compute must be one of cpu, gpu \(got cuda\)"):
        compose(verb, ["compute=cuda", *data])
