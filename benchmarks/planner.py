"""What a planner's decision costs: with one prefill for all candidates, and with each of them read anew.

`python -m benchmarks.planner run=<dir>` plans in a run's world model, `preset=toy` or `preset=cpu` in a fresh one of
that size. One environment; both ways take turns on the same decisions, with the same random numbers.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tensordict import TensorDict

from agents.api import Memory, build
from mbrl.cli.compose import compose
from mbrl.cli.errors import guarded
from mbrl.cli.words import Word, choice, path, there, whole, words
from mbrl.io.checkpoint import read_newest
from mbrl.run.assemble import Configs, assemble_eval
from mbrl.rundir.folder import read_config
from worldmodel.dream.imagine import Dream
from worldmodel.seeds import Seeds

WARM = 2  # decisions before those that are timed: until a window is full, and all memory is had
KEYS = {
    "run": Word("the folder of a run", there("run", "the folder of a run").read),
    "preset": choice("toy", "cpu", default="cpu"),
    "agent": choice("cem", "mppi", default="cem"),
    "candidates": whole(64, least=8),
    "horizon": whole(8),
    "iterations": whole(3),
    "decisions": whole(10),
    "threads": whole(1),
    "json": path("a file"),
}


class Unshared(Dream):
    """A dream whose forks are not copied: each candidate's frames are tokenized and prefilled in a row of its own."""

    def encode(self, clip: TensorDict) -> TensorDict:
        """Keeps what was read."""
        self.clip = clip
        return super().encode(clip)

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """Reads it again, `copies` times."""
        return super().encode(self.clip.repeat_interleave(copies, 0))


@dataclass(frozen=True)
class Result:
    """Medians over decisions.

    Attributes:
        shared_ms: of a decision with one prefill.
        unshared_ms: of the same with a prefill for each candidate.
        ratio: unshared_ms / shared_ms.
        apart: the largest difference between an action of the one and of the other; 0, or what rounding may change.
    """

    agent: str
    model: str
    candidates: int
    horizon: int
    iterations: int
    threads: int
    device: str
    shared_ms: float
    unshared_ms: float
    ratio: float
    apart: float


def configured(options: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration, or the preset's, with this planner."""
    size = [f"agent.{key}={options[key]}" for key in ("candidates", "horizon", "iterations")]
    toy = ["experiment=toy"] * (options["run"] is None and options["preset"] == "toy")
    fresh: Any = OmegaConf.to_container(compose("train", [*toy, f"agent={options['agent']}", *size]))
    plain = fresh if options["run"] is None else read_config(options["run"])
    plain["agent"], plain["evaluation"]["rows"], plain["compute"]["threads"] = fresh["agent"], 1, options["threads"]
    return plain


def measure(plain: dict[str, Any], run: Path | None, decisions: int) -> tuple[list[list[float]], float]:
    """Seconds of each decision, shared and unshared, and how far apart their actions were."""
    configs = Configs.of(plain, trusted=False)
    eval_setup = assemble_eval(configs, None)
    if run is not None:
        eval_setup.model.load_state_dict(read_newest(run / "checkpoints").states["model"])
    env, seeds = eval_setup.evaluator.env, Seeds(configs.seed)
    spent: list[list[float]] = [[], []]
    memory: Memory = None
    apart, now = 0.0, env.reset()
    dreams = [Dream(eval_setup.model, seeds=seeds), Unshared(eval_setup.model, seeds=seeds)]
    runtime = {"env_spec": env.env_spec, "seeds": seeds, "device": configs.compute.device}
    planners = [build(configs.agent, {**runtime, "dream": dream}) for dream in dreams]
    for step in range(WARM + decisions):
        tried = []
        seen = now.select("pixels", "is_init", *eval_setup.model.spec.obs_keys)
        for seconds, planner in zip(spent, planners, strict=True):
            begun = time.perf_counter()
            tried.append(planner.act(seen, memory, "evaluate", step=step))
            seconds.append(time.perf_counter() - begun)  # the action is on the host: the device has finished
        (action_EA, after), (other_EA, _) = tried
        apart = max(apart, float((action_EA - other_EA).abs().max()))
        memory, now = after, env.step_and_maybe_reset(now.set("action", action_EA))[1]  # both go on from one plan
    env.close()
    return [seconds[WARM:] for seconds in spent], apart


def main(arguments: list[str]) -> int:
    """Measure, print a row and, with json=path, write it."""
    options = words("benchmarks.planner", arguments, KEYS)
    plain = configured(options)
    spent, apart = measure(plain, options["run"], options["decisions"])
    shared_ms, unshared_ms = (1e3 * statistics.median(seconds) for seconds in spent)
    size = {key: options[key] for key in ("agent", "candidates", "horizon", "iterations", "threads")}
    r = Result(
        **size,
        model=options["preset"] if options["run"] is None else options["run"].name,
        device=plain["compute"]["device"],
        shared_ms=shared_ms,
        unshared_ms=unshared_ms,
        ratio=unshared_ms / shared_ms,
        apart=apart,
    )
    print(
        f"{'model':12} {'agent':5} {'candidates':>10} {'horizon':>7} {'iterations':>10} {'shared ms':>10}"
        f" {'unshared ms':>11} {'ratio':>6} {'apart':>8}\n"
        f"{r.model:12} {r.agent:5} {r.candidates:10d} {r.horizon:7d} {r.iterations:10d} {r.shared_ms:10.1f}"
        f" {r.unshared_ms:11.1f} {r.ratio:6.2f} {r.apart:8.1e}"
    )
    if options["json"]:
        options["json"].write_text(json.dumps(asdict(r), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
