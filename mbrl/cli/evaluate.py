"""Score a trained agent, or any policy of yours, on the evaluation episodes.

usage: mbrl eval run=DIR [episodes=20] [device=cpu] [to=PATH.json] [--config-dir DIR]
       mbrl eval policy=package.module.Name [task.name=...] [protocol=...] [episodes=20] [seeds=0,1] [to=DIR]

  mbrl eval run=runs/mine episodes=50            the weights that the run's own final score is of
  mbrl eval run=runs/mine device=cpu             a run of a GPU machine, scored without one
  mbrl eval run=runs/mine --config-dir configs.d a run with classes of your own, which files in configs.d name

Of the newest checkpoint the best weights so far are scored, or with evaluation.weights=last the last ones. The episodes
have the same starts and goals as those of the run's first (random) and last evaluation: episode by episode the
first ones here are the ones there. Nothing was chosen or trained on them. With more episodes new ones follow.

Three rules are told: success at any decision, at the last one, and the decision of the first success (success_step in
the JSON, null in an episode without). Which of the first two counts, the protocol says.

Writes evaluation.json (the same schema as the run's own result.json) into the run folder, or to=, and changes nothing
else.

  mbrl eval policy=mine.Greedy task.name=plate-slide-v3 protocol=ivideogpt episodes=50 seeds=0,1,2 to=results/greedy

`Name` is a class, or a function, that makes a policy: a callable of a frame (u8 [H, W, 3]) and proprioception (f32 [Q])
that gives an action [A] in [-1, 1]; if it has `reset()` it is told when an episode begins. It gets the episodes that a
run of that seed is scored on. task and protocol are given as for mbrl train. to= takes a result.json for each seed,
which mbrl results from= reads like those of runs; the folder's name is the method.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import Word, place, there, whole, words
from mbrl.program import program

if TYPE_CHECKING:
    from mbrl.rundir.result import Episodes

KEYS = {
    "run": there("run", f"the folder of a run, as `{program()} train` printed it"),
    "episodes": whole(20),
    "device": Word("cpu, cuda or cuda:<n>"),
    "to": place("to", "a file", file=True),
}


def check_writable(path: Path) -> None:
    """Before any episode is played. Raises: BadInput where nothing can be written."""
    folder = next(above for above in path.absolute().parents if above.exists())
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"{path} cannot be written; give to=PATH.json, a file in a folder of yours")


def run(args: list[str]) -> int:
    """Prints the score and writes evaluation.json into the run folder, or elsewhere."""
    from mbrl.cli.compose import own_folder, take_config_dir

    typed, own = take_config_dir(args)
    if any(word.startswith("policy=") for word in typed):
        from mbrl.cli.evaluate_policy import run_policy

        return run_policy(typed, own and own_folder(own))
    asked = words("mbrl eval", typed, KEYS)
    folder: Path = asked["run"].resolve()
    own = own and own_folder(own)

    from mbrl.memory import asking, sizes_in
    from mbrl.run.restore import configs_of, read_trained
    from mbrl.run.run import parameter_counts
    from mbrl.rundir.folder import read_config, run_info
    from mbrl.rundir.result import EVALUATION, result_of
    from mbrl.rundir.schema import write_json

    path: Path = asked["to"] or folder / EVALUATION
    check_writable(path)
    configs = configs_of(folder, own=own, device=asked["device"])
    trained = read_trained(folder, configs)
    with asking(*sizes_in(configs.evaluation, "evaluation.")):
        score = trained.eval_setup.evaluator.score(trained.eval_setup.agent, asked["episodes"])
    print(f"{configs.task.name}, protocol {configs.protocol.name}, weights of env step {trained.env_step}: {score}")
    print_rules(score, configs.protocol.success)
    plain = read_config(folder)
    plain["compute"]["device"] = configs.compute.device
    result = result_of(
        run_info(plain, argv=args),
        parameters=parameter_counts(trained.eval_setup.model),
        env_steps=trained.env_steps,
        weights=configs.evaluation.weights,
        weights_step=trained.env_step,
        final=score,
        random=trained.random,
        wall_s=trained.wall_s,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"written to {path}")
    return DONE


def print_rules(score: Episodes, rule: str) -> None:
    """By which rule success counts here, what it is by the other one, and when it came first."""
    metrics = score.metrics()
    if score.success_step is None:
        return
    print(
        f"success at {'any' if rule == 'any' else 'the last'} decision, which counts here, "
        f"{metrics['success']:.2f}; at the last decision {metrics['success_last']:.2f}"
    )
    by_episode = " ".join("-" if step is None else str(step) for step in score.success_step)
    mean = f"; {metrics['success_step']:.1f} in the mean of the solved ones" if "success_step" in metrics else ""
    print(f"first solved decision by episode: {by_episode}{mean}")
