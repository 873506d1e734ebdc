"""Put a run's world model beside the simulator: same starts, same actions; red, yellow or green.

usage: mbrl audit run=DIR [starts=24] [sequences=12] [horizon=10] [seed=0] [to=DIR] [device=cpu] [--config-dir DIR]

  mbrl audit run=runs/mine                       writes runs/mine/audit
  mbrl audit run=runs/mine starts=60 seed=1      more starts, other starts and actions
  mbrl audit run=runs/mine --config-dir configs.d   a run with classes of your own, which files in configs.d name

Plays fresh episodes, half of them with the agent and its noise and half with random actions, takes starts from them,
imagines sequences of actions from each (half of them the agent's own, as it acts in its dreams, half random), and takes
the same actions in the simulator. Of the newest checkpoint the weights that mbrl eval scores are audited.
Where a world cannot go back to a moment each start has one sequence, what was done there, and nothing says which of
several is better: give no sequences= then.

Writes audit.json (the numbers; the same words give the same file), audit.png (the page) and audit.gif into to=DIR, by
default the folder audit in the run's. What each number means, and why the thresholds are what they are: docs/audit.md.
Exit code 0 says that the audit was made; the verdict is in what it prints and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import Word, place, there, whole, words
from mbrl.program import program
from mbrl.progress import told

SEQUENCES, HORIZON = 12, 10
"""Defaults of `sequences` and of `horizon` (less where the model imagines no more)."""
FPS = 4.0
KEYS = {
    "run": there("run", f"the folder of a run, as `{program()} train` printed it"),
    "starts": whole(24, least=2),
    "sequences": whole(None, least=4),
    "horizon": whole(None),
    "seed": whole(0, least=0),
    "to": place("to", "a folder"),
    "device": Word("cpu, cuda or cuda:<n>"),
}


def run(args: list[str]) -> int:
    """Prints the verdict; writes audit.json, audit.png and audit.gif."""
    from mbrl.cli.compose import own_folder, take_config_dir

    typed, own = take_config_dir(args)
    audit, to = write_audit(words("mbrl audit", typed, KEYS), own and own_folder(own), args)
    print("\n".join(table(audit)))
    print(f"written to {to}: audit.json, audit.png, audit.gif")
    return DONE


def write_audit(asked: dict[str, Any], own: Path | None, args: list[str]) -> tuple[dict[str, Any], Path]:
    """Audits a run: what was found, and the folder that holds it.

    Args:
        asked: the values of `KEYS`.
        own: the folder of the user's own configurations.
        args: what was typed, which the audit keeps.
    Raises: BadInput; ValueError where no episode is long enough for a start.
    """
    folder: Path = asked["run"].resolve()

    from mbrl.run.restore import configs_of

    configs = configs_of(folder, own=own, device=asked["device"])
    asked |= sizes(asked, configs)
    to: Path = asked["to"] or folder / "audit"

    from mbrl.files import write_atomically
    from mbrl.io.checkpoint import checkpoint_paths
    from mbrl.io.video import write_pictures
    from mbrl.report.audit import moving, page, videos
    from mbrl.rundir.schema import write_json

    if not checkpoint_paths(folder / "checkpoints"):
        raise BadInput(f"run={asked['run']} holds no checkpoint yet: it has no world model to audit")
    audit, rows, kinds, shown = made(folder, configs, asked, args)
    pictures = videos(shown)
    to.mkdir(parents=True, exist_ok=True)
    write_json(to / "audit.json", audit)
    write_atomically(to / "audit.png", page(audit, rows, kinds, pictures))
    write_pictures(to / "audit.gif", moving(pictures), fps=FPS)
    return audit, to


def sizes(asked: Mapping[str, Any], configs: Any) -> dict[str, Any]:
    """What is left to decide: `restores`, `sequences`, `horizon`. Raises: BadInput for what this run cannot give."""
    from worldmodel.none import NullModelConfig

    model, decisions, task = configs.worldmodel, configs.protocol.decisions, configs.task
    if isinstance(model, NullModelConfig):
        raise BadInput(f"run={asked['run']} has no world model (worldmodel=none): there is nothing to audit")
    restores = bool(task.facts(configs.protocol).snapshot_dim)
    if asked["sequences"] is not None and not restores:
        raise BadInput(
            f"sequences={asked['sequences']} needs a world that can go back to a moment, and {task.name} cannot: "
            "leave it out, and each start has the one sequence that was played"
        )
    most = model.max_frames - model.burn_in if model.parts else decisions
    most = min(most, decisions - 1)
    if (asked["horizon"] or 0) > most:
        raise BadInput(f"horizon must be <= {most}, the frames that this model imagines (got {asked['horizon']})")
    return {
        "restores": restores,
        "sequences": (asked["sequences"] or SEQUENCES) if restores else 1,
        "horizon": asked["horizon"] or min(HORIZON, most),
    }


def made(folder: Path, configs: Any, asked: Mapping[str, Any], args: list[str]) -> tuple[dict[str, Any], Any, Any, Any]:
    """The audit, its rows, whose episode each start is of, and rollouts to be looked at.

    Raises: as `mbrl.run.restore.read_trained`; ValueError where no episode is long enough for a start.
    """
    from mbrl.cli.compose import packaged_configs
    from mbrl.cli.data_collect import read
    from mbrl.collection.policies import Played
    from mbrl.collection.starts import gathered, rested
    from mbrl.envs.make import make_envs
    from mbrl.measure.audit import SideBySide, compared
    from mbrl.measure.verdict import audited, findings
    from mbrl.oracle import OracleModelConfig
    from mbrl.run.restore import read_trained
    from mbrl.rundir.build import make
    from worldmodel.dream.imagine import Dream
    from worldmodel.seeds import Seeds

    task, protocol, seeds, restores = configs.task, configs.protocol, Seeds(asked["seed"]), asked["restores"]
    env = make_envs(task, protocol, seeds=seeds, stream="audit", rows=1, snapshots=restores)
    trained = read_trained(folder, configs, env)
    trained.eval_setup.evaluator.env.close()
    model, agent = trained.eval_setup.model, trained.eval_setup.agent
    chance: Any = make(read(packaged_configs() / "agent" / "random.yaml"), "agent", trusted=False)
    chance = chance.build(env_spec=env.env_spec, seeds=seeds)
    simulator = OracleModelConfig().build(task=task, protocol=protocol, env_spec=env.env_spec) if restores else None
    sides = SideBySide(
        dream=Dream(model, seeds=seeds),
        simulator=Dream(simulator, seeds=seeds) if simulator else None,
        agent=agent,
        chance=chance,
        sequences=asked["sequences"],
        horizon=asked["horizon"],
        seeds=seeds,
    )
    policies = {
        "trained": Played(agent, env, obs_keys=model.spec.obs_keys, past_decisions=trained.decisions),
        "random": Played(chance, env),
    }
    starts = gathered(env, policies, sides, count=asked["starts"])
    rest, why = rested(env, sides, first=2 * asked["starts"])
    env.close()
    rows, shown = compared(sides, starts, on_progress=told("starts"))
    kinds = [start.kind for start in starts]
    found = findings(rows, rest, kinds=kinds, own=sides.own)
    left_out = {"rest": why} if why else {}
    if not restores:
        left_out["ranking"] = (
            f"{task.name} cannot go back to a moment, so each start has the one sequence that was played"
        )
    about = {**of_run(folder, configs, trained, args), **of_audit(asked, len(starts))}
    return audited(about, found, left_out), rows, kinds, shown


def of_run(folder: Path, configs: Any, trained: Any, args: list[str]) -> dict[str, Any]:
    """What audit.json says of the run and the machine."""
    from mbrl.rundir.folder import read_config, run_info

    plain = read_config(folder)
    plain["compute"]["device"] = configs.compute.device
    info = run_info(plain, argv=args)
    return {
        **{
            name: info[name] for name in ("task", "agent", "model", "device", "threads", "matmul", "versions", "commit")
        },
        "protocol": {"name": info["protocol"], "sha256": info["protocol_sha256"]},
        "run_seed": info["seed"],
        "env_steps": trained.env_steps,
        "weights": configs.evaluation.weights,
        "weights_step": trained.env_step,
    }


def of_audit(asked: Mapping[str, Any], starts: int) -> dict[str, Any]:
    """What audit.json says of how it was made."""
    return {**{name: asked[name] for name in ("seed", "sequences", "horizon", "restores")}, "starts": starts}


def table(audit: Mapping[str, Any]) -> list[str]:
    """The checks for a screen, and the verdict."""
    from mbrl.report.audit import thresholds, verdict

    lines = [f"{audit['task']}, weights of env step {audit['weights_step']}, {audit['starts']} starts"]
    for check in audit["checks"]:
        value = "" if check["value"] is None else f"{check['value']:.3f}"
        said = audit["left_out"].get(check["name"]) or f"{check['what']}; {thresholds(check)}"
        lines.append(f"{check['verdict'] or 'left out':8} {check['name']:8} {value:>8}  {said}")
    broken = "; broken: what it imagines is no better than the last real frame repeated" if audit["broken"] else ""
    return [*lines, f"verdict {verdict(audit)}{broken}"]
