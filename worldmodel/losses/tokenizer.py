"""The tokenizer's objective on one training clip: what it decodes, how it looks, what its codes carry.

Knows the tokenizer and pure losses; nothing of transformers or of optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.losses.parts import AuxiliaryHeads, LossConfig, choose_frames, pixel_l1
from worldmodel.microbatch import MicroBatch
from worldmodel.seeds import generator_on
from worldmodel.tokenizer.compressive import CompressiveTokenizer
from worldmodel.tokenizer.outputs import TokenizerOutput
from worldmodel.twohot import symlog

# B clips, t context frames, F chosen future frames, C pooled context

Distance = Callable[[Tensor, Tensor], Tensor]
"""Perceptual distance [N] of two stacks of frames [N, 3, H, W] in [0, 1] (not clamped)."""


class Opponent(Protocol):
    """What judges decoded frames while it learns to tell them from real ones (`worldmodel.losses.adversarial`)."""

    def term(
        self, recon_NCHW: Tensor, real_NCHW: Tensor, *, judged: Tensor, weight: Tensor, micro: MicroBatch
    ) -> dict[str, Tensor]:
        """The weighted loss `adversary` of the decoded frames and what is to be logged; {} before it starts."""
        ...


@dataclass(kw_only=True)
class TokenizerObjective:
    """Losses of the tokenizer (spec 10.1).

    Attributes:
        auxiliary: heads that read reward and actions from the codes; None without that loss.
        pooled: side of the grid to which those see the context.
        distance: the perceptual distance; None until somebody needs it.
        opponent: an adversary, in pre-training only.
    """

    config: LossConfig
    tokenizer: CompressiveTokenizer
    auxiliary: AuxiliaryHeads | None
    pooled: int
    distance: Distance | None = None
    opponent: Opponent | None = None

    def __call__(
        self, clip: Mapping[str, Tensor], *, step: int, generator: torch.Generator, micro: MicroBatch
    ) -> dict[str, Tensor]:
        """`loss` with gradient, and detached scalars (arguments as in `worldmodel.api`)."""
        cfg, device = self.config, clip["pixels"].device
        spans = self.auxiliary is not None
        chosen_F = choose_frames(clip["pixels"].shape[1], cfg.future_frames, keep_ends=spans, generator=generator)
        drawn = generator_on(generator, device)
        noise = micro.noise(drawn)
        context, future = to_float01(clip["context"]), to_float01(clip["pixels"][:, chosen_F])
        out = self.tokenizer(context, future, quantize=step >= cfg.quantize_start, generator=noise)
        losses = self._reconstruction(out, context, future, micro)
        losses["commit"] = cfg.commitment_coef * (out.commit_context + out.commit_future)
        if self.auxiliary is not None:
            losses["auxiliary"] = cfg.aux_coef * self._auxiliary(out, clip, chosen_F, micro)
        metrics: dict[str, Tensor] = {}
        if self.opponent is not None:
            metrics = self._opposed(out, context, future, losses, micro)
        metrics |= {f"tokenizer/{name}": value.detach() for name, value in losses.items()}
        seen_V = torch.zeros(self.tokenizer.layout.vocab_future, device=device)
        metrics["tokenizer/codes_alive"] = seen_V.index_fill_(0, out.codes_future.flatten(), 1).sum()  # different ones
        return {"loss": torch.stack(list(losses.values())).sum(), **metrics}

    def _reconstruction(
        self, out: TokenizerOutput, context: Tensor, future: Tensor, micro: MicroBatch
    ) -> dict[str, Tensor]:
        cfg, mean = self.config, micro.mean
        pairs = {"future": (out.recon_future, future), "context": (out.recon_context, context)}
        flat = {name: (recon.flatten(0, 1), real.flatten(0, 1)) for name, (recon, real) in pairs.items()}
        losses = {f"{name}_l1": pixel_l1(*both, cfg.foreground_weight, mean) for name, both in flat.items()}
        if cfg.lpips:
            assert self.distance is not None, "prepare() loads it before training"
            for name, both in flat.items():
                losses[f"{name}_lpips"] = cfg.lpips * self.distance(*both).mean()
        return losses

    def _auxiliary(
        self, out: TokenizerOutput, clip: Mapping[str, Tensor], chosen_F: Tensor, micro: MicroBatch
    ) -> Tensor:
        assert self.auxiliary is not None
        pooled_BC = functional.adaptive_avg_pool2d(out.vectors_context[:, -1], self.pooled).flatten(1)
        reward_BF, known_BF = symlog(clip["reward"][:, chosen_F]), clip["reward_mask"][:, chosen_F]
        scale = micro.scale(known_BF, micro.whole["reward_mask"][:, chosen_F])
        return self.auxiliary(out.vectors_future, pooled_BC, clip["action"][:, 1:], reward_BF, known_BF, scale)

    def _opposed(
        self,
        out: TokenizerOutput,
        context: Tensor,
        future: Tensor,
        losses: dict[str, Tensor],
        micro: MicroBatch,
    ) -> dict[str, Tensor]:
        """Adds the adversary's loss to `losses`; returns what else is to be logged."""
        assert self.opponent is not None
        recon = torch.cat([out.recon_context.flatten(0, 1), out.recon_future.flatten(0, 1)])
        real = torch.cat([context.flatten(0, 1), future.flatten(0, 1)])
        weight = self.tokenizer.cond_decoder.conv_out.weight
        # the published weight follows the gradient of the future frames' distance alone (QUIRK 22)
        terms = self.opponent.term(recon, real, judged=losses["future_lpips"], weight=weight, micro=micro)
        if "adversary" in terms:
            losses["adversary"] = terms.pop("adversary")
        return {f"tokenizer/{name}": value.detach() for name, value in terms.items()}


def to_float01(frames: Tensor) -> Tensor:
    """uint8 frames -> float32 in [0, 1]."""
    return frames.float() / 255


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode inside, as it was afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
