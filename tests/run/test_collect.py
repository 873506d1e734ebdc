"""From real steps to replay: who acts when, and what is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from mbrl.cli.compose import compose
from mbrl.cli.main import main
from mbrl.envs.make import make_envs
from mbrl.run.assemble import Configs, assemble_eval
from mbrl.run.clock import Clock
from mbrl.run.collect import Collector
from mbrl.run.evaluate import Evaluator
from mbrl.run.progress import Progress
from worldmodel.seeds import Seeds


def collector(folder: Path, *overrides: str, prefill: int, rows: int) -> tuple[Collector, Any]:
    plain: Any = OmegaConf.to_container(compose("train", ["experiment=debug", *overrides]))
    configs = Configs.of(plain, trusted=True)
    envs = make_envs(configs.task, configs.protocol, seeds=Seeds(0), stream="env", rows=rows)
    eval_setup = assemble_eval(configs, envs)
    model = eval_setup.model
    replay = configs.replay.build(
        folder=folder, spec=model.spec, seeds=Seeds(0), tokenize=model.tokenize, version=lambda: 0
    )
    made = Collector(
        envs,
        replay,
        clock=Clock(),
        progress=Progress(),
        prefiller=eval_setup.prefiller,
        prefill=prefill,
        ready=lambda: True,
        obs_keys=model.spec.obs_keys,
    )
    return made, eval_setup.agent


def test_the_agent_takes_over_at_the_first_start_of_an_episode_after_the_prefill(tmp_path: Path) -> None:
    made, agent = collector(tmp_path, prefill=60, rows=2)
    while made.prefilling:
        made.step(agent)
    assert made.clock.env_steps == 102  # two whole rounds of 2 x 25 steps, and the agent's first
    assert len(made.replay) == 100


def test_rows_that_fell_out_of_step_do_not_keep_the_agent_waiting(tmp_path: Path) -> None:
    made, agent = collector(tmp_path, "task.name=reach-terminal", "prefill=scripted", prefill=200, rows=3)
    while made.clock.env_steps < 230:
        made.step(agent)
    assert not made.prefilling


def test_an_episode_too_short_for_a_clip_of_the_dream_is_judged_without_one(tmp_path: Path) -> None:
    words = ["protocol.decisions=3", "fit.tokenizer.length=3", "fit.dynamics.length=4", "worldmodel.max_frames=4"]
    words += ["agent.horizon=2", "schedule.prefill=24", "schedule.total=40"]
    words += [f"schedule.{name}.start=24" for name in ("tokenizer", "dynamics", "learn", "evaluate", "save")]
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", *words]) == 0


def test_a_finished_run_that_is_made_longer_is_judged_again_at_its_new_end(tmp_path: Path) -> None:
    folder = f"run_dir={tmp_path / 'run'}"
    assert main(["train", "experiment=debug", folder, "schedule.total=150"]) == 0
    assert main(["train", folder, "schedule.total=200"]) == 0
    last = (tmp_path / "run" / "eval.csv").read_text().splitlines()[-1]
    assert last.startswith("200,") and last.split(",")[4] == "3.0"


class Loud:
    """Says more than may be executed; remembers what it said under `action`, as agents with a window do."""

    def act(self, td: TensorDict, memory: Any, mode: str, *, step: int) -> tuple[torch.Tensor, Any]:
        self.remembered = memory
        said_EA = torch.tensor([[3.0, 0.25], [-0.5, -2.0]])
        return said_EA, TensorDict({"action": said_EA, "mine": torch.ones(2, 1)}, batch_size=[2])


def test_replay_and_the_agents_memory_hold_the_action_that_was_executed(tmp_path: Path) -> None:
    made, _ = collector(tmp_path, prefill=1, rows=2)
    made.prefilling, loud, executed = False, Loud(), [[1.0, 0.25], [-0.5, -1.0]]
    while not made.finished:
        made.step(loud)  # type: ignore[arg-type]
    assert [episode.action.tolist() for episode in made.finished] == [[row] * 25 for row in executed]
    assert loud.remembered["action"].tolist() == executed
    assert loud.remembered["mine"].tolist() == [[1.0], [1.0]]
    made.step(loud)  # type: ignore[arg-type]
    assert made.state_dict()["actions"]["0"].tolist() == [executed[0]], "what is repeated after a stop"


def test_an_agent_is_judged_with_the_memory_of_what_was_executed(tmp_path: Path) -> None:
    made, _ = collector(tmp_path, prefill=1, rows=2)
    loud = Loud()
    score = Evaluator(made.env, obs_keys=("pixels",)).score(loud, 2)  # type: ignore[arg-type]
    assert score.first.action.max() == 1.0
    assert loud.remembered["action"].tolist() == [[1.0, 0.25], [-0.5, -1.0]]
