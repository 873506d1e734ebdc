"""Every world model preset against the WorldModel protocol, on the toy world: a new YAML is tested at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from agents.api import build
from mbrl.cli.compose import compose, packaged_configs
from mbrl.cli.train import fitted_to_model
from mbrl.envs.make import make_envs
from mbrl.replay.cut import clips_of, episode_of
from mbrl.run.assemble import Configs
from worldmodel.api import Tokenizing
from worldmodel.seeds import Seeds

OWN = Path(__file__).parents[1] / "residents" / "configs"
MODELS = sorted(path.stem for folder in (packaged_configs(), OWN) for path in (folder / "worldmodel").glob("*.yaml"))
B, T = 2, 6
NO_NETWORK = ("losses", "lpips")  # a judge of pictures that is not there on a bare machine


class Rig:
    """A model of one preset and a training clip for it."""

    def __init__(self, name: str) -> None:
        words = ["experiment=debug", f"worldmodel={name}", "agent=random", f"--config-dir={OWN}"]
        plain: Any = fitted_to_model(OmegaConf.to_container(compose("train", words)), words, trusted=True)
        if NO_NETWORK[0] in plain["worldmodel"]:
            plain["worldmodel"][NO_NETWORK[0]][NO_NETWORK[1]] = 0.0
        plain["fit"]["tokenizer"]["length"] = plain["fit"]["dynamics"]["length"] = 8
        self.configs = Configs.of(plain, trusted=True)
        self.config = self.configs.worldmodel
        snapshots = "snapshot" in self.config.obs_keys
        self.envs = make_envs(
            self.configs.task, self.configs.protocol, seeds=Seeds(0), stream="env", rows=1, snapshots=snapshots
        )
        self.model, self.spec = self.made(0), self.made(0).spec

    def made(self, seed: int) -> Any:
        names = ("tokenizer", "transformer", "task", "protocol")
        runtime = {name: getattr(self.configs, name) for name in names}
        return build(self.config, {**runtime, "env_spec": self.envs.env_spec, "seeds": Seeds(seed)})

    def clip(self) -> TensorDict:
        """`B` clips of `T` frames from an episode of random actions."""
        now, steps = self.envs.reset(), []
        for decision in range(self.configs.protocol.decisions):
            action = torch.rand(1, 2, generator=Seeds(0).torch("actions", decision)) * 2 - 1
            stepped, now = self.envs.step_and_maybe_reset(now.set("action", action))
            steps.append(stepped[0].clone())
        first = torch.tensor([self.spec.context_frames, 7]).numpy()
        return clips_of(episode_of(steps, env=0, number=0), self.spec, first, length=T)


@pytest.fixture(params=MODELS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(request.param)


def noise(draw: int) -> torch.Generator:
    return Seeds(3).torch("noise", draw)


def test_what_a_model_says_of_itself_is_so(rig: Rig) -> None:
    model, spec = rig.model, rig.spec
    assert (spec.obs_keys, spec.parts) == (rig.config.obs_keys, rig.config.parts)
    assert isinstance(model, Tokenizing) == (spec.codes is not None)
    named = [model.parameters_of(part) for part in spec.parts]
    assert all(named), "a part has parameters"
    assert sum(map(len, named)) == len({id(p) for part in named for p in part.values()}), "no two parts share any"
    if not spec.dreams:
        assert not spec.parts and not model.state_dict()
        for asked in (model.encode, model.imagine, model.observe, model.fork, model.decode, model.losses):
            with pytest.raises(TypeError, match="worldmodel=none"):
                asked(rig.clip())


def test_a_dream_has_the_promised_shapes_and_is_as_its_generator_says(rig: Rig) -> None:
    if not rig.spec.dreams:
        return
    model, spec, clip = rig.model, rig.spec, rig.clip()
    start = model.encode(given(clip, spec.burn_in))
    assert start["latent"].shape == (B, spec.latent_dim) and start["latent"].dtype == torch.float32
    ends = {}
    for name, generators in {
        "likely": (None, None),
        "drawn": (noise(0), noise(1)),
        "anew": (noise(0), noise(1)),
    }.items():
        state = start
        for step, generator in enumerate(generators):
            state = model.imagine(state, clip["action"][:, step], generator)
        for one in (start, state, model.fork(state, 2)):
            assert {key: (one[key].shape[1:], one[key].dtype) for key in spec.state} == dict(spec.state)
        assert model.depth(state) == spec.burn_in + 2 and len(model.fork(state, 2)) == 2 * B
        assert bool(((state["continue"] >= 0) & (state["continue"] <= 1)).all())
        frame = model.decode(state)
        assert frame.shape == (B, 3, spec.image, spec.image) and frame.dtype == torch.uint8
        ends[name] = state["latent"]
    assert torch.equal(ends["drawn"], ends["anew"])
    assert not torch.equal(ends["likely"], start["latent"]), "an imagined frame changes what is known"


def given(clip: TensorDict, frames: int) -> TensorDict:
    """The clip's first frames."""
    kept = {key: value if key == "context" else value[:, :frames] for key, value in clip.items()}
    return TensorDict(kept, batch_size=clip.batch_size)


