"""How fast pre-training is: our data path and updates against a plain loop that opens an npz file for every clip.

Both train the same model on the same made-up videos, in turns, in one run:
`python -m benchmarks.pretrain [updates=8] [rounds=3] [frames=101] [json=out.json] [key=value of mbrl pretrain ...]`.
At the published 64x64 size: `recipe=oxe64_dynamics data=folder compute=gpu stage.dynamics.batch=16`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import peak_mib, seconds
from mbrl.cli.compose import compose
from mbrl.cli.errors import guarded
from mbrl.cli.words import path, whole, words
from mbrl.data.dataset import Card, write_card
from mbrl.pretrain.assemble import built_model, ready, source, training_source
from mbrl.pretrain.configs import Configs
from mbrl.replay.episode import Episode, write_episode
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.processes import Processes
from worldmodel.seeds import Seeds
from worldmodel.spec import Part

ACTION_DIM = 4
EPISODES = 24
KEYS = {"updates": whole(8), "rounds": whole(3), "frames": whole(101), "json": path("a file")}


def main(args: list[str]) -> int:
    """Measures each part of `stage=both` (or of the stage that is asked for) and prints a table."""
    mine = [word for word in args if word.partition("=")[0] in KEYS]
    own, rest = words("benchmarks.pretrain", mine, KEYS), [word for word in args if word not in mine]
    if not any(word.startswith(("stage=", "recipe=")) for word in rest):
        rest.insert(0, "stage=both")
    with tempfile.TemporaryDirectory() as folder:
        plain: Any = OmegaConf.to_container(compose("pretrain", [*rest, f"data.folders=[{folder}]"]))
        configs = Configs.of(plain, trusted=True)
        make_videos(Path(folder), side=configs.tokenizer.image, frames=own["frames"])
        ready(configs)
        rows = [measured(configs, part, Path(folder), own["updates"], own["rounds"]) for part in configs.stage.parts]
    print(f"{'part':<10} {'ours':>8} {'plain':>8} {'ratio':>6} {'draws alone':>12} {'plain':>8}   clips/s")
    for row in rows:
        print(
            f"{row['part']:<10} {row['ours']:8.1f} {row['plain']:8.1f} {row['ratio']:6.2f} {row['draws']:12.0f} "
            f"{row['plain_draws']:8.0f}   peak {row['peak_mib']:.0f} MiB"
        )
    if own["json"]:
        own["json"].write_text(json.dumps({"words": args, "rows": rows}, indent=1) + "\n")
    return 0


def make_videos(folder: Path, *, side: int, frames: int) -> None:
    """A data set of moving gradients with a little noise, about as hard to compress as a rendered scene."""
    random = np.random.default_rng(0)
    ramp = np.arange(side)
    for number in range(EPISODES):
        shift = random.integers(0, 255) + 2 * np.arange(frames)[:, None, None]
        plane = (ramp[None, :, None] + ramp[None, None, :] + shift) % 256
        video = np.repeat(plane[:, None], 3, 1) + random.integers(0, 4, (frames, 3, side, side))
        decisions = frames - 1
        ended = np.arange(decisions) == decisions - 1
        nothing = np.zeros((frames, 0), np.float32)
        episode = Episode(
            pixels=np.clip(video, 0, 255).astype(np.uint8),
            proprio=nothing,
            state=nothing,
            snapshot=nothing.astype(np.float64),
            action=random.uniform(-1, 1, (decisions, ACTION_DIM)).astype(np.float32),
            reward=random.uniform(0, 1, decisions).astype(np.float32),
            terminated=np.zeros(decisions, np.bool_),
            truncated=ended,
            success=np.zeros(decisions, np.bool_),
            env=0,
            number=number,
        )
        write_episode(folder, episode)
    card = Card(
        name="made-up",
        source="benchmarks.pretrain",
        tasks=(),
        protocol=None,
        action_dim=ACTION_DIM,
        rewards=True,
        image=(side, side),
        rate=1.0,
        policies=(),
    )
    write_card(folder, card)


def measured(configs: Configs, part: Part, folder: Path, updates: int, rounds: int) -> dict[str, Any]:
    """Clips per second of both loops in turns: medians over rounds, the first of which warms up."""
    device = torch.device(configs.compute.device)
    config = configs.stage.parts[part]
    seeds = Seeds(configs.seed)
    ours, plain_model = (built_model(configs, seeds).to(device) for _ in range(2))
    drawn = training_source(configs, ours.spec, seeds, part, None)
    bare = source(configs, ours.spec, seeds, part, "train", None)
    processes = Processes(rank=0, world=1, device=device)
    updater = configs.stage.build(
        model=ours, seeds=seeds, processes=processes, sharding="ddp", sources=dict.fromkeys(configs.stage.parts, drawn)
    )
    batches = plain_batches(folder, plain_model, batch=config.batch, length=config.length)
    optimizer = torch.optim.AdamW(plain_model.parameters_of(part).values(), lr=config.optim.lr)
    number = 0
    speeds: dict[str, list[float]] = {"ours": [], "plain": [], "draws": [], "plain_draws": []}

    def our_update() -> None:
        nonlocal number
        updater.update(part, number)
        number += 1

    def plain_update() -> None:
        clip = next(batches).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=configs.stage.precision == "bfloat16"):
            loss = plain_model.losses(clip, part, step=1000, generator=seeds.torch("plain", number))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain_model.parameters_of(part).values(), config.optim.max_grad_norm)
        optimizer.step()

    def our_draw() -> None:
        nonlocal number
        bare.clips(config.batch, config.length, stream="alone", draw=number)
        number += 1

    work = {"ours": our_update, "plain": plain_update, "draws": our_draw, "plain_draws": lambda: next(batches)}
    for _ in range(rounds + 1):
        for name, once in work.items():
            spent = sum(seconds(once, device) for _ in range(updates))
            speeds[name].append(config.batch * updates / spent)
    found: dict[str, Any] = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    return {"part": part, **found, "ratio": found["ours"] / found["plain"], "peak_mib": peak_mib(device)}


class NpzClips(Dataset[dict[str, torch.Tensor]]):
    """What one writes first: every item opens a file, takes a random window and makes floats of nothing yet."""

    def __init__(self, folder: Path, model: IVideoGPT, length: int) -> None:
        self.files = sorted(folder.glob("ep-*.npz"))
        self.spec, self.length = model.spec, length
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        with np.load(self.files[index % len(self.files)], allow_pickle=False) as episode:
            before = self.spec.context_frames if self.spec.context == "sliding" else 1
            start = int(self.random.integers(before, len(episode["action"]) + 2 - self.length))
            frames, pixels = slice(start, start + self.length), episode["pixels"]
            steps = slice(start - 1, start - 1 + self.length)
            context = (
                pixels[start - before : start] if self.spec.context == "sliding" else pixels[: self.spec.context_frames]
            )
            arrays = {
                "context": context,
                "pixels": pixels[frames],
                "action": episode["action"][steps, : self.spec.action_dim],
                "reward": episode["reward"][steps],
                "continue": 1 - episode["terminated"][steps].astype(np.float32),
                "reward_mask": np.ones(self.length, np.bool_),
            }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def plain_batches(folder: Path, model: IVideoGPT, *, batch: int, length: int) -> Iterator[TensorDict]:
    """Endless batches of a DataLoader in this process."""
    for items in DataLoader(NpzClips(folder, model, length), batch_size=batch):
        yield TensorDict(items, batch_size=[batch])


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:]), debug=False))
