"""The adversary of tokenizer training: a patch discriminator that learns to tell decoded frames from real ones.

Knows frames and one weight of the decoder; nothing of the tokenizer around it (spec 10.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldmodel.losses.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from worldmodel.microbatch import MicroBatch
from worldmodel.optim import OptimConfig, Optimizer
from worldmodel.seeds import Seeds, seeded_globally

LEAST_NORM, LARGEST = 1e-8, 1e4
"""Of the adaptive weight: what its denominator is at least, and what it is at most."""


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """An adversary and when it begins.

    Attributes:
        weight: of its loss, beside the adaptive one (published: 0.8).
        start: tokenizer updates before it begins. The published code counts the discriminator's turns too, so its
            numbers are twice as large (QUIRK 20).
        hidden: width of the discriminator's last level (published: 512).
        optim: of the discriminator.
    """

    weight: float
    start: int
    hidden: int
    optim: OptimConfig

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be > 0 (got {self.weight}); without an adversary set discriminator=null")
        if self.start < 0:
            raise ValueError(f"start must be >= 0 (got {self.start})")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden must be a multiple of 8 (got {self.hidden})")

    def build(
        self, *, seeds: Seeds, device: torch.device | str, average: Callable[[Tensor], Tensor] | None = None
    ) -> Adversary:
        """An adversary with fresh weights.

        Args:
            average: mean over the processes that share a batch; None where there is one.
        """
        with seeded_globally(seeds.torch("init/adversary")):
            discriminator = PatchDiscriminator(self.hidden)
        return Adversary(self, discriminator.to(device), average=average)


class Adversary:
    """The discriminator, its optimizer, and the frames of the update that it has yet to learn from.

    The tokenizer's update comes first, then `update` learns from the same frames. (The published code gives the two
    turns on different batches.)
    """

    def __init__(
        self,
        config: AdversaryConfig,
        discriminator: PatchDiscriminator,
        *,
        average: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.config, self.discriminator, self._average = config, discriminator, average
        self.optimizer = Optimizer(dict(discriminator.named_parameters()), config.optim)
        self.generator_updates = 0
        """Updates of the tokenizer so far."""
        self._shown: list[tuple[Tensor, Tensor]] = []

    @property
    def started(self) -> bool:
        """Whether it takes part."""
        return self.generator_updates >= self.config.start

    def term(
        self, recon_NCHW: Tensor, real_NCHW: Tensor, *, judged: Tensor, weight: Tensor, micro: MicroBatch
    ) -> dict[str, Tensor]:
        """The tokenizer's loss `adversary`, and its adaptive weight `adversary_weight`; {} before it starts.

        The weight is ||d judged / d w|| / ||d G / d w||, w the decoder's last convolution, of the whole batch where
        processes share one, and of each piece where a process works through several.

        Args:
            judged: the perceptual distance of future frames, a scalar whose graph reaches `weight`.
        """
        if not self.started:
            return {}
        self._shown.append((real_NCHW, recon_NCHW.detach()))
        self.discriminator.requires_grad_(False)  # the tokenizer's backward pass must leave no gradients here
        fooled = generator_loss(self.discriminator(recon_NCHW))
        gradients = [torch.autograd.grad(term, weight, retain_graph=True)[0] for term in (judged, fooled)]
        wanted, had = (micro.mean(gradient).float().norm() for gradient in gradients)
        adaptive = (wanted / had.clamp(min=LEAST_NORM)).clamp(max=LARGEST).detach()
        return {"adversary": self.config.weight * adaptive * fooled, "adversary_weight": adaptive}

    def update(self) -> dict[str, float]:
        """After the tokenizer's step: the discriminator learns from the frames of that update, if it takes part."""
        shown, self._shown = self._shown, []
        self.generator_updates += 1
        if not shown:
            return {}
        self.discriminator.requires_grad_(True)
        total = torch.zeros((), device=shown[0][0].device)
        for real, fake in shown:
            loss = discriminator_loss(self.discriminator(real), self.discriminator(fake)) / len(shown)
            loss.backward()
            total += loss.detach()
        if self._average is not None:
            total = self._average(total)
            for parameter in self.discriminator.parameters():
                parameter.grad = None if parameter.grad is None else self._average(parameter.grad)
        norm = self.optimizer.apply(total)
        return {"tokenizer/discriminator": float(total), "tokenizer/discriminator_grad_norm": norm or 0.0}

    def forget(self) -> None:
        """Drops the frames of an update that was skipped."""
        self._shown = []

    def state_dict(self) -> dict[str, Any]:
        """Weights, singular vectors, moments and the count."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator_updates": self.generator_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator_updates = int(state["generator_updates"])
