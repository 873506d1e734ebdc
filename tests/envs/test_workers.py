"""Rows in worker processes: the same bits, one clear line when one dies, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict

from mbrl.cli.main import main
from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv
from mbrl.envs.simulator import EnvDataError, SimStep, WorldFacts
from mbrl.run import assemble
from tests.envs.worlds import COUNTING, Recorder, config, metaworld, toy
from tests.run.test_resume import assert_same_run
from worldmodel.seeds import Seeds

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class MoodyTask:
    """A world of one counter that does something else at its third step."""

    tasks: ClassVar[Sequence[str]] = ("dies", "raises", "stays", "never starts")
    name: str

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        return COUNTING

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        yield from ()

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[Moody]:
        if self.name == "never starts":
            raise ValueError("no licence for this world")
        return [Moody(mood=self.name, image=protocol.image) for _ in range(rows)]


@dataclass
class Moody(Recorder):
    mood: str = "stays"

    def step(self, action: Any) -> SimStep:
        answer = super().step(action)
        if self.count == 3 and self.mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == 3 and self.mood == "raises":
            raise RuntimeError("out of mood")
        return answer


def moody(name: str, *, rows: int = 3, workers: int = 2) -> RowsEnv:
    rules = config("protocol", "toy", image=16)
    return make_envs(MoodyTask(name=name), rules, seeds=Seeds(0), stream="env", rows=rows, workers=workers)


def processes(env: RowsEnv) -> list[Any]:
    return [process for process, _, _ in env._home._workers]  # type: ignore[attr-defined]


def played(env: RowsEnv, decisions: int) -> TensorDict:
    """Steps with resets where rows end, and experts in between; [T, E]."""
    now, steps, generator = env.reset(), [], torch.Generator().manual_seed(0)
    shape = (env.batch_size[0], env.env_spec.action_dim)
    for number in range(decisions):
        action = env.expert_actions() if number % 2 else torch.rand(shape, generator=generator) * 4 - 2
        stepped, now = env.step_and_maybe_reset(now.set("action", action))
        steps.append(stepped.clone())
    return torch.stack(steps)


def assert_equal(one: TensorDict, other: TensorDict) -> None:
    flat = [td.flatten_keys(".") for td in (one, other)]
    assert set(flat[0].keys()) == set(flat[1].keys())
    assert all(torch.equal(value, flat[1][key]) for key, value in flat[0].items())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bits(workers: int) -> None:
    here = toy("reach-terminal", rows=3, snapshots=True, decisions=9)
    there = toy("reach-terminal", rows=3, snapshots=True, decisions=9, workers=workers)
    assert_equal(played(here, 21), played(there, 21))
    actions = [torch.zeros(length, 2) for length in (4, 0, 2)]
    for one, other in zip(
        here.replay_actions([5, 6, 7], actions), there.replay_actions([5, 6, 7], actions), strict=True
    ):
        assert one.batch_size == other.batch_size
        assert_equal(one, other)
    assert_equal(here.current(), there.current())
    assert there.episodes == [5, 6, 7]
    there.close()
    there.close()


@pytest.mark.metaworld
def test_meta_world_draws_the_same_frames_in_workers() -> None:
    here, there = (metaworld("plate-slide-v3", rows=2, decisions=3, workers=workers) for workers in (0, 2))
    assert_equal(played(here, 4), played(there, 4))
    here.close(), there.close()


def test_a_run_in_workers_stopped_and_gone_on_in_one_process_is_the_same_run(tmp_path: Path) -> None:
    words = ["train", "experiment=debug", "schedule.total=150", "evaluation.rows=2"]
    assert main([*words, f"run_dir={tmp_path / 'whole'}"]) == 0
    other = f"run_dir={tmp_path / 'other'}"
    saves = assemble.Run.save

    def stopping(self: Any, *, owed: bool = True) -> None:
        saves(self, owed=owed)
        self.stop.requested = True

    with pytest.MonkeyPatch.context() as patch:  # after its first checkpoint, in the middle of an episode
        patch.setattr(assemble.Run, "save", stopping)
        assert main([*words, other, "compute.workers=2"]) == 75
    assert main(["train", other, "compute.workers=0"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "other")


def test_what_goes_wrong_in_a_worker_is_told_as_it_is_here() -> None:
    said = []
    for workers in (0, 2):
        env = moody("raises", workers=workers)
        with pytest.raises(EnvDataError) as caught:
            played(env, 3)
        said.append(str(caught.value))
        env.close()
    assert said[0] == said[1]
    assert "step raised RuntimeError: out of mood in row 0 of raises, episode " in said[0]


def test_a_worker_that_dies_is_one_line_and_takes_the_others_along() -> None:
    env = moody("dies")
    children = processes(env)
    with pytest.raises(
        EnvDataError, match=r"the worker process of row 0, 1 of dies was killed by signal 9 \(out of mem"
    ):
        played(env, 3)
    assert not any(child.is_alive() for child in children)


def test_a_world_that_cannot_be_built_is_told_as_it_is_here() -> None:
    with pytest.raises(ValueError, match="no licence for this world"):
        moody("never starts")


def test_signals_of_the_group_leave_the_workers_to_their_parent() -> None:
    env = moody("stays")
    for child in processes(env):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, number)
    assert played(env, 2)["next", "reward"].sum() == 6
    children = processes(env)
    env.close()
    assert not any(child.is_alive() for child in children)


@pytest.mark.parametrize("how", ["exits", "killed"])
def test_nobody_is_left_behind(how: str) -> None:
    code = f"""
import os, signal, sys
if __name__ == "__main__":
    sys.path[:0] = [{str(ROOT)!r}]
    from tests.envs.test_workers import moody, processes
    env = moody("stays")
    print(*[child.pid for child in processes(env)], flush=True)
    if {how!r} == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if how == "exits" else -signal.SIGKILL), done.stderr
    left = [int(word) for word in done.stdout.split()]
    assert len(left) == 2
    for _ in range(100):
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {left}")


def test_a_negative_number_of_workers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=debug", f"run_dir={tmp_path / 'run'}", "compute.workers=-1"]) == 2
    assert "compute.workers must be >= 0 (got -1)" in capsys.readouterr().err
