"""What a run shows a person: an evaluation episode, and the model's dream beside the truth."""

from __future__ import annotations

from pathlib import Path

import torch

from mbrl.io.video import Videos, difference, strip
from mbrl.measure.open_loop import OpenLoop
from mbrl.run.evaluate import Score

FPS = 10.0


def draw_episode(videos: Videos, env_step: int, score: Score) -> Path:
    """The first evaluation episode with its rewards."""
    frames, rewards = torch.from_numpy(score.first.pixels.copy()), torch.from_numpy(score.first.reward.copy())
    reward = torch.cat([torch.zeros(1), rewards])
    return videos.film("eval", env_step, strip({"episode": frames}, rewards={"reward": reward}), fps=FPS)


def draw_open_loop(videos: Videos, env_step: int, clip: OpenLoop) -> Path:
    """Truth, imagination and their difference, with true and predicted reward."""
    clips = {"truth": clip.truth, "imagined": clip.imagined, "difference": difference(clip.truth, clip.imagined)}
    rewards = {"true reward": clip.reward.flatten(), "imagined reward": clip.imagined_reward.flatten()}
    return videos.film("openloop", env_step, strip(clips, rewards=rewards), fps=FPS)
