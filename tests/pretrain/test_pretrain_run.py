"""A pre-training run: what it leaves behind, that it survives kills, and what it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.cli.main import main
from mbrl.rundir.stop import SAVED_PLEASE_REQUEUE
from tests.children import moments
from tests.pretrain.runs import Pretrain, rows, state_of, words
from tests.pretrain.sets import dataset


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both parts."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(words("both", data, folder)) == 0
    return folder


def test_a_run_leaves_weights_rows_and_films(finished: Path) -> None:
    assert {path.name for path in (finished / "model").iterdir()} >= {"tokenizer", "transformer"}
    measured = rows(finished / "eval.csv")
    assert [int(row["update"]) for row in measured] == [0, 4, 8]
    for name in ("codes/future_usage", "codes/context_perplexity", "tokenizer/future_psnr", "dynamics/ce"):
        assert all(float(row[name]) >= 0 for row in measured)
    for name in ("dynamics/ce_shuffled", "prediction/psnr", "prediction/psnr_shuffled", "prediction/psnr_copy"):
        assert name in measured[0]
    assert {"dynamics/ce_1", "dynamics/ce_6"} <= measured[0].keys()
    assert "dynamics/ce_0" not in measured[0], "with context=first_frame the first frame is given"
    assert [int(row["update"]) for row in rows(finished / "metrics.csv")] == [2, 4, 6, 8]
    films = {path.name for path in (finished / "videos").iterdir()}
    assert {"openloop-000000008.gif", "reconstruction-000000008.gif"} <= films


def test_kills_at_random_moments_change_nothing(tmp_path: Path, data: Path, pretrain: Pretrain, finished: Path) -> None:
    folder = tmp_path / "killed"
    died = [pretrain(words("both", data, folder), once=come) for come in moments(folder, 5, seed=3, lines=9)]
    assert died.count(-signal.SIGKILL) >= 2
    assert pretrain(words("both", data, folder)) == 0
    assert_same(finished, folder)


def test_a_stop_cuts_a_measurement_off_and_it_is_made_again(
    tmp_path: Path, data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(what: str) -> Any:
        return lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if "tokenizer" in what else None

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("mbrl.pretrain.run.told", told)
        assert main(words("both", data, folder)) == SAVED_PLEASE_REQUEUE
    assert not (folder / "eval.csv").exists() and not (folder / "metrics.csv").exists()
    assert "update 0: 3 clips of validation are measured (tokenizer, dynamics)" in (folder / "console.log").read_text()
    assert main(words("both", data, folder)) == 0
    assert_same(finished, folder)


def assert_same(one: Path, other: Path) -> None:
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
    for table in ("metrics.csv", "eval.csv"):
        assert rows(one / table) == rows(other / table)
    for path in (one / "model").rglob("*.safetensors"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_neither_measuring_nor_drawing_otherwise_changes_what_is_learned(
    tmp_path: Path, data: Path, pretrain: Pretrain, finished: Path
) -> None:
    folder = tmp_path / "watched"
    assert (
        pretrain(
            words("both", data, folder, "schedule.evaluate=1", "schedule.log=1", "schedule.save=100", "data.prefetch=0")
        )
        == 0
    )
    ours, theirs = state_of(finished), state_of(folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("/pretrainer/model"))


def test_a_run_begins_from_the_weights_of_another_and_frozen_codebooks_stay(
    tmp_path: Path, data: Path, pretrain: Pretrain, finished: Path
) -> None:
    folder = tmp_path / "adapted"
    assert pretrain(words("adaptation", data, folder, f"init={finished}", "schedule.total=3")) == 0
    before, after = state_of(finished), state_of(folder)
    moved = {name for name in before if "/model/" in name and not torch.equal(before[name], after[name])}
    assert any("tokenizer.encoder" in name for name in moved)
    assert not any("quantize" in name or "/tokens." in name for name in moved)
    assert not any("quantize" in name for name in after if "/optimizers/" in name)


def test_videos_alone_will_do(tmp_path: Path, pretrain: Pretrain) -> None:
    data = dataset(tmp_path / "videos", actions=False)
    silent = ["worldmodel.losses.aux_coef=0", "worldmodel.heads.reward=none"]
    silent += [f"worldmodel.heads.{name}=0" for name in ("bins", "low", "high", "width")]
    assert pretrain(words("both", data, tmp_path / "run", "schedule.total=2", *silent)) == 0
    assert "dynamics/ce_shuffled" not in rows(tmp_path / "run" / "eval.csv")[0]
    assert not any("action_linear" in name for name in state_of(tmp_path / "run"))


@pytest.mark.parametrize(
    ("stage", "override", "line"),
    [
        ("tokenizer", "stage.tokenizer.accumulate=2", "accumulate must be 1 with tokenizer.quantizer=fsq"),
        ("tokenizer", "compute.sharding=fsdp2", "needs stage=dynamics"),
        ("dynamics", "stage.dynamics.optim.decay_steps=7", "decay_steps must be 0 or > warmup_steps=100 (got 7)"),
        ("dynamics", "stage.dynamics.batch=5 stage.dynamics.accumulate=2", "batch must be a multiple of accumulate=2"),
        ("dynamics", "stage.dynamics.length=99", "<= worldmodel.max_frames=10"),
        ("dynamics", "worldmodel.proprio=true", "proprio must be false"),
        ("dynamics", "actions=false", "worldmodel.losses.aux_coef must be 0"),
        ("dynamics", "load=[codes]", "load must be some of tokenizer, dynamics"),
        ("dynamics", "schedule.log=0", "log must be >= 1"),
        ("dynamics", "schedule.totl=3", "did you mean schedule.total"),
        ("dynamics", "stage.dynamics.optim.decay_steps=101 schedule.total=200", "must be 0 or >= schedule.total=200"),
        ("dynamics", "init=nowhere", "nowhere"),
        ("dynamics", "data.folders=[nowhere]", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, data: Path, capsys: Any, stage: str, override: str, line: str
) -> None:
    folder = tmp_path / "run"
    assert main(words(stage, data, folder, *override.split())) == 2
    told = capsys.readouterr().err.strip()
    assert line in told and told.count("\n") == 0
    assert not (folder / "config.yaml").exists()


def test_a_continued_run_stays_what_it_was(data: Path, capsys: Any, finished: Path) -> None:
    assert main(words("both", data, finished, "seed=3")) == 2
    assert "seed=3 cannot be given to a run that began with seed=0" in capsys.readouterr().err


@pytest.mark.parametrize("decoding", ["{kind:autoregressive}", "{kind:masked,passes:2}"])
def test_the_published_optimizer_accumulates_as_it_says(
    tmp_path: Path, data: Path, pretrain: Pretrain, decoding: str
) -> None:
    """One batch at once and in three pieces: the same weights."""
    quiet = ["transformer.dropout=0.0", "stage.dynamics.batch=6", "stage.dynamics.optim.eps=1e-3", "schedule.total=3"]
    quiet += ["schedule.evaluate=0", f"worldmodel.decoding={decoding}"]
    for pieces in (1, 3):
        line = words("dynamics", data, tmp_path / str(pieces), *quiet, f"stage.dynamics.accumulate={pieces}")
        assert pretrain(line) == 0
    one, three = (state_of(tmp_path / str(pieces)) for pieces in (1, 3))
    for name in one:
        if "/model/tokens" in name:
            torch.testing.assert_close(one[name], three[name], rtol=0, atol=1e-6)
