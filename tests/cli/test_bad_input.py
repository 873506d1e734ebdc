"""What users get wrong: every row ends in exit code 2 and one line with key, value and mend; never a traceback.

Nothing is built: a row that is not refused in time reaches a stand-in for `assemble`, which fails the test.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import mbrl.run.assemble
from mbrl.cli.main import main
from mbrl.envs.metaworld import CAMERAS


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def assembled(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not refused in time")

    monkeypatch.setattr(mbrl.run.assemble, "assemble", assembled)


# words of the command line | what the line must contain, one after another
TRAIN = """
task.name=plate-slid-v3                          | task | 'plate-slid-v3' | plate-slide-v3 | plate-slide-side-v3
task.name=reach-v2                               | task | 'reach-v2' | nearest: reach-v3
task.name=Reach-v3                               | task | 'Reach-v3' | reach-v3
task.name=MT10                                   | task | 'MT10' | nearest:
task.nmae=reach-v3                               | unknown key task.nmae | task.nmae=reach-v3 | task.name
worldmodel.horizon=3                             | unknown key worldmodel.horizon | did you mean | agent.horizon
+worldmodel.horizn=3                             | unknown key worldmodel.horizn | +worldmodel.horizn=3
++new.key=1                                      | unknown key new.key | ++new.key=1
init=/nowhere/at/all                             | init: /nowhere/at/all is not a folder | pre-training run
init=EMPTY                                       | init: | empty has no folder tokenizer | nor a pre-training
init=3                                           | init must be a folder, or null for fresh weights (got 3)
experiment=[toy,oracle] init=EMPTY               | init= | needs a world model that has weights
agent=dreamr                                     | agent must be one of | (got dreamr) | did you mean dreamer
transformer=base138                              | transformer must be one of | (got base138) | did you mean base138m
prefill=random_walk                              | must be one of | (got random_walk)
protocol=mw                                      | protocol must be one of | (got mw)
experiment=[toy,toyy]                            | experiment must be one of | (got toyy) | did you mean toy
seed=-1                                          | seed must be in [0, 2^31) (got -1)
seed=1e3                                         | seed must be a whole number (got 1000.0) | seed=1000
seed=one                                         | seed must be a whole number (got one) | seed=0
keep=1                                           | keep must be >= 2 | (got 1)
compute.threads=0                                | compute.threads must be >= 1 (got 0)
compute.matmul=float32                           | compute.matmul must be ieee or bf16 (got float32)
compute.rows=0                                   | compute.rows must be >= 1 (got 0)
schedule.gate.episodes=3 schedule.dynamics.initial=0 schedule.dynamics.updates=0 | episodes=3 waits for a world model
compute.device=cuda:99                           | compute.device must be one that is there | (got cuda:99)
compute.device=gpu                               | compute.device must be cpu, cuda or cuda:<n> (got gpu)
agent.horizon=0                                  | agent.horizon must be >= 1 (got 0)
agent=mbpo_cpu agent.horizon=8                   | the stack of frames=3 + horizon must be | lower agent.horizon to 7
agent=mbpo_cpu agent.horizon=6 agent.inner.nets.stack=5 | the stack of frames=5 | lower agent.horizon to 5
experiment=[toy,proprio] agent=cem               | agent.std must be a number (got {'after': 3000, 'decisions': 10000})
agent.horizon=400                                | worldmodel.max_frames=10 | horizon to 8 | fit.dynamics.length to 402
worldmodel.losses.token_noise=1                       | worldmodel.losses.token_noise must be in [0, 1) (got 1.0)
worldmodel.heads.action=slots                    | worldmodel.heads.action must be slot or frame (got slots)
evaluation.weights=first                         | evaluation.weights must be last or best (got first)
worldmodel.proprio=true worldmodel.burn_in=0 worldmodel.context=sliding | worldmodel.burn_in must be >= 1 with proprio
agent.gamma=1.7                                  | agent.gamma must be in (0, 1) (got 1.7)
agent.lambda_=-0.1                                   | agent.lambda_ must be in [0, 1] (got -0.1)
agent.actor_optim.lr=0                           | agent.actor_optim.lr must be > 0 (got 0.0)
agent.critic_optim.beta1=1                       | agent.critic_optim.beta1 must be in [0, 1) (got 1.0)
agent.units=0                                    | agent.units must be >= 1 (got 0)
agent.tau=0.1                                    | agent.tau must be null with target_reg=0 | no effect (got 0.1)
agent.target_reg=1                               | agent.tau must be in (0, 1] with target_reg=1.0 (got None)
agent.actor_tau=1                                | agent.actor_tau must be null or in (0, 1) (got 1)
agent.epochs=1                                   | agent.ratio_clip must be null with epochs=1 | (got 0.2)
agent.ratio_clip=null                            | agent.ratio_clip must be in (0, 1) with epochs=4 (got None)
agent.epochs=null                                | agent.epochs must be a whole number (got null)
agent.bins=4                                     | agent.bins must be odd and >= 3 | (got 4)
fit.dynamics.batch=0                             | fit.dynamics.batch must be >= 1 (got 0)
fit.dynamics.batch=2.5                           | fit.dynamics.batch must be a whole number (got 2.5)
fit.dynamics.length=300                          | fit.dynamics.length=300 | worldmodel.max_frames= | lower it to
fit.dynamics.length=2                            | fit.dynamics.length=2 must be > worldmodel.burn_in=2
fit.tokenizer.length=1                           | fit.tokenizer.length=1 must be >= 2
fit.tokenizer.length=300                         | fit.tokenizer.length=300 | protocol.decisions=25 | lower it
fit.tokenizer.optim.lr=-1                        | fit.tokenizer.optim.lr must be > 0 (got -1.0)
fit.precision=float16                            | fit.precision must be float32 or bfloat16 (got float16)
fit.tokenizer.codebooks=open                     | fit.tokenizer.codebooks must be frozen or trained (got open)
worldmodel.max_frames=4000  | worldmodel.max_frames=4000 | positions= | lower worldmodel.max_frames to
worldmodel.burn_in=0                            | worldmodel.burn_in must be >= 1 | (got 0)
worldmodel.latent=[pixels]                       | worldmodel.latent must be some of | (got ['pixels'])
worldmodel.latent=codes                          | worldmodel.latent must be a list | (got codes) | worldmodel.latent=[
worldmodel.context=frame                          | worldmodel.context must be sliding or first_frame (got frame)
worldmodel.sampling.temperature=-1               | worldmodel.sampling.temperature must be >= 0 (got -1.0)
worldmodel.heads.reward=two                      | worldmodel.heads.reward must be none, scalar or twohot (got two)
worldmodel.decoding.kind=diffusion | worldmodel.decoding.kind must be autoregressive, parallel or masked (got diffusion)
worldmodel.decoding.kind=masked | worldmodel.decoding.passes must be >= 2 with kind=masked (got None) | parallel
worldmodel.decoding.passes=2 | worldmodel.decoding.passes must be null with kind=autoregressive (got 2) | only masked
worldmodel.decoding={kind:masked,passes:1} | worldmodel.decoding.passes must be >= 2 with kind=masked (got 1) | parallel
worldmodel.decoding={kind:masked,passes:5} | worldmodel.decoding.passes=5 must be <= 4, the codes of a frame
worldmodel.decoding={kind:masked,passes:two} | worldmodel.decoding.passes must be a whole number or null (got 'two')
transformer.hidden=64000 transformer.heads=4     | transformer.hidden=64000 needs at least | GB are free; lower it
transformer.mlp=900000000                        | transformer.hidden=64 needs at least
tokenizer.block_out_channels=[32,600000]         | tokenizer.block_out_channels=[32,600000] needs at least | lower it
agent.units=2000000                              | agent.units=2000000 needs at least | GB are free; lower it
agent.batch_size=50000000 | agent.batch_size=50000000 needs | keys and values | lower agent.batch_size to
agent=cem agent.candidates=500000000 | agent.candidates=500000000 needs | keys and values | lower agent.candidates to
agent=drqv2 worldmodel=none agent.nets.units=2000000 | agent.nets.units=2000000 needs at least
worldmodel.rollout_precision=float16 | worldmodel.rollout_precision must be float32, bfloat16 or int8 (got float16)
transformer.heads=7                              | transformer.hidden must be a multiple of 2 * heads = 14
transformer.dropout=1                            | transformer.dropout must be in [0, 1) (got 1.0)
transformer.positions=16                         | worldmodel.max_frames= | transformer.positions=16 | raise
tokenizer.image=60                               | tokenizer.image must be a multiple of | (got 60) | take
tokenizer.image=64                               | tokenizer.image=64 must equal protocol.image=32
tokenizer.quantizer=lfq                          | tokenizer.quantizer must be vq or fsq (got lfq)
tokenizer.vocab_future=100                       | tokenizer.fsq_levels_future must be | product 100
protocol.image=20                                | protocol.image must be a multiple of 8 pixels | (got 20)
protocol.action_repeat=0                         | protocol.action_repeat must be >= 1 (got 0)
protocol.quality=best                            | protocol.quality must be one of fast, full | (got 'best')
protocol.success_bonus=-1                        | protocol.success_bonus must be >= 0 (got -1.0)
schedule.prefill=3                               | schedule.prefill=3 must be >= 250 env steps
schedule.prefill=99999                           | schedule.prefill must be <= total= | (got 99999)
schedule.learn.start=0                           | schedule.learn.start must be >= prefill= | (got 0)
schedule.save.every=-5                           | schedule.save.every must be >= 0 (got -5)
schedule.save=5                                  | schedule.save holds several keys | (got 5) | schedule.save.every
schedule.total=0                                 | schedule.total must be >= 1 (got 0)
replay.capacity=3                                | replay.capacity=3 must be >= protocol.decisions=25
replay.capacity=0                                | replay.capacity must be >= 1 (got 0)
replay.recent_fraction=2                         | replay.recent_fraction must be in [0, 1] (got 2.0)
replay.on_damage=ignore                          | replay.on_damage must be one of stop, skip (got ignore)
evaluation.episodes=0                            | evaluation.episodes must be >= 1 (got 0)
logger=csv2                                      | logger must be one of | (got csv2) | did you mean csv
agent._target_=os.system                         | agent._target_=os.system | --config-dir
seed=1,2                                         | seed=1,2 is several values
~agent                                           | ~agent would remove agent
seed                                             | seed is not a setting | key=value
--seed=3                                         | unknown option --seed=3
-m seed=1                                        | -m is not known here | mbrl bench | for each of several values
run_dir=~no_such_user/x=3                           | ~no_such_user/x=3 names the home of nobody here
--config-dir=/nowhere                            | --config-dir /nowhere is not a folder
schedule.total=9000000000 replay.capacity=9000000000 | replay.capacity=9000000000 needs | free | lower
task=metaworld protocol=mwm protocol.decisions=600 | protocol.decisions=600 | 500 | lower protocol.decisions to
task=metaworld protocol=toy                      | protocol.camera must be a camera | (got null | protocol=default
task=toy protocol=default                        | protocol.camera must be null | got protocol default | protocol=toy
protocol.flip=vertical                           | protocol.flip none | use protocol=toy
task=metaworld protocol=mwm protocol.camera.name=corner5 | protocol.camera.name must be one of corner, | (got corner5)
worldmodel.heads={reward:none,bins:0,low:0,high:0,width:0} | worldmodel.heads.reward=none | imagined rewards | twohot
worldmodel.losses.future_frames=1                | worldmodel.losses.future_frames must be >= 2 | got 1 | aux_coef
worldmodel=oracle schedule.tokenizer.initial=4  | tokenizer.initial and updates | nothing to fit | (got 4 and 0)
experiment=[toy,oracle] fit.random_shift=4 | fit.random_shift | must be 0 | nothing to fit (got 4)
worldmodel=oracle schedule.gate={episodes:2,reward_r2:0.5,codes_alive:0} | gate.episodes must be 0 | nothing to fit
worldmodel=oracle transformer=s                  | transformer=s has no effect | OracleModelConfig) is built without it
worldmodel=none tokenizer.quantizer=fsq          | tokenizer.quantizer=fsq has no effect | NullModelConfig
worldmodel=none fit.dynamics.batch=2             | fit.dynamics.batch=2 has no effect | NullModelConfig
worldmodel.losses.commitment_coef=0.5            | commitment_coef=0.5 has no effect | quantizer=fsq
agent.unimix=0.1                                 | agent.unimix=0.1 has no effect | continuous
worldmodel=none                                  | needs a world model to dream in (got DreamerConfig | agent=random
worldmodel=none agent=random worldmodel.obs_keys=[] | worldmodel.obs_keys must be some of pixels, proprio, state
fit.dynamics.length=9                            | length=9 | horizon to 7 or raise fit.dynamics.length to 10
"""

EVAL = """
                                                 | run= is missing
run=/nowhere/at/all                              | run=/nowhere/at/all is not a folder
run=EMPTY                                        | empty is not a run folder | mbrl train run_dir=
run=EMPTY episodes=0                             | episodes must be a whole number >= 1 (got 0) | episodes=20
run=EMPTY episodes=some                          | episodes must be a whole number >= 1 (got some)
run=EMPTY episode=3                              | episode=3 is not understood | did you mean episodes?
run=EMPTY extra                                  | extra is not understood | eval takes run=, episodes=, device=
run=EMPTY --config-dir=/nowhere                  | --config-dir /nowhere is not a folder
"""


def rows(table: str) -> list[Any]:
    """(words, expected parts) of each line of a table."""
    lines = [[part.strip() for part in line.split(" | ")] for line in table.strip("\n").splitlines()]
    return [pytest.param(words.split(), parts, id=words or "nothing") for words, *parts in lines]


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """Runs a command line that must end in one line on stderr; returns that line."""
    assert main(words) == code, capsys.readouterr().err
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(("words", "parts"), rows(TRAIN))
def test_training_refuses(
    words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = [] if words[0].startswith(("task.name", "experiment=")) else ["experiment=toy"]
    folder = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    words = [word.replace("EMPTY", str(tmp_path / "empty")) for word in words]
    place = [] if any(word.startswith("run_dir") for word in words) else [f"run_dir={folder}"]
    said, at = refused(["train", *world, *place, *words], capsys), 0
    for part in parts:
        assert part in said[at:], f"{part!r} is not (or not in this order) in: {said}"
        at = said.index(part, at)
    assert not folder.exists(), "a refused run leaves nothing behind"


@pytest.mark.parametrize(("words", "parts"), rows(EVAL))
def test_evaluation_refuses(
    words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    said = refused(["eval", *(word.replace("EMPTY", str(tmp_path / "empty")) for word in words)], capsys)
    assert [part for part in parts if part not in said] == []


def test_the_camera_names_are_those_of_meta_world() -> None:
    from metaworld.env_dict import ENV_CLS_MAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ENV_CLS_MAP["plate-slide-v3"]().model
    assert {model.camera(number).name for number in range(model.ncam)} == set(CAMERAS)


def test_there_are_enough_rows_to_mean_something() -> None:
    assert len(rows(TRAIN)) + len(rows(EVAL)) >= 60


@pytest.mark.parametrize(
    ("word", "ours"),
    [("steps=100", "schedule.total"), ("total_timesteps=9", "schedule.total"), ("env_id=x", "task.name")],
)
def test_what_others_call_a_key_leads_to_ours(word: str, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", word]) == 2
    assert f"unknown key {word.split('=')[0]} (in {word}); did you mean {ours}?" in capsys.readouterr().err
