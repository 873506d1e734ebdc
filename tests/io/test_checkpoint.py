from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl.io.checkpoint import Checkpoints, DamagedCheckpoint, checkpoint_paths, read_newest
from mbrl.io.lock import RunInUse, RunLock
from mbrl.io.tree import Diverged, join, split
from worldmodel.answers import WrongAnswer


class Part:
    """Something with a state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def _state(step: int) -> dict[str, Any]:
    return {
        "weights": {"w": torch.full((3, 2), float(step)), "codes": torch.arange(step, step + 4)},
        "count": step,
        "rows": [[1, "a"], None, {"b": 0.1}],
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b


def test_a_checkpoint_gives_back_every_part_as_it_was(tmp_path: Path) -> None:
    parts = {"model": Part(_state(7)), "clock": Part({"env_steps": 7, "done": {}})}
    path = Checkpoints(tmp_path, keep=2).save(7, parts)
    assert path == tmp_path / "step-000000007"
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.safetensors", "state.json"]

    fresh = {"model": Part(), "clock": Part()}
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.load(fresh) == 7
    assert _equal(fresh["model"].state, _state(7))
    assert _equal(fresh["clock"].state, {"env_steps": 7, "done": {}})
    assert checkpoints.messages == [f"resumed from step 7 ({path})"]


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new", keep=2).load({"model": Part()}) is None


def test_modules_and_tied_weights_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    twin = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    Checkpoints(tmp_path, keep=2).save(0, {"net": net})
    Checkpoints(tmp_path, keep=2).load({"net": twin})
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5, dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
        torch.arange(5, dtype=torch.uint8),
        torch.linspace(0, 1, 7, dtype=torch.float64)[2:5],
    ],
)
def test_every_kind_of_tensor_keeps_dtype_shape_and_value(tmp_path: Path, tensor: torch.Tensor) -> None:
    Checkpoints(tmp_path, keep=2).save(1, {"part": Part({"x": tensor})})
    part = Part()
    Checkpoints(tmp_path, keep=2).load({"part": part})
    assert _equal(part.state["x"], tensor)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(state=JSON)
def test_every_plain_state_survives_split_and_json_exactly(state: Any) -> None:
    tree, tensors = split({"plain": state, "w": torch.ones(2)}, name="part")
    found = join(json.loads(json.dumps(tree)), tensors)
    assert _equal(found, {"plain": state, "w": torch.ones(2)})


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"a": {"b": torch.tensor([1.0, float("nan")])}}, Diverged, "part/a/b holds 1 numbers that are not finite"),
        ({"a": [0.0, float("inf")]}, Diverged, "part/a/1 is inf"),
        ({"a": {3: 1}}, WrongAnswer, "part/a has the key 3"),
        ({"a": {"__tensor__": "x"}}, WrongAnswer, "__tensor__"),
        ({"a": {1, 2}}, WrongAnswer, "part/a is a set"),
        ({"a": {"b": torch.ones(1)}, "a/b": torch.ones(1)}, WrongAnswer, "two tensors are called part/a/b"),
    ],
)
def test_what_must_not_be_saved_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, state: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Checkpoints(tmp_path, keep=2).save(1, {"part": Part(state)})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_are_kept_by_number_and_what_is_saved_last_is_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for count, step in enumerate((5, 7, 20, 999_999_999, 1_000_000_000)):
        checkpoints.save(step, {"part": Part({"count": count})})
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-1000000000", "step-999999999", "step-000000020"]
    assert checkpoints.kept("part") == [{"count": 4}, {"count": 3}, {"count": 2}]
    for count, step in ((5, 1_000_000_000), (6, 1_000_000_000), (7, 20)):  # nothing is overwritten, nothing is lost
        checkpoints.save(step, {"part": Part({"count": count})})
        assert checkpoints.kept("part")[0] == {"count": count}
    assert [path.name[5:] for path in checkpoint_paths(tmp_path)] == ["1000000003", "1000000002", "1000000001"]


def test_fewer_than_two_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be >= 2"):
        Checkpoints(tmp_path, keep=1)


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000000004-1").mkdir()
    (tmp_path / ".tmp-step-000000004-1" / "state.json").write_text("{")
    Checkpoints(tmp_path, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_parts_is_not_damage_but_a_mistake(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).save(1, {"model": Part({})})
    with pytest.raises(ValueError, match=r"holds \['model'\], this run has \['agent', 'model'\]"):
        Checkpoints(tmp_path, keep=2).load({"model": Part(), "agent": Part()})
    assert len(checkpoint_paths(tmp_path)) == 1


def test_weights_of_another_version_are_one_line_and_do_not_cost_the_checkpoint(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).save(1, {"net": torch.nn.Linear(2, 3)})
    with pytest.raises(ValueError, match=r"2 entries do not fit.*weight.*`commit` in run.json") as told:
        Checkpoints(tmp_path, keep=2).load({"net": torch.nn.Linear(3, 2)})
    assert "\n" not in str(told.value)
    assert len(checkpoint_paths(tmp_path)) == 1


def test_another_environment_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Checkpoints(tmp_path, keep=2, info={"torch": "2.13.0", "threads": 1}).save(3, {"part": Part({})})
    other = Checkpoints(tmp_path, keep=2, info={"torch": "2.13.0", "threads": 2})
    other.load({"part": Part()})
    assert "threads was 1 and is 2" in other.messages[0] and len(other.messages) == 2
    assert "threads was 1 and is 2" in caplog.text


def test_what_was_typed_and_notes_beside_the_code_are_no_other_environment(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2, info={"argv": ["a"], "commit": "c0ffee"}).save(1, {"model": Part(_state(1))})
    other = Checkpoints(tmp_path, keep=2, info={"argv": ["b"], "commit": "c0ffee-dirty"})
    other.load({"model": Part()})
    assert len(other.messages) == 1, "only where it resumed"
    assert read_newest(tmp_path).info == {"argv": ["a"], "commit": "c0ffee"}, "recorded all the same"
    moved = Checkpoints(tmp_path, keep=2, info={"argv": ["b"], "commit": "decaf"})
    moved.load({"model": Part()})
    assert "commit was 'c0ffee' and is 'decaf'" in moved.messages[0]


def test_those_who_only_look_move_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"part": Part(_state(step))})
    (tmp_path / "step-000000002" / "state.json").write_text("{}")
    found = read_newest(tmp_path)
    assert found.step == 1 and _equal(found.states["part"], _state(1))
    assert "step-000000002" in caplog.text and len(checkpoint_paths(tmp_path)) == 2
    (tmp_path / "step-000000001" / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"no checkpoint .* can be used"):
        read_newest(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        read_newest(tmp_path / "step-000000001")


def test_saving_is_logged_after_the_fact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Checkpoints(tmp_path, keep=2).save(4, {"part": Part({})})
    assert "saved" in caplog.text and "step-000000004" in caplog.text


def test_a_run_folder_has_one_owner(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(RunInUse, match=r"is in use by pid \d+ on host .+: wait for it"):
        RunLock(tmp_path / "run")
    RunLock(tmp_path / "run").close()
