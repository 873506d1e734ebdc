"""The agent that a training run made: its worlds, its model and the weights that the run's own rule scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbrl.envs.rows import RowsEnv
from mbrl.io.checkpoint import load_part, read_newest
from mbrl.run.assemble import Configs, EvalSetup, assemble_eval
from mbrl.rundir.folder import allowed_classes, read_config
from mbrl.rundir.result import Episodes


@dataclass(frozen=True)
class Trained:
    """An agent with what it needs to act.

    Attributes:
        player: agent, world model and the evaluator with its environments.
        step: the number of the checkpoint that it comes from.
        env_step: when it had these weights: `evaluation.weights` says whether the best so far are meant or the last.
        env_steps: how far the run had come.
        wall_s: seconds worked until then.
        random: the random policy's episodes, where it was played.
    """

    eval_setup: EvalSetup
    step: int
    env_step: int
    env_steps: int
    wall_s: float
    random: Episodes | None


def configs_of(folder: Path, *, own: Path | None = None, device: str | None = None) -> Configs:
    """The configuration of the run in `folder`, for those who only play.

    Args:
        own: the user's folder of configurations, whose classes are trusted.
        device: where the model shall work; None: where it was trained.
    Raises: ValueError where there is no run, or it has classes that nobody vouches for.
    """
    plain = read_config(folder)
    trusted = allowed_classes(plain, own)
    plain["replay"]["capacity"] = plain["protocol"]["decisions"]  # nothing is remembered here: claim no memory for it
    if device is not None:
        plain["compute"]["device"] = device
    return Configs.of(plain, trusted=trusted)


def read_trained(folder: Path, configs: Configs, exploring: RowsEnv | None = None) -> Trained:
    """The agent of the newest checkpoint in `folder`, whose configuration is `configs`.

    Args:
        exploring: the worlds in which it will act in mode `explore`, if it will: an expert must know.
    Raises: DamagedCheckpoint or ValueError if there is none that can be read, or its networks have other shapes.
    """
    checkpoint = read_newest(folder / "checkpoints")
    best = checkpoint.states["best"]["found"] if configs.evaluation.weights == "best" else {}
    states = best["states"] if best else checkpoint.states
    eval_setup = assemble_eval(configs, exploring)
    load_part(eval_setup.model, states["model"], origin=folder)
    load_part(eval_setup.agent, states["agent"], origin=folder)
    env_steps, scores = checkpoint.states["run"]["clock"]["env_steps"], checkpoint.states["run"]["scores"]
    return Trained(
        eval_setup=eval_setup,
        step=checkpoint.step,
        env_step=int(best["env_step"] if best else env_steps),
        env_steps=int(env_steps),
        wall_s=float(checkpoint.states["logger"]["wall_s"]),
        random=Episodes.of(scores["random"]) if "random" in scores else None,
    )
