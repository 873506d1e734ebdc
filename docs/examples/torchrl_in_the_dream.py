"""PPO (Schulman et al. 2017, arXiv:1707.06347), all of it TorchRL's, inside the world model of a finished run.

mbrl train experiment=toy run_dir=runs/toy
python docs/examples/torchrl_in_the_dream.py runs/toy
"""

import sys
from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from agents.memory import LatentFilter
from mbrl.run.restore import read_trained
from worldmodel.dream.env import DreamEnv

ROWS, HORIZON, EPOCHS, GAMMA = 64, 8, 4, 0.96


class Player:  # the policy in the real world: it sees the latent of the newest real frames, where a dream would begin
    def __init__(self, actor, dream):
        self.actor, self.filter = actor, LatentFilter(dream)

    def act(self, td, memory, mode, *, step):
        memory = self.filter.see(td, memory)
        latent = self.filter.latent(memory, device="cpu")
        action = self.actor.get_dist(TensorDict({"latent": latent}, td.batch_size)).deterministic_sample
        return action, memory.update({"action": action})


def main(run, batches=150, seed=0):
    trained = read_trained(Path(run))
    env = DreamEnv(trained.dream, trained.env_spec, horizon=HORIZON, starts=trained.starts, rows=ROWS)
    torch.manual_seed(seed)
    env.set_seed(seed)
    latent, action = env.observation_spec["latent"].shape[-1], env.action_spec.shape[-1]
    net = MLP(latent, 2 * action, num_cells=[128, 128]).append(NormalParamExtractor())
    head = TensorDictModule(net, ["latent"], ["loc", "scale"])
    actor = ProbabilisticActor(head, ["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
    critic = ValueOperator(MLP(latent, 1, num_cells=[128, 128]), in_keys=["latent"])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=1e-3)
    advantages = GAE(gamma=GAMMA, lmbda=0.95, value_network=critic)
    optim, frames = torch.optim.Adam(loss.parameters(), lr=1e-3), ROWS * HORIZON
    for data in Collector(env, actor, frames_per_batch=frames, total_frames=batches * frames):
        steps = advantages(data.exclude("dream", ("next", "dream"))).reshape(-1)
        for _ in range(EPOCHS):
            for part in steps[torch.randperm(len(steps))].split(128):
                optim.zero_grad()
                loss(part).select("loss_objective", "loss_critic", "loss_entropy").sum(reduce=True).backward()
                optim.step()
    return trained.random, trained.eval_setup.evaluator.score(Player(actor, trained.dream), len(trained.random.returns))


if __name__ == "__main__":
    print("chance: {}\ntrained in dreams: {}".format(*main(sys.argv[1], *map(int, sys.argv[2:]))))
