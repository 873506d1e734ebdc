"""`mbrl train init=<dir>`: a new run's world model begins with weights that are there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mbrl.run.assemble as assembly
import mbrl.run.train
from mbrl.cli.main import main
from mbrl.cli.train import resolve_run, run
from mbrl.run.run import Run
from mbrl.rundir.folder import FORMAT, run_info, write_run
from mbrl.rundir.origin import read_weights
from mbrl.rundir.stop import Stop
from worldmodel.published.folder import assembled
from worldmodel.published.store import MODEL, save_model

TOY = ("experiment=toy", "evaluation.rows=1", "compute.rows=1", "compute.threads=1")


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One world model as a training run, as a published folder and as a pre-training run have it."""
    place = tmp_path_factory.mktemp("origins")
    resolved = resolve_run([*TOY, "seed=9", f"run_dir={place / 'trained'}"])
    info = run_info(resolved.plain, argv=[])
    write_run(resolved.folder, resolved.plain, info)
    state = assembly.assemble(
        assembly.Configs.of(resolved.plain, trusted=True), resolved.folder, info=info, stop=Stop()
    )
    with state.logger:
        state.clock.env_steps = 500
        state.save()
    save_model(state.model, place / "published")
    (place / "pretrained").mkdir()
    (place / "pretrained" / "config.yaml").write_text(f"format: {FORMAT}\nstage: dynamics\n")
    shutil.copytree(place / "published", place / "pretrained" / MODEL)
    return {name: place / name for name in ("trained", "published", "pretrained")}


class Reached(Exception):
    """Training would begin now."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`begun(words)`: the run that would begin to train."""

    def stand_in(state: Run) -> None:
        raise Reached(state)

    monkeypatch.setattr(mbrl.run.train, "train", stand_in)

    def begin(words: list[str]) -> Run:
        with pytest.raises(Reached) as caught:
            run(words)
        state: Run = caught.value.args[0]
        return state

    return begin


@pytest.mark.parametrize("kind", ["trained", "published", "pretrained"])
def test_a_new_run_begins_with_the_weights_and_writes_down_whose_they_are(
    kind: str, origins: dict[str, Path], begun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(origins[kind].parent)  # a relative folder is understood from here
    state = begun([*TOY, f"init={kind}", f"run_dir={tmp_path / 'run'}"])
    found = read_weights(origins[kind])
    video, model = assembled(found.tokenizer, found.transformer), state.model
    for part, loaded in ((model.tokenizer, video.tokenizer), (model.tokens, video.transformer)):
        weights = loaded.state_dict()
        assert weights and all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())
    told = (tmp_path / "run" / "console.log").read_text()
    assert ("keep their initial values" in told) == (kind != "trained")  # only a run has the auxiliary heads
    if kind == "trained":
        auxiliary = model.auxiliary.state_dict()
        assert all(torch.equal(value, found.auxiliary[name]) for name, value in auxiliary.items())
    record = json.loads((tmp_path / "run" / "run.json").read_text())["init"]
    assert record["path"] == str(origins[kind])
    hashes = {"trained": 2, "published": 4, "pretrained": 4}
    assert len(record["sha256"]) == hashes[kind] and all(len(h) == 64 for h in record["sha256"].values())


def test_a_run_that_goes_on_has_its_own_weights(origins: dict[str, Path], begun: Any, tmp_path: Path) -> None:
    origin = Path(shutil.copytree(origins["published"], tmp_path / "origin"))
    words = [*TOY, f"init={origin}", f"run_dir={tmp_path / 'run'}"]
    first = begun(words)
    # killed before the first checkpoint: begun again with the same files, and with none but these
    again = begun(words)
    assert torch.equal(again.model.tokens.llm.lm_head.basis, first.model.tokens.llm.lm_head.basis)
    config = origin / "tokenizer" / "config.json"
    content = config.read_text()
    config.write_text(content + " ")
    with pytest.raises(ValueError, match="has changed since this run began"):
        run(words)
    config.write_text(content)
    state = begun(words)
    with torch.no_grad():
        state.model.tokens.llm.lm_head.basis.zero_()
    with state.logger:
        state.save()
    shutil.rmtree(origin)
    assert not begun([f"run_dir={tmp_path / 'run'}"]).model.tokens.llm.lm_head.basis.any()
    with pytest.raises(ValueError, match=r"init=.* cannot be given to a run that began with init="):
        run([f"run_dir={tmp_path / 'run'}", f"init={origins['trained']}"])


