"""Does a run's world model know which actions are better? `python -m benchmarks.dreams run=<dir> [starts=24] [...]`.

From real moments many action sequences are tried in the simulator itself and in the model's imagination. Reward R2 over
all moments says little about it: states differ far more than the actions that one can take in them. What a policy
gradient needs is the correlation of true and imagined returns *within* a moment.
"""

# M moments, S sequences, H decisions, A action

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Agent
from mbrl.cli.errors import guarded
from mbrl.cli.words import there, whole, words
from mbrl.envs.make import make_envs
from mbrl.envs.rows import RowsEnv
from mbrl.io.checkpoint import read_newest
from mbrl.oracle import OracleModel, OracleModelConfig
from mbrl.replay.cut import KEPT, clips_of, episode_of, longest_horizon, real_frames
from mbrl.replay.episode import Episode
from mbrl.run.assemble import Configs, assemble_eval
from mbrl.rundir.folder import read_config
from worldmodel.api import WorldModel
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.seeds import Seeds

HOLD = 4  # decisions for which a drawn action is kept: held actions lead somewhere
NOISE = 0.3
KEYS = {"run": there("run", "the folder of a run"), "starts": whole(24), "sequences": whole(12), "episodes": whole(8)}


@dataclass(frozen=True)
class Judged:
    """How well returns are imagined.

    Attributes:
        reward_r2_first: R2 of the reward after one imagined frame, against the variance over all moments and sequences.
        reward_r2_last: the same after all of them.
        across: correlation of true and imagined mean returns of the moments.
        within: correlation of true and imagined returns of the sequences of a moment, averaged over moments.
        gain: what the sequence that looks best in imagination truly gains over the mean, as a share of what the best
            one gains; 1 for a oracle model, 0 for one that knows nothing.
    """

    reward_r2_first: float
    reward_r2_last: float
    across: float
    within: float
    gain: float


def judge(true_MSH: Tensor, imagined_MSH: Tensor) -> Judged:
    """Compares rewards of the same action sequences, f32 [M, S, H]; returns are their sums.

    >>> truth = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    >>> found = judge(truth, truth)
    >>> round(found.within, 3), round(found.gain, 3), found.reward_r2_last
    (1.0, 1.0, 1.0)
    """
    error_H = (true_MSH - imagined_MSH).square().mean((0, 1))
    r2_H = 1 - error_H / true_MSH.var(correction=0).clamp_min(1e-12)
    true_MS, imagined_MS = true_MSH.sum(2), imagined_MSH.sum(2)
    true_C, imagined_C = (x - x.mean(1, keepdim=True) for x in (true_MS, imagined_MS))
    # moments in which no sequence makes a difference say nothing
    tells_M = true_C.std(1) > 1e-3 * true_MS.std().clamp_min(1e-12)
    product_M = (true_C * imagined_C).mean(1)
    sizes_M = (true_C.square().mean(1) * imagined_C.square().mean(1)).sqrt().clamp_min(1e-12)
    chosen_M = true_C.gather(1, imagined_C.argmax(1, keepdim=True))[:, 0]
    return Judged(
        reward_r2_first=float(r2_H[0]),
        reward_r2_last=float(r2_H[-1]),
        across=float(torch.corrcoef(torch.stack([true_MS.mean(1), imagined_MS.mean(1)]))[0, 1]),
        within=float((product_M / sizes_M)[tells_M].mean()),
        gain=float(chosen_M.sum() / true_C.amax(1).sum()),
    )


def sequences(shape: tuple[int, int, int, int], generator: np.random.Generator) -> Tensor:
    """Random held and disturbed actions in [-1, 1], f32 [M, S, H, A]."""
    moments, count, horizon, actions = shape
    held = generator.uniform(-1, 1, (moments, count, -(-horizon // HOLD), actions)).repeat(HOLD, 2)[:, :, :horizon]
    return torch.from_numpy(np.clip(held + NOISE * generator.standard_normal(shape), -1, 1).astype(np.float32))


@torch.no_grad()
def compare(
    model: WorldModel, simulator: OracleModel, episodes: list[Episode], *, starts: int, count: int, seeds: Seeds
) -> Judged:
    """Tries `count` action sequences from `starts` random moments of `episodes` (which hold snapshots) in both."""
    spec, generator = model.spec, seeds.numpy("dreams", 0)
    horizon = min(longest_horizon(spec, episode) for episode in episodes)
    dreams = [Dream(one, seeds=seeds) for one in (simulator, model)]
    rewards: list[list[Tensor]] = [[], []]
    actions_MSHA = sequences((starts, count, horizon, spec.action_dim), generator)
    for moment in range(starts):
        episode = episodes[int(generator.integers(len(episodes)))]
        first = int(generator.integers(real_frames(spec) - spec.burn_in, len(episode) + 2 - spec.burn_in - horizon))
        newest = first + spec.burn_in - 1
        clip = clips_of(episode, spec, np.array([first]), length=spec.burn_in)
        known = clips_of(episode, simulator.spec, np.array([newest]), length=1)
        for dream, start, found in zip(dreams, (known, clip), rewards, strict=True):
            forks = dream.fork(dream.encode(start), count)
            policy = fixed_actions(actions_MSHA[moment])
            made = dream.rollout(policy, forks, 0, horizon, stream="dreams/frames", draw=moment)
            found.append(made.path["next", "reward"][..., 0].cpu())
    return judge(*(torch.stack(found) for found in rewards))


def played(agent: Agent, env: RowsEnv, obs_keys: tuple[str, ...], count: int) -> list[Episode]:
    """`count` greedy episodes of one row."""
    episodes: list[Episode] = []
    now, memory = env.reset(), None
    while len(episodes) < count:
        steps: list[TensorDict] = []
        while not steps or not bool(steps[-1]["next", "done"]):
            step = len(episodes) * env.env_spec.decisions + len(steps)  # each episode draws its own numbers
            action, memory = agent.act(now.select("pixels", "is_init", *obs_keys), memory, "evaluate", step=step)
            stepped, now = env.step_and_maybe_reset(now.set("action", action))
            steps.append(stepped[0].select(*KEPT, strict=False).clone())
        episodes.append(episode_of(steps, env=0, number=len(episodes)))
    return episodes


def main(args: list[str]) -> int:
    """Command line."""
    options = words("benchmarks.dreams", args, KEYS)
    folder: Path = options["run"]
    configs = Configs.of(read_config(folder), trusted=False)
    states = read_newest(folder / "checkpoints").states
    eval_setup = assemble_eval(configs, None)
    eval_setup.model.load_state_dict(states["model"])
    eval_setup.agent.load_state_dict(states["agent"])
    seeds, model = Seeds(configs.seed), eval_setup.model
    env = make_envs(configs.task, configs.protocol, seeds=seeds, stream="dreams", rows=1, snapshots=True)
    simulator = OracleModelConfig().build(task=configs.task, protocol=configs.protocol, env_spec=env.env_spec)
    size = {"starts": options["starts"], "count": options["sequences"]}
    for name, agent in (("random", eval_setup.prefiller), ("trained", eval_setup.agent)):
        episodes = played(agent, env, model.spec.obs_keys, options["episodes"])
        found = compare(model, simulator, episodes, seeds=seeds, **size)
        print(json.dumps({"policy": name, **{key: round(value, 3) for key, value in asdict(found).items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
