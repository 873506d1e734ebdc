"""`mbrl weights`: what it says of files and presets, and what it writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import worldmodel
from benchmarks.fuzz import vouched
from mbrl.cli.main import main
from mbrl.cli.train import resolve_run
from mbrl.run.assemble import Configs, assemble
from mbrl.rundir.folder import run_info, write_run
from mbrl.rundir.stop import Stop
from worldmodel.published.store import save_model

DATA = Path(__file__).parents[1] / "golden" / "data"
SET_A = DATA / "set_a_ctx2"


def says(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that works prints."""
    code = main(["weights", *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


@pytest.mark.parametrize(
    ("words", "counts", "names"),
    [
        (["tokenizer=res64", "transformer=base138m"], ["114,159,174", "138,434,304"], ["64x64", "base transformer"]),
        (["tokenizer=res256", "transformer=medium436m"], ["310,472,774", "436,261,888"], ["256x256", "medium"]),
        (["transformer=m"], ["58,733,056"], ["none"]),
        (["transformer=s", "tokenizer=tiny"], ["1,448,146", "14,950,272"], ["none", "none"]),
    ],
    ids=" ".join,
)
def test_presets_are_counted_without_any_file(
    words: list[str], counts: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = says(["inspect", *words], capsys)
    assert re.findall(r"total +\d+ tensors +([\d,]+) parameters", out) == counts
    published = re.findall(r"  published +(.*)", out)
    assert len(published) == len(names) and all(name in line for name, line in zip(names, published, strict=True))


def test_a_folder_is_described_from_its_headers(capsys: pytest.CaptureFixture[str]) -> None:
    out = says(["inspect", str(SET_A)], capsys)
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [Path(title).parent.name for title in titles] == ["tokenizer", "transformer", "transformer_action"]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    tokenizer = ["context frames 2", "vocabulary 128 + 96 + 2 = 226", "image 64x64", "type BF16"]
    heads = ["actions 4", "actions none (action-free)", "heads reward_linear", "attention heads 4", "positions 1024"]
    for line in (*tokenizer, *heads):
        assert line in lines, line
    total = sum(value.numel() for value in load_file(SET_A / "transformer_action" / "model.safetensors").values())
    assert f"{total:,d} parameters" in out


@pytest.mark.parametrize("place", ["transformer_action", "transformer_action/model.safetensors"])
def test_one_network_can_be_looked_at_alone(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = says(["inspect", str(SET_A / place)], capsys)
    assert out.count("total") == 1 and "action_linear            2 tensors" in out


def test_import_writes_a_checked_copy_with_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["context=1", "action_dim=7", "reward=true", "transformer=transformer"]
    said = says(["import", f"from={SET_A}", f"to={tmp_path / 'mine'}", *asked], capsys)
    assert "1 context frames, 226 ids, actions of 7, reward head scalar" in said
    model = worldmodel.load(tmp_path / "mine")
    assert (model.context, model.action_dim, model.transformer.heads.reward) == (1, 7, "scalar")
    stored = load_file(tmp_path / "mine" / "transformer" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    before = load_file(SET_A / "transformer" / "model.safetensors")
    assert all(torch.equal(stored[f"llm.{name}"], value.float()) for name, value in before.items())


def test_export_writes_the_world_model_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resolved = resolve_run(["experiment=toy", "evaluation.rows=1", "compute.threads=1", f"run_dir={tmp_path / 'run'}"])
    info = run_info(resolved.plain, argv=[])
    write_run(resolved.folder, resolved.plain, info)
    state = assemble(Configs.of(resolved.plain, trusted=True), resolved.folder, info=info, stop=Stop())
    with state.logger:
        state.save()
    says(["export", f"run={tmp_path / 'run'}", f"to={tmp_path / 'out'}"], capsys)
    save_model(state.model, tmp_path / "direct")
    for path in sorted((tmp_path / "direct").glob("*/*")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "direct")).read_bytes()
    counted = says(["inspect", str(tmp_path / "run")], capsys)
    assert f"{sum(p.numel() for p in state.model.tokens.parameters()):,d} parameters" in counted
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    sound = json.loads((checkpoint / "state.json").read_text())
    for model in (sound["model"] | {"tokens.reward_head.0.weight": "text"}, {"tokens.x": None}, [1.5], "text", None):
        (checkpoint / "state.json").write_text(json.dumps(sound | {"model": model}))
        vouched(checkpoint)
        assert main(["weights", "inspect", str(tmp_path / "run")]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "where a tensor belongs" in line


# words of the command line | what the line must contain
BAD = """
                                              | nothing is not something | write one of inspect, export, import
exprt                                         | did you mean export?
inspect                                       | inspect what? | tokenizer=res64
inspect NOWHERE                               | is not a folder
inspect EMPTY                                 | has no folder tokenizer and no folder transformer | training run
inspect PICKLE                                | model.pt is a pickle | never opened
inspect SET tokenizer=tiny                    | one folder or file, or presets
inspect tokenizer=res65                       | tokenizer must be one of | (got res65) | did you mean res64
inspect transformer=../tokenizer/tiny         | transformer must be one of
export run=EMPTY                              | to= is missing
export run=EMPTY to=SET                       | is there already and not empty
export run=EMPTY to=NEW                       | has no folder tokenizer
export runs=EMPTY to=NEW                      | runs=EMPTY is not understood | did you mean run?
import from=SET to=NEW context=3              | context can only shrink: 1 to 2 frames (got 3) | cannot make up more
import from=SET to=NEW context=none           | context must be a whole number >= 1 (got none)
import from=SET to=NEW action_dim=0           | action_dim must be a whole number >= 1 (got 0)
import from=SET to=NEW reward=maybe           | reward must be true or false (got maybe)
import from=SET to=NEW transformer=llm        | has no folder llm
import from=SET to=NEW action_dim=5           | action_dim 4 in the file, 5 in the model
import from=DAMAGED to=NEW                    | cannot read | model.safetensors
"""


@pytest.mark.parametrize("row", BAD.strip("\n").splitlines(), ids=lambda row: row.split(" | ")[0].strip() or "nothing")
def test_bad_input_is_one_line_and_leaves_nothing(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, *parts = [part.strip() for part in row.split(" | ")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    shutil.copytree(SET_A / "tokenizer", tmp_path / "damaged" / "tokenizer")
    shutil.copytree(SET_A / "transformer", tmp_path / "damaged" / "transformer")
    file = tmp_path / "damaged" / "transformer" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    places = {"SET": SET_A, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty", "PICKLE": tmp_path / "model.pt"}
    places |= {"NOWHERE": tmp_path / "nowhere", "DAMAGED": tmp_path / "damaged"}
    given = [re.sub("|".join(places), lambda found: str(places[found[0]]), word) for word in words.split()]
    assert main(["weights", *given]) == 2
    first, *table = capsys.readouterr().err.splitlines()
    assert (
        first.startswith("error: ")
        and [p for p in parts if p.replace("EMPTY", str(places["EMPTY"])) not in first] == []
    )
    assert not table or "action_dim=5" in words  # that one has a table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "empty", "model.pt"]
