"""The tokenizer's objective: which terms there are, how the adversary weighs, and that pieces add up to the whole."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl.cli.compose import compose
from mbrl.rundir.build import make
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.losses.adversarial import Adversary, AdversaryConfig
from worldmodel.microbatch import MicroBatch
from worldmodel.optim import OptimConfig, Optimizer, ScheduledOptimConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

B, A, SIDE = 6, 2, 32
VQ = (
    "tokenizer.quantizer=vq",
    "tokenizer.fsq_levels_context=[]",
    "tokenizer.fsq_levels_future=[]",
    "tokenizer.fsq_place_means=false",
    "worldmodel.embedding=table",
)
OPTIM = OptimConfig(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0)


def build(*overrides: str) -> IVideoGPT:
    plain: Any = OmegaConf.to_container(compose("train", ["experiment=toy", *overrides]))
    parts = {name: make(plain[name], name, trusted=True) for name in ("worldmodel", "tokenizer", "transformer")}
    env = EnvSpec(image=SIDE, action_dim=A, discrete=False, action_repeat=1, decisions=9, terminates=False)
    model: IVideoGPT = parts["worldmodel"].build(
        tokenizer=parts["tokenizer"], transformer=parts["transformer"], env_spec=env, seeds=Seeds(3)
    )
    return model.train()


def clip(frames: int = 5) -> TensorDict:
    generator = torch.Generator().manual_seed(1)

    def u8(n: int) -> Tensor:
        return torch.randint(256, (B, n, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)

    mask = torch.ones(B, frames, dtype=torch.bool)
    mask[:2, 0], mask[0, 2:] = False, False  # so that pieces know unequally many rewards
    reward = torch.rand(B, frames, generator=generator)
    parts = {
        "context": u8(1),
        "pixels": u8(frames),
        "action": torch.rand(B, frames, A, generator=generator) * 2 - 1,
        "reward": reward,
        "continue": torch.ones(B, frames),
        "reward_mask": mask,
    }
    return TensorDict(parts, batch_size=[B])


class Stand(nn.Module):
    """A perceptual distance like LPIPS: of features that a fixed convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, 3, H, W] twice -> [N]."""
        return nn.functional.conv2d(x - y, self.weight).square().mean((1, 2, 3))


def gradients(model: IVideoGPT) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def share_of(piece: int, pieces: int, whole: TensorDict) -> MicroBatch:
    rows = B // pieces
    return MicroBatch(
        first=piece * rows, rows=B, piece=piece, pieces=pieces, processes=1, whole=whole, total=lambda tensor: tensor
    )


def in_pieces(model: IVideoGPT, part: Any, pieces: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the clip, as the mean of its pieces."""
    whole, total = clip(), 0.0
    if part == "dynamics":
        context_codes, codes = model.tokenize(whole["context"], whole["pixels"])
        whole["context_codes"], whole["codes"], whole["other_codes"] = context_codes, codes, context_codes.roll(1, 0)
    for piece, part_of in enumerate(whole.chunk(pieces)):
        share = share_of(piece, pieces, whole)
        losses = model.losses(part_of, part, step=100, generator=Seeds(1).torch("x"), micro=share)
        (losses["loss"] / pieces).backward()
        total += losses["loss"].item() / pieces
    found = gradients(model)
    model.zero_grad(set_to_none=True)
    return total, found


@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("dynamics", ()),  # jitter, strange contexts and a two-hot reward that is unknown here and there
        ("dynamics", ("worldmodel.losses.reward_target=published",)),
        ("tokenizer", (*VQ, "worldmodel.losses.foreground_weight=0")),
    ],
)
@pytest.mark.parametrize("pieces", [2, 3])
def test_the_mean_over_pieces_is_the_whole_also_where_means_are_masked(
    part: Any, overrides: tuple[str, ...], pieces: int
) -> None:
    model = build(*overrides)
    loss, expected = in_pieces(model, part, 1)
    again, found = in_pieces(model, part, pieces)
    assert math.isclose(loss, again, rel_tol=1e-6)
    assert expected.keys() == found.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_an_unknown_reward_teaches_nothing() -> None:
    model, whole = build("worldmodel.losses.token_noise=0", "worldmodel.losses.context_swap_prob=0"), clip()
    whole["reward"][:], whole["reward_mask"][:] = 0, False
    for part in ("tokenizer", "dynamics"):
        losses = model.losses(whole, part, step=0, generator=Seeds(1).torch("x"))  # type: ignore[arg-type]
        assert losses["loss"].isfinite()
    assert float(losses["dynamics/reward"]) == 0


def test_the_perceptual_distance_counts_for_both_kinds_of_frames_and_is_nobodys_parameter() -> None:
    model, whole = build("worldmodel.losses.lpips=0.5"), clip()
    names = set(model.state_dict())
    model.objective.distance = Stand()
    losses = model.losses(whole, "tokenizer", step=100, generator=Seeds(1).torch("x"))
    assert {"tokenizer/future_lpips", "tokenizer/context_lpips"} <= losses.keys()
    terms = [float(v) for name, v in losses.items() if name.startswith("tokenizer/") and "alive" not in name]
    assert math.isclose(losses["loss"].item(), sum(terms), rel_tol=1e-5)
    assert set(model.state_dict()) == names
    losses["loss"].backward()
    assert all(p.grad is None for p in model.objective.distance.parameters())