def test_each_part_learns_from_its_losses_and_the_versions_move(rig: Rig) -> None:
    model, clip = rig.model, rig.clip()
    for part in rig.spec.parts:
        model.prepare(part)
        losses = model.losses(clip, part, step=500, generator=noise(0))
        assert losses["loss"].ndim == 0 and not any(v.requires_grad for name, v in losses.items() if name != "loss")
        losses["loss"].backward()
        moved = {name for name, p in model.parameters_of(part).items() if p.grad is not None and bool(p.grad.any())}
        assert moved, part
        others = [p for other in rig.spec.parts if other != part for p in model.parameters_of(other).values()]
        assert all(p.grad is None for p in others), f"{part} teaches itself only"
        model.zero_grad(set_to_none=True)
        before, codes_before = model.version, getattr(model, "tokenizer_version", None)
        model.updated(part)
        assert model.version == before + 1
        if codes_before is not None:
            assert model.tokenizer_version == codes_before + (part == "tokenizer")


def test_a_loaded_model_is_the_saved_one(rig: Rig) -> None:
    saved = {name: tensor.clone() for name, tensor in rig.model.state_dict().items()}
    other = rig.made(1)
    other.load_state_dict(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.state_dict().items())
    if rig.spec.dreams:
        clip = given(rig.clip(), rig.spec.burn_in)
        assert torch.equal(other.encode(clip)["latent"], rig.model.encode(clip)["latent"])
    if saved:
        missing = dict(saved)
        missing.popitem()
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict(missing)


def test_codes_are_those_that_the_spec_promises_and_stand_for_their_frames(rig: Rig) -> None:
    if not isinstance(rig.model, Tokenizing):
        return
    model, spec, clip, codes = rig.model, rig.spec, rig.clip(), rig.spec.codes
    context_BN, codes_BTK = model.tokenize(clip["context"], clip["pixels"])
    assert context_BN.shape == (B, spec.context_frames * codes.context) and codes_BTK.shape == (B, T, codes.future)
    for ids, vocab in ((context_BN, codes.vocab_context), (codes_BTK, codes.vocab_future)):
        assert ids.dtype == torch.int64 and int(ids.min()) >= 0 and int(ids.max()) < vocab
    context_BC, frames_BFE = model.code_features(context_BN, codes_BTK)
    assert context_BC.ndim == 2 and frames_BFE.shape[:2] == (B, T)
    read: dict[str, Tensor] = {key: value for key, value in clip.items() if key not in ("context", "pixels")}
    coded = TensorDict({**read, "context_codes": context_BN, "codes": codes_BTK}, batch_size=[B])
    assert torch.equal(model.encode(coded)["latent"], model.encode(clip)["latent"])
