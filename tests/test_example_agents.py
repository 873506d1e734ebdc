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
from torch import Tensor

from mbrl.cli.main import main
from mbrl.io.checkpoint import read_newest
from mbrl.replay.cut import transitions_of
from tests.children import moments, run_child
from tests.data.numbered import numbered
from tests.run.test_resume import assert_same_run
from tests.worldmodel.test_ivideogpt import build
from worldmodel.dream.imagine import Dream
from worldmodel.optim import OptimConfig
from worldmodel.rollout.kv_cache import KVCache
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
FEW = ["agent.horizon=3", "agent.candidates=6", "agent.elites=2", "agent.iterations=2"]
GYM = ["task=gymnasium", "task.name=Pendulum-v1", "protocol=gymnasium", "protocol.image=32"]
RUNS = {
    "cem": ["agent=cem", *FEW],
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
    assert bool(state) is (words[0] != "agent=cem")
    assert not any(name.startswith("nets.") and tensor.isnan().any() for name, tensor in state.items())


def test_a_planner_without_a_world_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "experiment=debug", "agent=cem", "worldmodel=none", f"run_dir={tmp_path / 'run'}", OWN]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "agent needs a world model to dream in (got CEMConfig with worldmodel=none)" in line


def test_the_planner_beats_chance_in_the_world_itself(tmp_path: Path, train: Train) -> None:
    folder = tmp_path / "run"
    words = ["worldmodel=oracle", "agent=cem", "agent.horizon=5", "agent.candidates=16", "agent.elites=4"]
    words += ["agent.iterations=2", "schedule.prefill=100", "schedule.total=150", "evaluation.episodes=4"]
    assert train(folder, *words, "evaluation.rows=4", "schedule.evaluate.every=0", OWN) == 0
    result = json.loads((folder / "result.json").read_text())
    chance, planned = (result[who]["returns"] for who in ("random", "final"))
    assert min(planned) > max(chance) and sum(planned) > 1.5 * sum(chance)


def test_a_decision_reads_the_world_once_however_many_plans_it_tries(
    example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dream, counts = Dream(build(), seeds=Seeds(1)), {"encoded": 0, "positions": 0}
    encode, extend = dream.model.tokenizer.encode_context, KVCache.extend

    def encoding(context: Tensor) -> Any:
        counts["encoded"] += len(context)
        return encode(context)

    def reading(cache: KVCache, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> Any:
        counts["positions"] += (layer == 0) * len(k_BHTC) * k_BHTC.shape[2]
        return extend(cache, layer, k_BHTC, v_BHTC)

    monkeypatch.setattr(dream.model.tokenizer, "encode_context", encoding)
    monkeypatch.setattr(KVCache, "extend", reading)
    size = {"horizon": 3, "candidates": 8, "elites": 2, "iterations": 2}
    cem = (
        example("cem")
        .CEMConfig(**size, std=1.0, gamma=0.9)
        .build(env_spec=SimpleNamespace(discrete=False), dream=dream, seeds=Seeds(2), device="cpu")
    )
    side, memory, layout = dream.spec.image, None, dream.model.layout
    for step in range(3):
        pixels = torch.randint(256, (1, 3, side, side), dtype=torch.uint8)
        td = TensorDict({"pixels": pixels, "is_init": torch.tensor([[step == 0]])}, batch_size=[1])
        before = dict(counts)
        action_EA, memory = cem.act(td, memory, "evaluate", step=step)
        assert counts["encoded"] - before["encoded"] == 1
        prefill, imagined = layout.length(int(memory["filled"][0])), 2 * 8 * 3 * layout.stride
        assert counts["positions"] - before["positions"] == prefill + imagined
        assert action_EA.shape == (1, dream.spec.action_dim) and torch.equal(action_EA, memory["plan"][:, 0])


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


def seen(first: bool, rows: int, side: int) -> TensorDict:
    pixels = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    return TensorDict({"pixels": pixels, "is_init": torch.full((rows, 1), first)}, batch_size=[rows])


def test_the_planner_finds_the_best_action_does_not_count_behind_an_end_and_starts_warm(
    example: Callable[[str], Any],
) -> None:
    config = example("cem").CEMConfig(horizon=2, candidates=64, elites=8, iterations=5, std=1.0, gamma=0.9)
    cem = config.build(env_spec=SimpleNamespace(discrete=False), dream=CountingDown(), seeds=Seeds(0), device="cpu")
    td = seen(True, 3, CountingDown.spec.image)
    action_EA, memory = cem.act(td, None, "evaluate", step=0)
    torch.testing.assert_close(action_EA[:, 0], torch.full((3,), 0.5), atol=0.02, rtol=0)
    means = []
    refined = cem.refined
    cem.refined = lambda mean, *rest: means.append(mean.clone()) or refined(mean, *rest)
    td["is_init"][:] = torch.tensor([[True], [False], [False]])
    _, after = cem.act(td, memory, "evaluate", step=1)
    warm = {int(rows): mean for mean, rows in zip(torch.cat(means), torch.tensor([0, 1, 2]), strict=True)}
    assert not warm[0].any(), "an episode begins without a plan"
    for row in (1, 2):
        assert torch.equal(warm[row], torch.stack([memory["plan"][row, 1], torch.zeros_like(action_EA[0])]))
    assert after["plan"].shape == memory["plan"].shape


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
