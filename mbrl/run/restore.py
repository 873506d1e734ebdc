"""What a training run made, to act, to be scored and to be dreamt in: with the weights that the run's own rule scores.

Nothing in the run's folder is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tensordict import TensorDict

from mbrl.envs.rows import RowsEnv
from mbrl.io.checkpoint import load_part, read_newest
from mbrl.replay.clips import OwnRows
from mbrl.run.assemble import Configs, EvalSetup, assemble_eval, replay_of
from mbrl.run.rehearsal import lent, rehearsed
from mbrl.rundir.folder import allowed_classes, read_config
from mbrl.rundir.result import Episodes
from worldmodel.dream.imagine import Dream
from worldmodel.spec import EnvSpec


@dataclass(frozen=True)
class Trained:
    """A run's agent, world model and experience.

    Attributes:
        folder: of the run.
        configs: its configuration.
        eval_setup: agent, world model and the evaluator with its environments.
        episodes: name and sha256 of every episode in its replay.
        step: the number of the checkpoint that it comes from.
        env_step: when it had these weights: `evaluation.weights` says whether the best so far are meant or the last.
        env_steps: how far the run had come.
        wall_s: seconds worked until then.
        random: the random policy's episodes, where it was played.
    """

    folder: Path
    configs: Configs
    eval_setup: EvalSetup
    episodes: Sequence[Sequence[str]]
    step: int
    env_step: int
    env_steps: int
    wall_s: float
    random: Episodes | None

    @property
    def env_spec(self) -> EnvSpec:
        """Of the real world."""
        return self.eval_setup.evaluator.env.env_spec

    @property
    def decisions(self) -> int:
        """What each of the run's environments had decided when it had these weights: schedules of noise count them."""
        return self.env_step // (self.configs.protocol.action_repeat * self.configs.compute.rows)

    @property
    def device(self) -> str:
        """Where the model's weights are."""
        return str(self.configs.compute.device)

    @cached_property
    def dream(self) -> Dream:
        """The world model to imagine in. Raises: ValueError for a run without one."""
        if not self.eval_setup.model.spec.dreams:
            raise ValueError(f"{self.folder} has no world model to dream in (it was trained with worldmodel=none)")
        return Dream(self.eval_setup.model, seeds=self.eval_setup.seeds)

    @cached_property
    def replay(self) -> OwnRows:
        """What the run had experienced, to be drawn from (`agents.api.Replay`); read when first asked for.

        Raises: DamagedEpisode.
        """
        configs, env, keys = self.configs, self.eval_setup.evaluator.env, self.eval_setup.model.spec.obs_keys
        old = lent(rehearsed(configs.rehearsal, configs.protocol), env, keys)
        replay = replay_of(configs, self.folder, self.eval_setup, old)
        replay.adopt(self.episodes)
        return OwnRows(replay, rank=0, world=1)  # it draws, and cannot write to the run's folder

    def starts(self, rows: int, draw: int) -> TensorDict:
        """Where the dreams of a draw begin: clips [rows] of the replay, as long as imagination needs them."""
        spec = self.eval_setup.model.spec
        return self.replay.clips(rows, spec.burn_in, stream="starts", draw=draw, codes=spec.codes is not None)


def configs_of(folder: Path, *, own: Path | None = None, device: str | None = None) -> Configs:
    """The configuration of the run in `folder`, for those who only play.

    Args:
        own: the user's folder of configurations, whose classes are trusted.
        device: where the model shall work; None: where it was trained.
    Raises: ValueError where there is no run, or it has classes that nobody vouches for.
    """
    plain = read_config(folder)
    trusted = allowed_classes(plain, own)
    # nothing more will be remembered: claim no memory for it (what was is taken over whole, `Trained.replay`)
    plain["replay"]["capacity"] = plain["protocol"]["decisions"]
    if device is not None:
        plain["compute"]["device"] = device
    return Configs.of(plain, trusted=trusted)


def read_trained(folder: Path, configs: Configs | None = None, exploring: RowsEnv | None = None) -> Trained:
    """What the newest checkpoint in `folder` holds.

    Args:
        configs: the run's configuration (`configs_of`); None: as it is stored.
        exploring: the worlds in which it will act in mode `explore`, if it will: an expert must know.
    Raises: DamagedCheckpoint or ValueError if there is none that can be read, or its networks have other shapes.
    """
    configs = configs or configs_of(folder)
    checkpoint = read_newest(folder / "checkpoints")
    best = checkpoint.states["best"]["found"] if configs.evaluation.weights == "best" else {}
    states = best["states"] if best else checkpoint.states
    eval_setup = assemble_eval(configs, exploring)
    load_part(eval_setup.model, states["model"], origin=folder)
    load_part(eval_setup.agent, states["agent"], origin=folder)
    env_steps, scores = checkpoint.states["run"]["clock"]["env_steps"], checkpoint.states["run"]["scores"]
    return Trained(
        folder=folder,
        configs=configs,
        eval_setup=eval_setup,
        episodes=checkpoint.states["replay"]["episodes"],
        step=checkpoint.step,
        env_step=int(best["env_step"] if best else env_steps),
        env_steps=int(env_steps),
        wall_s=float(checkpoint.states["logger"]["wall_s"]),
        random=Episodes.of(scores["random"]) if "random" in scores else None,
    )
