"""Every verb refuses what cannot work before it says or writes anything else: one line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbrl.cli.main import VERBS, main
from tests.cli.test_predict_command import pretrained
from tests.pretrain.sets import dataset

WRONG = """
train experiment=toy run_dir=FILE/run                            | run_dir=FILE/run cannot be made: FILE is no folder
train experiment=toy run_dir=NEW agent.gamma=2                   | agent.gamma must be in (0, 1)
train experiment=toy run_dir=NEW init=EMPTY                      | is not a published model
eval run=EMPTY                                                   | is not a run folder
bench suite=nobody to=NEW                                        | suite must be one of
bench suite=toy to=NEW agent.gamma=0.9,2                         | agent.gamma must be in (0, 1)
bench suite=toy to=NEW suite.tasks=[jump]                        | jump
bench suite=toy to=FILE/bench                                    | to=FILE/bench cannot be made
bench to=NEW                                                     | holds no benchmark
bench status to=EMPTY                                            | holds no benchmark
results                                                          | from= is missing
results from=EMPTY                                               | holds no finished run
results from=NEW                                                 | is not there
results from=EMPTY to=NEW                                        | to must be a file that ends in .csv
scale to=NEW transformer=micro,tiny                                | task.name must be the one task
scale to=NEW task.name=reach-v3                                    | one key must have several values
results from=EMPTY show=everything                               | show must be one of
results from=EMPTY demos=5                                       | demos= is for import=
results import=FILE protocol=mine to=NEW.csv                     | success_rule= is missing
results import=EMPTY protocol=mine success_rule=any to=NEW.csv   | is not a file
results import=FILE from=EMPTY                                   | from= is not for import=
audit run=EMPTY                                                  | is not a run folder
audit run=EMPTY starts=1                                         | starts must be
report run=EMPTY                                                 | is not a run folder
report run=EMPTY out=FILE/page.png                               | out=FILE cannot be made
predict init=RUN data=SET split=all metrics=[lpips] to=NEW       | none of frames is left
predict init=RUN data=SET split=all horizon=99 to=NEW            | horizon must be <= 8
predict init=RUN data=SET split=all clips=1 baselines=[shuffled] to=NEW | at least 2 clips
predict init=RUN data=VIDEOS to=NEW split=all                    | has 0 actions, the model wants 2
predict init=RUN data=SET split=all to=FILE                      | to=FILE cannot be made
predict init=EMPTY data=SET to=NEW                               | is not a published model
metrics from=EMPTY to=NEW                                        | carries no network
metrics from=EMPTY to=FILE                                       | to=FILE cannot be made
data collect task=door-close-v3 policy=random to=FILE/set        | to=FILE/set cannot be made
data collect task=reach policy=RUN to=NEW                        | is not a configuration of `mbrl train`
data collect task=reach policy=random to=SET                     | holds data with
data collect task=door-close-v3 policy=random protocol=toy to=NEW | camera must be
data convert from=EMPTY to=NEW format=video                      | holds no video
data convert from=FRAMES to=SET format=frames                    | is a data set of another source
data convert from=FRAMES to=FILE format=frames                   | to=FILE cannot be made
data check EMPTY                                                 | is no data set
data preview SET out=FILE/sheet.png                              | out=FILE cannot be made
data mixture name=nobody                                         | name must be one of
pretrain data.folders=[EMPTY] init=RUN run_dir=NEW               | is no data set
pretrain data.folders=[SET] init=RUN run_dir=NEW worldmodel.losses.lpips=1 | LPIPS needs its network
pretrain data.folders=[SET] init=RUN run_dir=NEW data.validation_every=1   | no episode is left
pretrain data.folders=[SET] init=RUN run_dir=FILE/run            | run_dir=FILE/run cannot be made
transfer data.folders=[EMPTY] init=RUN out=NEW LENGTHS lpips=false | is no data set
transfer data.folders=[SET] init=RUN out=NEW LENGTHS  | LPIPS needs its network
weights inspect EMPTY                                            | is not a published model
weights export run=RUN to=FILE/model                             | to=FILE/model cannot be made
weights import from=EMPTY to=NEW                                 | is not a published model
doctor init=EMPTY                                                | is not a published model
doctor compute.threads=0                                         | compute.threads must be >= 1 (got 0)
tasks all                                                        | mbrl tasks takes task=VARIANT only
"""
ROWS = [[part.strip() for part in line.rsplit(" | ", 1)] for line in WRONG.strip().splitlines()]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the words in capitals stand for."""
    folder = tmp_path_factory.mktemp("refusals")
    found = {"SET": dataset(folder / "set", episodes=5, decisions=13)}
    found["VIDEOS"] = dataset(folder / "videos", episodes=5, decisions=13, actions=False)
    found["RUN"] = pretrained(folder / "run", found["SET"])
    found |= {name: folder / name.lower() for name in ("EMPTY", "FRAMES", "FILE", "NEW")}
    found["EMPTY"].mkdir()
    (found["FRAMES"] / "one").mkdir(parents=True)
    (found["FRAMES"] / "one" / "0.png").touch()
    found["FILE"].touch()
    return found


@pytest.mark.parametrize(("line", "say"), ROWS, ids=[line for line, _ in ROWS])
def test_one_line_is_all_that_is_said_and_nothing_is_written(
    line: str,
    say: str,
    places: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TOKENDREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    line = line.replace("LENGTHS", "stage.tokenizer.length=6 stage.dynamics.length=6")
    for name, path in places.items():
        line, say = line.replace(name, str(path)), say.replace(name, str(path))
    folder = places["NEW"].parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = main(line.split())
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert say in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not list(tmp_path.iterdir())


def test_every_verb_is_asked() -> None:
    assert {line.split()[0] for line, _ in ROWS} == set(VERBS)
