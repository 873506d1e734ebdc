"""A finished run as a world to train in: what it gives, and the document and the scripts that show it."""

from __future__ import annotations

import importlib
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbrl.io.checkpoint import read_newest
from mbrl.replay.episode import DamagedEpisode
from mbrl.run.assemble import Configs, replay_of
from mbrl.run.restore import Trained, read_trained
from mbrl.rundir.folder import read_config
from mbrl.rundir.result import Episodes
from tests.children import laid, run_child
from worldmodel.dream.imagine import Dream
from worldmodel.dream.vector import DreamVectorEnv
from worldmodel.seeds import seeded_globally

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["schedule.total=150", "evaluation.episodes=2", "evaluation.interim=1", "evaluation.rows=2"]

CHANCE = ["agent=random", "schedule.learn.every=0", "schedule.evaluate.every=0"]
BLIND = ["worldmodel=none", *CHANCE]


def finished(folder: Path, *words: str) -> Path:
    assert run_child(["train", *laid("experiment=debug", *SHORT, f"run_dir={folder}", *words)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("home") / "runs" / "toy")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def closed(trained: Trained) -> None:
    trained.eval_setup.evaluator.env.close()


def test_it_gives_the_model_and_the_experience_as_the_run_drew_from_it(run: Path, tmp_path: Path) -> None:
    before, trained = contents(run), read_trained(run)
    assert isinstance(trained.dream, Dream) and trained.dream is trained.dream and trained.device == "cpu"
    spec = trained.dream.spec
    start = trained.starts(5, 3)
    assert start.batch_size == torch.Size([5]) and start["codes"].shape[1] == spec.burn_in
    copy = shutil.copytree(run, tmp_path / "copy")  # a run that goes on claims its folder
    resumed = replay_of(Configs.of(read_config(copy), trusted=True), copy, trained.eval_setup, [])
    resumed.load_state_dict(read_newest(copy / "checkpoints").states["replay"])
    assert len(trained.replay) == len(resumed) == 150
    for name, how in (("clips", {"length": 4}), ("transitions", {"n_step": 2, "stack": 2})):
        drawn = [getattr(replay, name)(6, stream="x", draw=2, **how) for replay in (trained.replay, resumed)]
        assert (drawn[0] == drawn[1]).all()
    assert (trained.starts(5, 3) == start).all() and not (trained.starts(5, 4) == start).all()
    assert contents(run) == before
    closed(trained)


def test_its_experience_includes_what_was_rehearsed(tmp_path: Path) -> None:
    data = tmp_path / "old"
    assert run_child(["data", "collect", "task=reach", f"to={data}", "policy=random", "episodes=2"]) == 0
    trained = read_trained(finished(tmp_path / "run", *BLIND, f"rehearsal=[{data}]"))
    assert len(trained.replay) == 150 + 2 * 25
    closed(trained)


def test_a_run_in_the_simulator_itself_gives_dreams_that_are_true(tmp_path: Path) -> None:
    trained = read_trained(finished(tmp_path / "run", "worldmodel=oracle", *CHANCE))
    envs = DreamVectorEnv(trained.dream, trained.env_spec, trained.starts, num_envs=3, horizon=8)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step(envs.action_space.sample())
    assert ((rewards > 0) & (rewards <= 1)).all(), "closeness"
    closed(trained)


def test_what_is_not_there_is_said_in_one_line_and_nothing_is_moved(run: Path, tmp_path: Path) -> None:
    trained = read_trained(finished(tmp_path / "blind", *BLIND))
    with pytest.raises(ValueError, match="no world model to dream in") as refused:
        _ = trained.dream
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="no stored episode has the 9 frames that a clip of 9 needs") as refused:
        replace(trained, episodes=[]).replay.clips(1, 9, stream="x", draw=0)
    assert "\n" not in str(refused.value)
    closed(trained)
    copy = shutil.copytree(run, tmp_path / "copy")
    damaged, *_ = sorted((copy / "replay").glob("ep-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    before, trained = contents(copy), read_trained(copy)
    with pytest.raises(DamagedEpisode, match=damaged.name):
        trained.starts(2, 0)
    assert contents(copy) == before
    closed(trained)


def test_the_document_s_code_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "inside_the_dream.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    with seeded_globally(torch.Generator().manual_seed(0)):
        for block in blocks:
            exec(block, names)
    assert (
        set(names["data"]["next"].keys()) >= {"latent", "continue", "reward", "done"} and "dream" not in names["data"]
    )
    assert names["action"].shape == (4, 2) and names["frames"].shape == (64, 32, 32, 3)
    closed(names["trained"])


@pytest.mark.parametrize("name", ["torchrl_in_the_dream", "vector_env"])
def test_a_script_trains_in_dreams_and_is_scored_in_the_real_world(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    module, before = importlib.import_module(name), contents(run)
    monkeypatch.setattr(module, "ROWS", 4)
    scores = []
    for updates, seed in ((0, 0), (2, 0), (2, 0), (2, 1)):
        with seeded_globally(torch.Generator().manual_seed(0)):
            chance, score = module.main(run, updates, seed)
        assert isinstance(chance, Episodes) and len(chance.returns) == len(score.returns) == 2
        scores.append(score.returns)
    untrained, one, again, other = scores
    assert one == again and len({untrained, one, other}) == 3
    assert contents(run) == before


def test_the_python_of_the_readme_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code.replace("20)", "2)"), {})
    assert "return" in capsys.readouterr().out
