"""`mbrl audit`: what it writes about a finished run, that it says the same twice, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mbrl.cli.main import main
from mbrl.measure.verdict import SCHEMA
from mbrl.rundir.schema import check_schema
from tests.measure.broken import break_rewards

EXAMPLES = f"--config-dir={Path(__file__).parents[2] / 'docs' / 'examples' / 'configs'}"
SMALL = ["starts=3", "sequences=4", "horizon=3"]
RUN = ["experiment=debug", "schedule.total=150"]
ORACLE = [
    *("experiment=oracle", "task=toy", "protocol=toy", "agent=dreamer_toy", "schedule=toy", "evaluation=toy"),
    *(f"schedule.{part}.start=100" for part in ("tokenizer", "dynamics", "learn", "evaluate", "save")),
    *("schedule.total=120", "schedule.prefill=100", "schedule.learn.initial=1", "schedule.learn.updates=1"),
    *("evaluation.episodes=1", "evaluation.rows=1", "evaluation.interim=1", "compute.threads=1", "agent.horizon=4"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended, with hardly any updates."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    assert main(["train", *RUN, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def audit(finished: Path) -> dict[str, Any]:
    """What is found of it; the page and the videos lie beside."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["audit", f"run={finished}", *SMALL]) == 0
    assert {path: path.read_bytes() for path in before} == before, "nothing else in the folder changed"
    return audited(finished / "audit")


def audited(folder: Path) -> dict[str, Any]:
    """What was written, by the schema."""
    found: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    check_schema(found, SCHEMA)
    return found


def verdicts(audit: dict[str, Any]) -> dict[str, str | None]:
    return {check["name"]: check["verdict"] for check in audit["checks"]}


def test_a_finished_run_gets_numbers_by_the_schema_a_page_and_videos(finished: Path, audit: dict[str, Any]) -> None:
    assert (audit["starts"], audit["sequences"], audit["horizon"], audit["restores"]) == (3, 4, 3, True)
    assert audit["verdict"] == "red" and audit["broken"], "nobody learns anything from so few updates"
    assert all(len(audit["frames"][name]) == 3 for name in ("psnr", "psnr_repeated", "psnr_shuffled", "psnr_picture"))
    with Image.open(finished / "audit" / "audit.png") as page:
        assert page.format == "PNG" and page.width == 1600 and page.height > 1200
        assert len(page.convert("RGB").getcolors(1 << 22) or []) > 200, "curves and frames were drawn"
    with Image.open(finished / "audit" / "audit.gif") as videos:
        assert videos.format == "GIF" and videos.n_frames == 1 + 3
    assert main(["eval", f"run={finished}", "episodes=1"]) == 0, "the run folder is one as before"


def test_the_same_words_give_the_same_bytes_and_another_seed_does_not(
    finished: Path, audit: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", f"run={finished}", *SMALL, f"to={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "audit.json").read_bytes() == (finished / "audit" / "audit.json").read_bytes()
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[1:-2]] == [[check["verdict"], check["name"]] for check in audit["checks"]]
    assert said[-2].startswith("verdict red: frames red (broken), rewards ") and str(tmp_path / "again") in said[-1]
    assert main(["audit", f"run={finished}", *SMALL, "seed=1", f"to={tmp_path / 'other'}"]) == 0
    assert audited(tmp_path / "other")["returns"] != audit["returns"]


def test_rewards_that_were_broken_by_hand_show_in_the_rewards_alone(
    finished: Path, audit: dict[str, Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert break_rewards(copy).name > max(path.name for path in (finished / "checkpoints").glob("step-*"))
    assert main(["audit", f"run={copy}", *SMALL]) == 0
    broken = audited(copy / "audit")
    assert audit["frames"] == broken["frames"] and audit["leaving"] == broken["leaving"]
    assert audit["returns"] != broken["returns"] and verdicts(broken)["return"] == "red"


def test_a_run_in_the_simulator_itself_is_green(tmp_path: Path) -> None:
    assert main(["train", *ORACLE, f"run_dir={tmp_path / 'run'}"]) == 0
    assert main(["audit", f"run={tmp_path / 'run'}", *SMALL]) == 0
    audit = audited(tmp_path / "run" / "audit")
    assert audit["verdict"] == "green" and set(verdicts(audit).values()) == {"green"}
    assert audit["returns"]["rmse"] == [0.0] * 3 and audit["actions"] == {"frames": 0.0, "rewards": 0.0}


def test_a_world_that_cannot_go_back_is_audited_without_that_part_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *RUN, "task=point_mass", f"run_dir={run}", EXAMPLES]) == 0
    capsys.readouterr()
    assert main(["audit", f"run={run}", "sequences=4", EXAMPLES]) == 2
    assert "sequences=4 needs a world that can go back to a moment, and light cannot" in capsys.readouterr().err
    assert not (run / "audit").exists()
    assert main(["audit", f"run={run}", "starts=3", "horizon=3", EXAMPLES]) == 0
    assert "light cannot go back to a moment" in capsys.readouterr().out
    audit = audited(run / "audit")
    assert not audit["restores"] and audit["sequences"] == 1 and audit["ranking"] is None
    assert verdicts(audit)["ranking"] is None and verdicts(audit)["frames"] == "red"


def test_what_cannot_work_is_refused_in_one_line_before_anything_is_built(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not refused in time")

    monkeypatch.setattr("mbrl.run.restore.assemble_eval", built)
    monkeypatch.setattr("mbrl.envs.make.make_envs", built)
    bare = shutil.copytree(finished, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    none = without_model(shutil.copytree(finished, tmp_path / "none"))
    (tmp_path / "file").write_text("")
    for args, wanted in (
        ([], "run= is missing"),
        (["run=/nowhere/at/all"], "run=/nowhere/at/all is not a folder"),
        ([f"run={tmp_path}"], "is not a run folder: it has no config.yaml"),
        ([f"run={bare}"], "holds no checkpoint yet"),
        ([f"run={finished}", "start=3"], "did you mean starts?"),
        ([f"run={finished}", "starts=1"], "starts must be a whole number >= 2 (got 1)"),
        ([f"run={finished}", "sequences=2"], "sequences must be a whole number >= 4 (got 2)"),
        ([f"run={finished}", "horizon=9"], "horizon must be <= 8, the frames that this model imagines (got 9)"),
        ([f"run={finished}", "horizon=0"], "horizon must be a whole number >= 1 (got 0)"),
        ([f"run={finished}", "seed=x"], "seed must be a whole number >= 0 (got x)"),
        ([f"run={finished}", "device=gpu"], "compute.device must be cpu, cuda or cuda:<n> (got gpu)"),
        ([f"run={finished}", f"to={tmp_path / 'file'}"], "cannot be made"),
        ([f"run={none}"], "has no world model (worldmodel=none)"),
    ):
        assert main(["audit", *args]) == 2, args
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
        assert wanted in said.err


def without_model(run: Path) -> Path:
    """The run, as if it had had no world model."""
    plain = yaml.safe_load((run / "config.yaml").read_text())
    plain["worldmodel"] = {"_target_": "worldmodel.none.NullModelConfig", "obs_keys": ["pixels"]}
    plain["agent"] = dict(plain["prefill"])
    for part in ("tokenizer", "dynamics"):
        plain["schedule"][part] |= {"initial": 0, "updates": 0}
    plain["schedule"]["gate"] |= {"episodes": 0, "reward_r2": 0.0, "codes_alive": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    return run
