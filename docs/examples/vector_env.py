"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783) by hand, from imagined pixels alone.

mbrl train experiment=toy run_dir=runs/toy
python docs/examples/vector_env.py runs/toy
"""

import sys
from pathlib import Path

import torch
from torch import nn

from mbrl.run.restore import read_trained
from worldmodel.dream.vector import DreamVectorEnv

ROWS, HORIZON, GAMMA = 64, 8, 0.96


class Policy(nn.Module):
    def __init__(self, actions):
        super().__init__()
        convolutions = nn.Conv2d(3, 16, 4, 2), nn.SiLU(), nn.Conv2d(16, 32, 4, 2), nn.SiLU(), nn.Flatten()
        self.body = nn.Sequential(*convolutions, nn.LazyLinear(128), nn.SiLU(), nn.Linear(128, actions + 1))
        self.log_std = nn.Parameter(torch.full((actions,), -0.5))

    def forward(self, frames):  # u8 [B, H, W, 3] -> a distribution of actions, and what is to be expected
        found = self.body(frames.permute(0, 3, 1, 2).float() / 255 - 0.5)
        return torch.distributions.Normal(found[:, :-1].tanh(), self.log_std.exp()), found[:, -1]

    def act(self, td, memory, mode, *, step):  # in the real world
        return self(td["pixels"].permute(0, 2, 3, 1))[0].mean, memory


def main(run, updates=500, seed=0):
    trained = read_trained(Path(run))
    envs = DreamVectorEnv(trained.dream, trained.env_spec, trained.starts, num_envs=ROWS, horizon=HORIZON)
    torch.manual_seed(seed)
    policy = Policy(trained.env_spec.action_dim)
    policy(torch.from_numpy(envs.reset(seed=seed)[0]))
    optim = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(updates):
        frames, steps = envs.reset()[0], []  # all dreams end together
        for _ in range(HORIZON):
            distribution, value = policy(torch.from_numpy(frames))
            action = distribution.sample()
            frames, reward, _, _, infos = envs.step(action.numpy())
            log_prob, entropy = distribution.log_prob(action).sum(-1), distribution.entropy().sum(-1)
            steps.append((torch.from_numpy(reward), torch.from_numpy(infos["continue"]), value, log_prob, entropy))
        loss, worth = 0, policy(torch.from_numpy(frames))[1].detach()  # cut, not ended: the last frame has its value
        for reward, going, value, log_prob, entropy in reversed(steps):
            advantage = (worth := reward + GAMMA * going * worth) - value
            loss += (advantage**2 / 2 - advantage.detach() * log_prob - 1e-3 * entropy).mean()
        optim.zero_grad()
        (loss / HORIZON).backward()
        optim.step()
    return trained.random, trained.eval_setup.evaluator.score(policy, len(trained.random.returns))


if __name__ == "__main__":
    print("chance: {}\ntrained in dreams: {}".format(*main(sys.argv[1], *map(int, sys.argv[2:]))))