def test_sizes_come_with_the_weights_unless_they_are_typed(
    origins: dict[str, Path], begun: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = begun([*TOY, f"run_dir={tmp_path / 'toy'}"])
    world = ["task=toy", "protocol=toy", "evaluation=toy", "schedule=toy", "fit=toy", "agent=dreamer_toy", *TOY[1:]]
    for kind, origin in origins.items():  # the preset alone would be tokenizer=tiny transformer=tiny worldmodel=cpu
        state = begun([*world, "worldmodel.max_frames=10", f"init={origin}", f"run_dir={tmp_path / kind}"])
        assert state.model.tokenizer.config == toy.model.tokenizer.config
        assert state.model.tokens.llm.config == toy.model.tokens.llm.config
        assert state.model.config.heads == toy.model.config.heads
        assert capsys.readouterr().out.count("as in init=") == 1
        assert "transformer.hidden=" in (tmp_path / kind / "console.log").read_text()
    words = [*world, "worldmodel.heads.reward=scalar", f"init={origins['trained']}", f"run_dir={tmp_path / 'no'}"]
    assert resolve_run(words).plain["worldmodel"]["heads"]["bins"] == 101, (
        "of the preset: the weights' head is not wanted"
    )
    with pytest.raises(ValueError, match="hidden_size"):  # what was typed stays
        run([*world, "transformer=tiny", f"init={origins['published']}", f"run_dir={tmp_path / 'typed'}"])


def test_the_decoding_comes_with_the_weights_unless_it_is_typed(origins: dict[str, Path], tmp_path: Path) -> None:
    masked, kind = "worldmodel.decoding={kind:masked,passes:2}", "worldmodel.decoding.kind=parallel"
    world = ["task=toy", "protocol=toy", "evaluation=toy", "schedule=toy", "fit=toy", "agent=dreamer_toy", *TOY[1:]]
    resolved = resolve_run([*TOY, "seed=9", masked, f"run_dir={tmp_path / 'masked'}"])
    write_run(resolved.folder, resolved.plain, {})
    configs = assembly.Configs.of(resolved.plain, trusted=True)
    state = assembly.assemble(configs, resolved.folder, info={}, stop=Stop())
    with state.logger:
        state.save()
    save_model(state.model, tmp_path / "published")

    def decoded(origin: Path, *words: str) -> Any:
        plain = resolve_run([*world, f"init={origin}", f"run_dir={tmp_path / 'run'}", *words]).plain
        return plain["worldmodel"]["decoding"]["kind"], plain["worldmodel"]["decoding"]["passes"]

    for origin in (tmp_path / "masked", tmp_path / "published"):
        assert decoded(origin) == ("masked", 2)
        assert decoded(origin, kind) == ("parallel", None)
        assert read_weights(origin).transformer.decoding == state.model.tokens.decoding
    assert decoded(origins["trained"]) == decoded(origins["published"]) == ("autoregressive", None)
    assert decoded(origins["trained"], masked) == ("masked", 2)


def test_a_run_in_the_perfect_model_has_no_weights_to_begin_from(tmp_path: Path) -> None:
    perfect = resolve_run([*TOY[1:], "experiment=[toy,oracle]", f"run_dir={tmp_path / 'oracle'}"])
    write_run(perfect.folder, perfect.plain, {})
    (perfect.folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no weights to start from: its world model is oracle"):
        run([*TOY, f"init={perfect.folder}", f"run_dir={tmp_path / 'run'}"])


def test_weights_of_another_size_are_refused_by_a_table_and_leave_nothing(
    origins: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TOY, "transformer.mlp=96", f"init={origins['published']}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *words]) == 2
    first, header, *rows = capsys.readouterr().err.splitlines()
    assert first.startswith("error: 7 entries of ") and "intermediate_size 172 in the file, 96 in the model" in first
    assert header.split("  ")[0] == "name"
    assert [row.split()[0] for row in rows if "layers.1" in row] == [
        f"llm.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.lock"}


def test_a_run_without_a_checkpoint_has_nothing_to_give(
    tmp_path: Path, origins: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "young").mkdir()
    shutil.copy(origins["trained"] / "config.yaml", tmp_path / "young" / "config.yaml")
    assert main(["train", *TOY, f"init={tmp_path / 'young'}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "is a run without a checkpoint yet" in capsys.readouterr().err
