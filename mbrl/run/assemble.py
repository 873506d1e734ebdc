"""Config -> objects, in dependency order. Knows roles, never a concrete agent, model or world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.api import Agent, asked, build
from mbrl.data.dataset import DataSet
from mbrl.envs.make import make_envs
from mbrl.envs.rows import RowsEnv
from mbrl.io.checkpoint import Checkpoints
from mbrl.io.video import Videos
from mbrl.measure.instruments import Instruments
from mbrl.memory import sizes_in
from mbrl.replay.clips import ClipReplay, OwnRows
from mbrl.replay.store import Stored
from mbrl.run.best import Best
from mbrl.run.clock import Clock
from mbrl.run.collect import Collector
from mbrl.run.demos import Demos, Recorded, Scripted, Teacher, check_demos
from mbrl.run.evaluate import Evaluator
from mbrl.run.learning import Learning
from mbrl.run.progress import Progress
from mbrl.run.rehearsal import check_rehearsal, lent, rehearsed
from mbrl.run.run import Run
from mbrl.run.validate import check_together, footprint
from mbrl.rundir.build import fits, make_group
from mbrl.rundir.machine import check_device, check_matmul, set_matmul_precision
from mbrl.rundir.sharing import pieces
from mbrl.rundir.stop import Stop
from worldmodel.answers import method, shown
from worldmodel.api import Tokenizing, WorldModel
from worldmodel.dream.imagine import Dream
from worldmodel.processes import Processes, alone
from worldmodel.seeds import Seeds
from worldmodel.training.updater import Updater

GROUPS = (
    "task", "protocol", "tokenizer", "transformer", "worldmodel", "agent", "prefill", "replay", "fit", "schedule",
    "evaluation", "compute", "logger",
)  # fmt: skip

VIDEOS = 5  # files of each kind that stay
AGENT = ("act", "learn", "state_dict", "load_state_dict")
MODEL = ("to", "losses", "parameters_of", "state_dict", "load_state_dict")
"""Methods of what a `build` of somebody's returns, by which it is known."""
SIZED = {"collect": "compute", "fit": "fit", "learn": "agent", "evaluate": "evaluation"}
"""By phase, the group that says how much is done at once in it."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where it runs.

    Attributes:
        device: `cpu`, `cuda` or `cuda:<n>`.
        threads: torch threads; results are exact for a fixed number of threads only.
        matmul: products of float32 matrices on a CPU: `ieee`, or `bf16`, faster (mbrl/rundir/machine.py).
        rows: environments that collect side by side.
        workers: processes in which environments live, at most one for each; 0: in the run's own. The bits are the same.
    """

    device: str
    threads: int
    matmul: str
    rows: int
    workers: int

    def __post_init__(self) -> None:
        for name in ("threads", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0 (got {self.workers}); 0 steps all environments in one process")
        check_device(self.device)
        check_matmul(self.matmul)


@dataclass(frozen=True, kw_only=True)
class Configs:
    """All config dataclasses of a run, checked one by one and together."""

    seed: int
    keep: int
    demos: int
    demos_from: str | None
    rehearsal: tuple[str, ...]
    groups: Mapping[str, Any]

    @classmethod
    def of(cls, plain: Mapping[str, Any], *, trusted: bool, world: int = 1) -> Configs:
        """From plain containers, for `world` processes. Raises: ValueError naming the key."""
        groups = {name: make_group(plain, name, trusted=trusted) for name in GROUPS}
        if missing := next((name for name in ("seed", "keep", "demos", "rehearsal") if name not in plain), None):
            raise ValueError(f"{missing} is missing; every key of configs/train.yaml must be there")
        for name in ("seed", "keep"):
            if not fits(plain[name], int):
                raise ValueError(f"{name} must be a whole number (got {plain[name]!r})")
        demos = check_demos(plain["demos"])
        demos_from = plain.get("demos_from")
        check_together(groups, demos=demos, recorded=demos_from is not None)
        for complaint in shared(groups, world):
            raise ValueError(complaint)
        if not 0 <= plain["seed"] < 2**31:
            raise ValueError(f"seed must be in [0, 2^31) (got {plain['seed']})")
        if plain["keep"] < 2:
            raise ValueError(f"keep must be >= 2: the newest checkpoint may be the damaged one (got {plain['keep']})")
        rehearsal = check_rehearsal(plain["rehearsal"])
        return cls(
            seed=plain["seed"],
            keep=plain["keep"],
            demos=demos,
            demos_from=demos_from,
            rehearsal=rehearsal,
            groups=groups,
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return self.groups[name]
        except KeyError as error:
            raise AttributeError(name) from error


def shared(groups: Mapping[str, Any], world: int) -> Iterator[str]:
    """What cannot be shared by so many processes: the key, its value, and a mend."""
    yield from pieces("fit", groups, world)
    agent = groups["agent"]
    if world == 1 or not groups["schedule"].learn.ever:
        return
    if "runtime" in asked(agent) or "processes" not in asked(agent):
        yield (
            f"agent={type(agent).__name__} learns in one process only (got {world}): its `build` does not ask for the "
            "`processes` that it would share its batches with; start it without torchrun"
        )
    elif agent.batch_size % world:
        yield f"agent.batch_size={agent.batch_size} must be a multiple of {world} processes; for example {world}"


@dataclass(kw_only=True)
class EvalSetup:
    """What it takes to act and to be scored: everything of a run but its learning."""

    model: WorldModel
    agent: Agent
    prefiller: Agent
    evaluator: Evaluator
    seeds: Seeds


def assemble_eval(configs: Configs, collecting: RowsEnv | None, processes: Processes | None = None) -> EvalSetup:
    """Environments for evaluation, world model, dream and agents.

    Args:
        collecting: the environments of training, where there are any: an expert must know in which worlds it acts.
        processes: those that learn together, on devices of their own; None: one, on that of the configuration.
    """
    torch.set_num_threads(configs.compute.threads)
    set_matmul_precision(configs.compute.matmul)
    processes = processes or alone(configs.compute.device)
    seeds, device = Seeds(configs.seed), str(processes.device)
    judging = worlds_of(configs, stream="evaluate", rows=configs.evaluation.rows)
    env_spec = judging.env_spec
    sizes = {name: configs.groups[name] for name in ("tokenizer", "transformer", "task", "protocol")}
    model = built(configs.worldmodel, {**sizes, "env_spec": env_spec, "seeds": seeds}, MODEL).to(device)
    worlds = {"evaluate": judging, **({"explore": collecting} if collecting is not None else {})}
    runtime = {
        "spec": model.spec,
        "env_spec": env_spec,
        **({"dream": Dream(model, seeds=seeds)} if model.spec.dreams else {}),
        "seeds": seeds,
        "device": device,
        "processes": processes,
        "expert": lambda mode: worlds[mode].expert_actions(),
    }
    agent, prefiller = built(configs.agent, runtime, AGENT), built(configs.prefill, runtime, AGENT)
    return EvalSetup(
        model=model,
        agent=agent,
        prefiller=prefiller,
        evaluator=Evaluator(judging, obs_keys=model.spec.obs_keys),
        seeds=seeds,
    )


def built(config: Any, runtime: Mapping[str, Any], verbs: Sequence[str]) -> Any:
    """`agents.api.build`. Raises: ValueError in one line where what it gives has not these methods."""
    made = build(config, runtime)
    who = method(config, "build")
    if isinstance(made, type):
        raise ValueError(f"{who} must return an object (got the class {made.__qualname__} itself)")
    if lacking := [verb for verb in verbs if not callable(getattr(made, verb, None))]:
        raise ValueError(f"{who} must return what has {', '.join(verbs)} (got {shown(made)}, without {lacking[0]})")
    return made


def assemble(
    configs: Configs, folder: Path, *, info: Mapping[str, Any], stop: Stop, processes: Processes | None = None
) -> Run:
    """The whole run, in its first process; reading this function top to bottom is reading the object graph."""
    processes = processes or alone(configs.compute.device)
    sets = rehearsed(configs.rehearsal, configs.protocol)
    envs = worlds_of(configs, stream="env", rows=configs.compute.rows)
    require_room(configs, folder, rehearsed=sum(sum(data.frames) - len(data) for data in sets))
    old = lent(sets, envs, configs.worldmodel.obs_keys)
    eval_setup = assemble_eval(configs, envs, processes)
    learning = learning_of(configs, folder, eval_setup, old, stop=stop, processes=processes)
    clock, gate, replay, model = learning["clock"], learning["gate"], learning["replay"], eval_setup.model
    progress = Progress()
    collector = Collector(
        envs,
        replay,
        clock=clock,
        progress=progress,
        prefiller=eval_setup.prefiller,
        prefill=configs.schedule.prefill,
        ready=lambda: gate.open,
        obs_keys=model.spec.obs_keys,
    )
    return Run(
        **learning,
        folder=folder,
        evaluation=configs.evaluation,
        collector=collector,
        demos=Demos(configs.demos, teacher_of(configs, envs), replay=replay, clock=clock) if configs.demos else None,
        prefiller=eval_setup.prefiller,
        evaluator=eval_setup.evaluator,
        best=Best({"model": model, "agent": eval_setup.agent}),
        instruments=Instruments(
            model=model,
            agent=eval_setup.agent,
            replay=replay,
            seeds=eval_setup.seeds,
            parts=envs.facts.parts,
            demos=configs.demos,
        ),
        progress=progress,
        logger=configs.logger.build(folder=folder, config=info),
        videos=Videos(folder / "videos", keep=VIDEOS),
        checkpoints=Checkpoints(folder / "checkpoints", keep=configs.keep, info=info),
        sizes={phase: sizes_in(configs.groups[group], f"{group}.") for phase, group in SIZED.items()},
        info=info,
    )


def teacher_of(configs: Configs, env: RowsEnv) -> Teacher:
    """Who demonstrates: the data set that is named, or the expert of the world."""
    if configs.demos_from is None:
        return Scripted(worlds_of(configs, stream="demos", rows=1))
    return Recorded(lambda: recorded(configs), env, configs.worldmodel.obs_keys)


def recorded(configs: Configs) -> DataSet:
    """The data set of the demonstrations. Raises: ValueError where it does not fit, or holds too few."""
    found = rehearsed([str(configs.demos_from)], configs.protocol, key="demos_from")
    if len(found) != 1 or len(found[0]) < configs.demos:
        episodes = sum(map(len, found))
        raise ValueError(
            f"demos_from={configs.demos_from} holds {episodes} episodes in {len(found)} data sets, "
            f"demos={configs.demos}; give one data set with enough of them"
        )
    return found[0]


def assemble_other(configs: Configs, folder: Path, *, stop: Stop, processes: Processes) -> Learning:
    """What the other processes of a run have: no environments, no files."""
    eval_setup = assemble_eval(configs, None, processes)
    envs = eval_setup.evaluator.env
    old = lent(rehearsed(configs.rehearsal, configs.protocol), envs, configs.worldmodel.obs_keys)
    envs.close()
    return Learning(**learning_of(configs, folder, eval_setup, old, stop=stop, processes=processes))


def learning_of(
    configs: Configs, folder: Path, eval_setup: EvalSetup, lent: list[Stored], *, stop: Stop, processes: Processes
) -> dict[str, Any]:
    """The objects that every process of a run has."""
    model, replay = eval_setup.model, replay_of(configs, folder, eval_setup, lent)
    return {
        "schedule": configs.schedule,
        "clock": Clock(),
        "model": model,
        "replay": replay,
        "updater": updater_of(configs, model, replay, processes),
        "agent": eval_setup.agent,
        "gate": configs.schedule.gate.build(),
        "stop": stop,
        "processes": processes,
    }


def replay_of(configs: Configs, folder: Path, eval_setup: EvalSetup, lent: list[Stored]) -> ClipReplay:
    """The run's replay, empty but for episodes of others; nothing in its folder is touched before the first append."""
    model = eval_setup.model
    replay: ClipReplay = configs.replay.build(
        folder=folder / "replay",
        spec=model.spec,
        seeds=eval_setup.seeds,
        tokenize=model.tokenize if isinstance(model, Tokenizing) else None,
        version=lambda: model.tokenizer_version if isinstance(model, Tokenizing) else 0,
        demos=configs.demos,
        lent=lent,
    )
    return replay


def updater_of(configs: Configs, model: Any, replay: ClipReplay, processes: Processes) -> Updater:
    """What fine-tunes the model on the replay: the tokenizer on pixels, the dynamics on memoised codes."""
    memoised = model.spec.codes is not None and not configs.fit.random_shift  # moved frames have codes of their own
    sources = {
        part: OwnRows(replay, rank=processes.rank, world=processes.world, codes=memoised and part != "tokenizer")
        for part in model.spec.parts
    }
    updater: Updater = configs.fit.build(model=model, seeds=Seeds(configs.seed), processes=processes, sources=sources)
    return updater


def require_room(configs: Configs, folder: Path, *, rehearsed: int) -> None:
    """Refuses a replay that memory or disk could not hold; of data sets (`rehearsed` decisions) memory holds a copy.

    Raises: ValueError.
    """
    stored = min(configs.replay.capacity, configs.schedule.total // configs.protocol.action_repeat)
    own = footprint(configs.groups, stored + configs.demos * configs.protocol.decisions)
    old = footprint(configs.groups, rehearsed)
    replace(own, ram=own.ram + old.ram).require_room(folder)


def worlds_of(configs: Configs, *, stream: str, rows: int) -> RowsEnv:
    """The run's environments with seeds of this stream."""
    return make_envs(
        configs.task,
        configs.protocol,
        seeds=Seeds(configs.seed),
        stream=stream,
        rows=rows,
        snapshots="snapshot" in configs.worldmodel.obs_keys,
        workers=configs.compute.workers,
    )
