"""`result.json`: the schema refuses what is missing, unknown or of another kind, and the file says what was played."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mbrl.cli.main import main
from mbrl.files import DamagedFile
from mbrl.rundir.result import EVALUATION, RESULT, Episodes, check_result, read_result, success_interval
from mbrl.rundir.schema import write_json

GOOD: dict[str, Any] = {
    "schema": 1,
    "task": "door-close-v3",
    "protocol": {"name": "default", "sha256": "ab" * 32},
    "demos": 0,
    "rehearsal": ["sets/a"],
    "begun_from": None,
    "seed": 7,
    "agent": "agents.dreamer.DreamerConfig",
    "model": {"class": "worldmodel.ivideogpt.ModelConfig", "parameters": {"tokenizer": 10, "dynamics": 20}},
    "env_steps": 3000,
    "weights": "best",
    "weights_step": 2500,
    "final": {"returns": [1.5, 2], "success": [True, False], "success_last": [False, False], "success_step": [3, None]},
    "random": {"returns": [0.0], "success": None, "success_last": None, "success_step": None},
    "wall_s": 70.25,
    "device": "cpu",
    "threads": 1,
    "matmul": "bf16",
    "versions": {"torch": "2.13"},
    "commit": "",
}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a nested container, also to the containers."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, name)
        yield from places(value, (*path, name))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        node = node[name]
    return node


FINAL = GOOD["final"]
FREE = {("model", "parameters", "tokenizer"), ("model", "parameters", "dynamics"), ("versions", "torch")}
NULL = [(name, part) for name in ("final", "random") for part in ("success", "success_last", "success_step")] + [
    ("final", "success_step", 0),
    ("final", "success_step", 1),
    ("random",),
    ("begun_from",),
]
PLACES = list(places(GOOD))


def test_a_result_is_one() -> None:
    check_result(GOOD)
    check_result(GOOD | {"random": None})


@pytest.mark.parametrize("path", [path for path in PLACES if isinstance(path[-1], str) and path not in FREE], ids=str)
def test_a_missing_field_is_refused_by_its_name(path: tuple[str, ...]) -> None:
    bad = copy.deepcopy(GOOD)
    del at(bad, path[:-1])[path[-1]]
    with pytest.raises(ValueError, match=path[-1]):
        check_result(bad)


@given(
    place=st.sampled_from(PLACES),
    value=st.one_of(
        st.none(), st.text(max_size=5), st.booleans(), st.sampled_from([math.nan, math.inf]), st.just({}), st.just([[]])
    ),
)
def test_a_value_of_another_kind_is_refused_in_one_line(place: tuple[Any, ...], value: Any) -> None:
    was = at(GOOD, place)
    same = type(value) is type(was) or (value is None and place in NULL)
    if same and not (isinstance(value, float) and not math.isfinite(value)):
        return
    bad = copy.deepcopy(GOOD)
    at(bad, place[:-1])[place[-1]] = value
    if (place == ("model", "parameters") and value == {}) or (place == ("begun_from",) and isinstance(value, str)):
        return
    with pytest.raises(ValueError) as caught:
        check_result(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"more": 1}, "more is unknown"),
        ({"schema": 2}, "schema must be 1"),
        ({"final": FINAL | {"success": [True] * 3}}, "final"),
        ({"final": FINAL | {"success_step": [1]}}, "final"),
        ({"final": FINAL | {"success_step": [1, 2.5]}}, "final.success_step.1 must be of type int"),
        ({"final": {"returns": [], "success": None, "success_last": None, "success_step": None}}, "final"),
        ({"seed": True}, "seed"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_result(GOOD | changes)


def test_a_result_comes_back_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    write_json(tmp_path / RESULT, GOOD)
    assert read_result(tmp_path) == GOOD
    earlier = copy.deepcopy(GOOD)
    for part in ("final", "random"):
        del earlier[part]["success_step"]
    write_json(tmp_path / RESULT, earlier)
    assert Episodes.of(read_result(tmp_path)["final"]).success_step is None, "an earlier version did not tell"
    (tmp_path / RESULT).write_text(json.dumps(GOOD | {"seed": "7"}))
    with pytest.raises(DamagedFile, match=r"result\.json: seed must be of type int"):
        read_result(tmp_path)


def test_episodes_without_success_are_told_by_their_return_alone() -> None:
    silent = Episodes((1.0, 3.0), None, None, None)
    assert Episodes.of(silent.plain()) == silent
    assert "success" not in silent.metrics() and "success" not in str(silent)
    assert silent.metrics()["return"] == 2.0
    told = Episodes((1.0, 3.0), (True, False), (False, False), (4, None))
    assert told.metrics()["success"] == 0.5 and told.metrics()["success_step"] == 4 and "success 0.50 [" in str(told)


def test_a_run_ends_with_a_result_and_eval_scores_the_same_episodes_in_a_file_of_the_same_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "experiment=debug", f"run_dir={folder}"]) == 0
    result = read_result(folder)
    assert (result["task"], result["env_steps"], result["weights"]) == ("reach", 300, "best")
    assert [len(result[name]["returns"]) for name in ("random", "final")] == [3, 3]
    assert min(result["model"]["parameters"].values()) > 1000
    for part in ("random", "final"):
        came = [step is not None for step in result[part]["success_step"]]
        assert came == result[part]["success"], "the rule is: at any decision"
    capsys.readouterr()
    assert main(["eval", f"run={folder}", "episodes=5"]) == 0
    again = read_result(folder, EVALUATION)
    assert again["final"]["returns"][:3] == result["final"]["returns"]
    assert again["random"] == result["random"]
    assert again["weights_step"] == result["weights_step"]
    before = (folder / RESULT).read_bytes()
    assert main(["train", f"run_dir={folder}"]) == 0, "a finished run is not scored again"
    assert (folder / RESULT).read_bytes() == before
    assert main(["train", f"run_dir={folder}", "evaluation.episodes=4"]) == 0, "but it is for another score"
    assert len(read_result(folder)["final"]["returns"]) == 4


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_interval_of_a_rate_is_wilsons(n: int, share: float) -> None:
    successes = round(share * n)
    wilson = binomtest(successes, n).proportion_ci(method="wilson")
    assert success_interval(successes, n) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
