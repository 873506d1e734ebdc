"""The assembled world model: what an agent sees is the same however a state was reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from mbrl.cli.compose import compose
from mbrl.rundir.build import make
from worldmodel.dream.imagine import Dream
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

B, A, Q, SIDE = 3, 2, 5, 32


def build(*overrides: str, terminates: bool = False) -> IVideoGPT:
    plain: Any = OmegaConf.to_container(compose("train", ["experiment=toy", *overrides]))
    parts = {name: make(plain[name], name, trusted=True) for name in ("worldmodel", "tokenizer", "transformer")}
    model: IVideoGPT = parts["worldmodel"].build(
        tokenizer=parts["tokenizer"],
        transformer=parts["transformer"],
        env_spec=EnvSpec(
            image=SIDE,
            action_dim=A,
            discrete=False,
            action_repeat=1,
            decisions=9,
            terminates=terminates,
            proprio_dim=Q,
        ),
        seeds=Seeds(3),
    )
    with torch.no_grad():  # zero-initialised heads would make every test of them vacuous
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("head", "action_linear", "proprio_linear", "continue")):
                parameter.add_(torch.randn(parameter.shape, generator=Seeds(5).torch(name)) * 0.3)
    return model


SLIDING = ("worldmodel.context=sliding", "worldmodel.burn_in=1")


@pytest.fixture(
    scope="module",
    params=[
        (),
        SLIDING,
        (*SLIDING, "tokenizer.context=2"),
        ("worldmodel.proprio=true",),
        ("worldmodel.embedding=table", "worldmodel.heads.action=slot"),
        ("worldmodel.decoding.kind=parallel",),
        ("worldmodel.decoding={kind:masked,passes:3}", *SLIDING, "worldmodel.proprio=true"),
    ],
    ids=["first_frame", "sliding", "two", "proprio", "table", "parallel", "masked"],
)
def model(request: pytest.FixtureRequest) -> IVideoGPT:
    return build(*request.param)


def clip(model: IVideoGPT, frames: int) -> TensorDict:
    generator = torch.Generator().manual_seed(1)

    def u8(n: int) -> Tensor:
        return torch.randint(256, (B, n, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)

    return TensorDict(
        {
            "context": u8(model.spec.context_frames),
            "pixels": u8(frames),
            "action": torch.rand(B, frames, A, generator=generator) * 2 - 1,
            "proprio": torch.randn(B, frames, Q, generator=generator),
            "reward": torch.rand(B, frames, generator=generator),
            "continue": torch.ones(B, frames),
            "reward_mask": torch.ones(B, frames, dtype=torch.bool),
        },
        batch_size=[B],
    )


def cut(whole: TensorDict, frames: int) -> TensorDict:
    kept = {key: whole[key][:, :frames] for key in ("pixels", "action", "proprio")}
    return TensorDict({"context": whole["context"], **kept}, batch_size=[B])


def seen(whole: TensorDict, j: int) -> tuple[Tensor, TensorDict]:
    """Action into frame j, and the real step there."""
    return whole["action"][:, j], TensorDict({key: whole[key][:, j] for key in ("pixels", "proprio")}, batch_size=[B])


def close(one: TensorDict, other: TensorDict) -> None:
    for key in ("latent", "reward", "continue"):
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=0)
    assert torch.equal(one["wm", "codes"], other["wm", "codes"])


def test_observing_a_frame_gives_the_state_that_encoding_it_gives(model: IVideoGPT) -> None:
    whole = clip(model, 4)
    state = model.encode(cut(whole, 2))
    for j in (2, 3):
        state = model.observe(state, *seen(whole, j))
    close(state, model.encode(cut(whole, 4)))


def test_imagining_is_observing_what_was_imagined(model: IVideoGPT) -> None:
    whole = clip(model, 3)
    state = model.encode(cut(whole, 2))
    dreamt = model.imagine(state, whole["action"][:, 2], torch.Generator().manual_seed(0))
    wm = dreamt["wm"]
    again = {"context_codes": wm["context"].long(), "codes": wm["codes"][:, :3].long(), "action": whole["action"]}
    if model.config.proprio:
        assert not torch.equal(dreamt["proprio"], state["proprio"])
        again["proprio"] = torch.cat([whole["proprio"][:, :2], dreamt["proprio"][:, None]], 1)
    close(dreamt, model.encode(TensorDict(again, batch_size=[B])))


def test_proprioception_is_given_exactly_where_it_is_read(model: IVideoGPT) -> None:
    whole = clip(model, 2)
    state = model.encode(cut(whole, 1))
    action, step = seen(whole, 1)
    if not model.config.proprio:
        close(model.observe(state, action, step), model.observe(state, action, step.exclude("proprio")))
        return
    with pytest.raises(ValueError, match=r"pixels, proprio of the real step \(proprio is missing\)"):
        model.observe(state, action, step.exclude("proprio"))


def test_codes_in_place_of_pixels_give_the_same_state(model: IVideoGPT) -> None:
    whole = clip(model, 3)
    context, codes = model.tokenize(whole["context"], whole["pixels"])
    kept = {key: whole[key] for key in ("action", "proprio")}
    given = TensorDict({"context_codes": context, "codes": codes, **kept}, batch_size=[B])
    close(model.encode(cut(whole, 3)), model.encode(given))
    with pytest.raises(ValueError, match="context's pixels"):
        model.observe(model.encode(given), *seen(whole, 0))


def test_forks_permutations_and_stale_caches_change_nothing(model: IVideoGPT) -> None:
    whole = clip(model, 2)
    root, generator = model.encode(cut(whole, 2)), torch.Generator().manual_seed(2)
    actions = torch.rand(4, B, A, generator=generator) * 2 - 1
    straight = model.imagine(model.imagine(root, actions[0], None), actions[1], None)
    other = model.imagine(root, actions[2], None)  # rewinds to the root
    model.imagine(other, actions[3], None)
    close(straight, model.imagine(model.imagine(root, actions[0], None), actions[1], None))
    model.encode(cut(clip(model, 1), 1))  # something else in the cache
    close(straight, model.imagine(model.imagine(root, actions[0], None), actions[1], None))
    order = torch.tensor([2, 0, 1])
    close(straight[order], model.imagine(model.imagine(root[order], actions[0][order], None), actions[1][order], None))


def test_a_changed_weight_changes_what_is_imagined() -> None:
    model = build()
    state = model.encode(cut(clip(model, 2), 2))
    before = model.imagine(state, torch.zeros(B, A), None)
    with torch.no_grad():
        next(model.tokens.llm.lm_head.parameters()).mul_(-1)
    model.updated("dynamics")
    assert model.version == 1 and model.tokenizer_version == 0
    assert not torch.equal(before["wm", "codes"], model.imagine(state, torch.zeros(B, A), None)["wm", "codes"])


@pytest.mark.parametrize("part", ["tokenizer", "dynamics"])
def test_the_loss_of_a_part_reaches_that_part_alone(model: IVideoGPT, part: Any) -> None:
    model.zero_grad()
    losses = model.losses(clip(model, 5), part, step=100, generator=torch.Generator().manual_seed(0))
    losses["loss"].backward()
    own = model.parameters_of(part)
    touched = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert touched and touched <= own.keys()
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in losses.values())


def test_two_draws_of_one_number_are_one_dream(model: IVideoGPT) -> None:
    dream, whole = Dream(model, seeds=Seeds(1)), clip(model, 1)

    def policy(td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
        return td["latent"][:, :A].tanh(), memory

    paths = [
        dream.rollout(policy, dream.encode(cut(whole, 1)), None, 4, stream="x", draw=n, keys=("latent", "pixels")).path
        for n in (7, 7, 8)
    ]
    assert paths[0].batch_size == (B, 4) and paths[0]["pixels"].shape == (B, 4, 3, SIDE, SIDE)
    assert torch.equal(paths[0]["next", "latent"], paths[1]["next", "latent"])
    assert not torch.equal(paths[0]["next", "latent"], paths[2]["next", "latent"])
    assert torch.equal(paths[0]["next", "latent"][:, :-1], paths[0]["latent"][:, 1:])


def test_a_world_that_ends_has_a_continue_head_that_learns() -> None:
    model = build(terminates=True)
    assert bool((model.encode(cut(clip(model, 2), 2))["continue"] < 1).all())
    losses = model.losses(clip(model, 5), "dynamics", step=0, generator=torch.Generator().manual_seed(0))
    assert float(losses["dynamics/continue"]) > 0


def test_too_long_a_segment_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"max_frames=300.*positions"):
        build("worldmodel.max_frames=300")


def test_every_worldmodel_preset_composes(tmp_path: Path) -> None:
    for name in ("cpu", "toy", "ivideogpt"):
        plain: Any = OmegaConf.to_container(compose("train", [f"worldmodel={name}"]))
        assert make(plain["worldmodel"], "worldmodel", trusted=True).latent


def codebook_model() -> IVideoGPT:
    words = ["tokenizer.quantizer=vq", "tokenizer.fsq_levels_context=[]", "tokenizer.fsq_levels_future=[]"]
    return build(*words, "tokenizer.fsq_place_means=false")


def test_what_reads_the_codebooks_does_not_move_them() -> None:
    model = codebook_model()
    model.losses(clip(model, 5), "dynamics", step=0, generator=torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("tokenizer."))


class Acted:
    """Clips of a world whose reward is the first action: on arriving in frame j, the action that led into it."""

    def __init__(self, model: IVideoGPT) -> None:
        self.model = model

    def clips(self, n: int, length: int, *, stream: str, draw: int, codes: bool = False) -> TensorDict:
        generator = Seeds(2).torch(stream, draw)
        layout = self.model.layout
        action = torch.rand(n, length, A, generator=generator) * 2 - 1
        return TensorDict(
            {
                "context_codes": torch.zeros(n, layout.codes_context, dtype=torch.int64),
                "codes": torch.randint(layout.vocab_future, (n, length, layout.codes_future), generator=generator),
                "action": action,
                "reward": action[..., 0],
                "continue": torch.ones(n, length),
                "reward_mask": torch.ones(n, length, dtype=torch.bool),
            },
            batch_size=[n],
        )


@pytest.mark.parametrize(("target", "right"), [("arriving", True), ("published", False)])
def test_an_imagined_reward_belongs_to_the_action_that_was_just_taken(target: str, right: bool) -> None:
    model = build(f"worldmodel.losses.reward_target={target}")
    world = Acted(model)
    optimizer = torch.optim.Adam(model.parameters_of("dynamics").values(), lr=3e-3)
    for draw in range(120):
        batch = world.clips(16, 6, stream="train", draw=draw)
        loss = model.losses(batch, "dynamics", step=draw, generator=Seeds(1).torch("loss", draw))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.updated("dynamics")
    held_out = world.clips(64, 2, stream="test", draw=0)
    action = torch.rand(64, A, generator=torch.Generator().manual_seed(3)) * 2 - 1
    reward = model.imagine(model.encode(held_out), action, torch.Generator().manual_seed(4))["reward"][:, 0]
    error = float((reward - action[:, 0]).square().mean() / action[:, 0].var())
    assert (error < 0.5) is right, error