def adversary(*, start: int = 0, weight: float = 0.8) -> Adversary:
    return AdversaryConfig(weight=weight, start=start, hidden=16, optim=OPTIM).build(seeds=Seeds(2), device="cpu")


def test_the_adversary_weighs_as_the_paper_says_and_starts_when_told() -> None:
    model, whole = build("worldmodel.losses.lpips=1.0", *VQ), clip()
    model.objective.distance = Stand()
    opponent = model.objective.opponent = adversary(start=2)
    for expected in (False, False, True):
        losses = model.losses(whole, "tokenizer", step=100, generator=Seeds(1).torch("x"))
        assert ("tokenizer/adversary" in losses) is expected
        assert bool(opponent.update()) is expected
    adaptive = float(losses["tokenizer/adversary_weight"])
    # by hand: gradients of the two terms with respect to the last convolution of the conditional decoder
    weight = model.tokenizer.cond_decoder.conv_out.weight
    opponent.discriminator.load_state_dict(adversary().discriminator.state_dict())
    generator = Seeds(1).torch("x")
    found = {}
    term = opponent.term

    def spy(recon: Tensor, real: Tensor, **more: Any) -> dict[str, Tensor]:
        out = term(recon, real, **more)
        found["lpips"] = torch.autograd.grad(more["judged"], weight, retain_graph=True)[0].norm()
        found["adversary"] = torch.autograd.grad(out["adversary"], weight, retain_graph=True)[0].norm()
        found["adaptive"] = out["adversary_weight"]
        return out

    opponent.term = spy  # type: ignore[method-assign]
    model.losses(whole, "tokenizer", step=100, generator=generator)
    # 0.8 * lambda * |dG| = 0.8 * |dLPIPS|
    assert math.isclose(float(found["adversary"]), 0.8 * float(found["lpips"]), rel_tol=1e-4)
    assert math.isclose(float(found["adaptive"]), adaptive, rel_tol=1e-3)


def test_the_discriminator_learns_to_tell_and_leaves_the_tokenizer_alone() -> None:
    model, whole = build("worldmodel.losses.lpips=1.0", *VQ), clip()
    model.objective.distance = Stand()
    opponent = model.objective.opponent = adversary()
    seen = []
    for _ in range(12):
        model.losses(whole, "tokenizer", step=100, generator=Seeds(1).torch("x"))["loss"].backward()
        before = gradients(model)
        assert all(p.grad is None for p in opponent.discriminator.parameters())
        seen.append(opponent.update()["tokenizer/discriminator"])
        assert all(torch.equal(g, before[name]) for name, g in gradients(model).items())
        model.zero_grad()
    assert seen[-1] < seen[0] - 0.05
    twin = adversary()
    twin.load_state_dict(opponent.state_dict())
    assert twin.generator_updates == 12 and twin.optimizer.updates == 12
    for name, tensor in opponent.discriminator.state_dict().items():
        assert torch.equal(twin.discriminator.state_dict()[name], tensor)


# -- the optimizer -----------------------------------------------------------------------------------------------------


def scheduled(**changes: Any) -> ScheduledOptimConfig:
    values = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.5,
        "max_grad_norm": math.inf,
        "warmup_steps": 4,
    }
    return ScheduledOptimConfig(**{**values, "decay_steps": 12, "weight_decay_on": "matrices", **changes})


def test_lr_rises_then_falls_along_a_cosine_to_nothing() -> None:
    named = {"w": nn.Parameter(torch.ones(2, 2))}
    optim = Optimizer(named, scheduled())
    seen = []
    for _ in range(14):
        seen.append(optim.lr)
        optim.step((named["w"] ** 2).sum())
    assert seen[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert math.isclose(seen[8], 0.05) and all(a >= b for a, b in itertools.pairwise(seen[4:]))
    assert seen[12:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weight_decay_on", "expected"),
    [
        ("matrices", {"embed_tokens", "proj"}),
        ("not_embeddings", {"proj"}),
        ("everything", {"embed_tokens", "proj", "norm"}),
    ],
)
def test_decay_acts_on_what_the_config_says(weight_decay_on: str, expected: set[str]) -> None:
    named = {"embed_tokens": nn.Parameter(torch.ones(3, 2)), "proj": nn.Parameter(torch.ones(2, 2))}
    named["norm"] = nn.Parameter(torch.ones(2))
    optim = Optimizer(named, scheduled(weight_decay_on=weight_decay_on, warmup_steps=0, decay_steps=0))
    optim.step(sum((p * 0).sum() for p in named.values()))  # type: ignore[arg-type]
    assert {name for name, p in named.items() if not torch.equal(p, torch.ones_like(p))} == expected


def test_a_horizon_behind_the_warmup_is_asked_for() -> None:
    with pytest.raises(ValueError, match="decay_steps must be 0 or > warmup_steps=4"):
        scheduled(decay_steps=3)
