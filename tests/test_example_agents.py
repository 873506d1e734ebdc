"""The examples of agents as their readers would run them: trained, killed, gone on with, scored; and what they say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mbrl.io.checkpoint import read_newest
from mbrl.replay.cut import transitions_of
from tests.children import moments, run_child
from tests.data.numbered import numbered
from tests.run.test_resume import assert_same_run
from tests.worldmodel.test_ivideogpt import build
from worldmodel.dream.imagine import Dream
from worldmodel.optim import OptimConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, ModelSpec, Rollout

Train = Callable[..., int]

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
OWN = f"--config-dir={EXAMPLES / 'configs'}"
SHORT = [
    "schedule.total=150",
    "evaluation.episodes=2",
    "evaluation.interim=1",
    "evaluation.rows=2",
    "protocol.decisions=13",
]
GYM = ["task=gymnasium", "task.name=Pendulum-v1", "protocol=gymnasium", "protocol.image=32"]
RUNS = {
    # the cadences of what is not there may lie anywhere
    "td3": ["agent=td3", "worldmodel=none", "agent.batch_size=8", "schedule.prefill=120", "schedule.learn.start=120"],
    "sac": ["agent=sac_in_the_dream", "agent.batch_size=6", "agent.horizon=4"],
    "gym": [*GYM, "agent=td3", "worldmodel=none", "agent.batch_size=8"],
}
OPTIM = OptimConfig(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_it_is_trained_killed_gone_on_with_and_scored(words: list[str], tmp_path: Path, train: Train) -> None:
    whole, folder = tmp_path / "uninterrupted", tmp_path / "killed"
    assert train(whole, *SHORT, *words, OWN) == 0
    for come in moments(folder, 2, seed=3, lines=8):
        train(folder, *SHORT, *words, OWN, once=come)
    assert train(folder, *SHORT, *words, OWN) == 0
    assert_same_run(whole, folder)
    assert run_child(["eval", f"run={whole}", "episodes=2", OWN]) == 0
    assert len(json.loads((whole / "evaluation.json").read_text())["final"]["returns"]) == 2
    state = read_newest(whole / "checkpoints").states["agent"]
    assert state and not any(name.startswith("nets.") and tensor.isnan().any() for name, tensor in state.items())


class CountingDown:
    """A dream whose reward is closeness of the first action to 0.5, and which ends after the first step."""

    spec = ModelSpec(
        image=8, context_frames=1, action_dim=2, max_frames=9, context="first_frame", burn_in=1, latent={"shade": 1}
    )

    def encode(self, clip: TensorDict) -> TensorDict:
        return TensorDict({"latent": clip["pixels"][:, -1, 0, 0, :1].float()}, batch_size=clip.batch_size)

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        return state.repeat_interleave(copies, 0)

    def rollout(self, policy: Any, state: TensorDict, memory: Any, horizon: int, **named: Any) -> Rollout:
        steps = []
        for step in range(horizon):
            action, memory = policy(state, memory)
            reward = -(action[:, :1] - 0.5).abs() if step == 0 else 9 * action[:, :1]  # behind the end: a trap
            after = {"latent": state["latent"], "reward": reward, "continue": torch.full_like(reward, float(step > 0))}
            steps.append(TensorDict({**state, "action": action, "next": after}, batch_size=state.batch_size))
        return Rollout(torch.stack(steps, 1), state, memory)


def test_td3_acts_on_the_frames_that_it_learns_from(example: Callable[[str], Any]) -> None:
    values = {"stack": 3, "n_step": 2, "batch_size": 4, "subset": "all", "units": 8, "gamma": 0.9, "tau": 0.1}
    values |= {"noise": 0.3, "smoothing": 0.2, "smoothing_clip": 0.3, "policy_delay": 2}
    env_spec = EnvSpec(image=8, action_dim=3, discrete=False, action_repeat=1, decisions=5, terminates=False)
    td3 = example("td3").TD3Config(**values, optim=OPTIM).build(env_spec=env_spec, seeds=Seeds(0), device="cpu")
    memory = None
    for episode in (numbered(1, 5), numbered(2, 4)):  # the second begins where the first has ended
        learned = transitions_of([episode] * len(episode), np.arange(len(episode)), n_step=2, stack=3, keys=("pixels",))
        for step in range(len(episode)):
            pixels = torch.tensor(episode.pixels[step : step + 1])
            td = TensorDict({"pixels": pixels, "is_init": torch.tensor([[step == 0]])}, batch_size=[1])
            action_EA, memory = td3.act(td, memory, "explore", step=step)
            assert torch.equal(memory["frames"], learned["pixels"][step : step + 1])
            assert action_EA.abs().max() <= 1
    before = {name: tensor.clone() for name, tensor in td3.state_dict().items()}
    td3.learn(SimpleNamespace(transitions=lambda n, **how: learned), 1)
    moved = {".".join(name.split(".")[:2]) for name, x in td3.state_dict().items() if (x != before[name]).any()}
    assert {"nets.encoder", "nets.critics"} <= moved and "nets.actor" not in moved, "the policy is delayed"
    td3.learn(SimpleNamespace(transitions=lambda n, **how: learned), 2)
    assert any((x != before[name]).any() for name, x in td3.state_dict().items() if name.startswith("nets.actor"))
    assert any((x != before[name]).any() for name, x in td3.state_dict().items() if name.startswith("target."))


def test_sac_learns_of_what_comes_before_an_end_and_holds_nothing_of_the_model(example: Callable[[str], Any]) -> None:
    module, dream = example("sac_in_the_dream"), CountingDown()
    values = {"batch_size": 4, "horizon": 3, "units": 8, "gamma": 0.9, "tau": 0.1, "optim": OPTIM}
    sac = module.DreamSACConfig(**values).build(
        env_spec=SimpleNamespace(discrete=False), dream=dream, seeds=Seeds(0), device="cpu"
    )
    going = torch.ones(4, 2)
    going[0, -1] = 0  # of a real episode that has ended
    clip = TensorDict({"pixels": torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8), "continue": going}, batch_size=[4])
    batch = sac._imagined(SimpleNamespace(clips=lambda *args, **how: clip), 0)
    assert len(batch) == 3 and batch["next", "terminated"].all() and batch["next", "done"].all()
    assert sac.learn(SimpleNamespace(clips=lambda *args, **how: clip), 0).keys() >= {"agent/loss_qvalue", "agent/alpha"}
    model = build()
    real = module.DreamSACConfig(**values).build(
        env_spec=SimpleNamespace(discrete=False), dream=Dream(model, seeds=Seeds(0)), seeds=Seeds(0), device="cpu"
    )
    ours = {id(tensor) for tensor in (*real.loss.parameters(), *real.loss.buffers())}
    assert not ours & {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
