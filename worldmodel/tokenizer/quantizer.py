"""Two ways to turn latent vectors into codes: nearest code of a book, and rounding of each dimension.

They know vectors only. Both have the same methods, so the tokenizer does not ask which one it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.microbatch import Source, integers, uniform
from worldmodel.tokenizer.blocks import full_precision

ROWS_AT_ONCE = 8192
"""Rows whose distances to all codes are held at one time (8192 x 8192 float32 are 256 MiB)."""
EMA_STEP = 0.1
"""Weight of the newest batch in the statistics that are used outside training."""
VARIANCE_FLOOR = 1e-8
"""Far below the usual 1e-5: early in training, frames of a static scene differ by less than that."""


class Quantized(NamedTuple):
    """Vectors [..., D] with straight-through gradient, codes int64 [...], commitment loss (scalar)."""

    vectors: Tensor
    codes: Tensor
    commit: Tensor


class VectorQuantizer(nn.Module):
    """Nearest code of a learned book by Euclidean distance (spec 3.4).

    The loss is mean((sg(e) - z)^2) + mean((e - sg(z))^2): no moving average, no revival of dead codes.
    """

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    @torch.no_grad()
    def codes(self, latents: Tensor) -> Tensor:
        """[..., D] -> int64 [...]; of two codes equally near, the first."""
        with full_precision(latents):
            rows = latents.reshape(-1, latents.shape[-1]).to(self.embedding.weight.dtype)
            nearest = [torch.cdist(part, self.embedding.weight).argmin(1) for part in rows.split(ROWS_AT_ONCE)]
        return torch.cat(nearest).view(latents.shape[:-1])

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 [...] -> [..., D]."""
        return self.embedding(codes)

    def features(self) -> Tensor:
        """What codes have in common, [codes, J = codes]: nothing, each is one of its own."""
        return torch.eye(len(self.embedding.weight))

    def jittered(self, codes: Tensor, share: float, generator: Source) -> Tensor:
        """Codes int64 [...] of which this share is replaced by any code: those of a book have no neighbours."""
        replaced = uniform(codes.shape, generator, device=codes.device) < share
        other = integers(len(self.embedding.weight), codes.shape, generator, device=codes.device)
        return torch.where(replaced, other, codes)

    def forward(self, latents: Tensor, *, quantize: bool, generator: Source | None) -> Quantized:
        """Quantize [..., D]; with `quantize=False` the latents pass, while the loss still pulls the book to them."""
        codes = self.codes(latents)
        vectors = self.vectors(codes)
        commit = F.mse_loss(latents, vectors.detach()) + F.mse_loss(vectors, latents.detach())
        passed = latents + (vectors - latents).detach() if quantize else latents
        return Quantized(passed, codes, commit)


class FiniteScalarQuantizer(nn.Module):
    """Each dimension is normalised over the batch, squashed by tanh and rounded to one of its levels; nothing to learn.

    Without the batch's own statistics all frames of a static scene round to one code, and no gradient leads out of
    there. In training they are those of the batch; `codes`, and `forward` in eval mode, use their moving averages.

    Args:
        levels: number of levels of each of the D dimensions.
        positions: K if each of a frame's K vectors has its own mean, 1 if they share it. Where the constant differences
            between places are larger than those between frames, a shared mean leaves each place with one code until
            training has undone it; a mean of its own has K times fewer samples, so with small batches codes jitter. The
            variance is always shared: at a place where little happens a batch's own would be noise.
    """

    running_mean: Tensor
    running_var: Tensor
    levels: Tensor
    places: Tensor
    across: Callable[[Tensor], Tensor] | None = None
    """Mean over the processes that share a batch, with gradient; None where there is one."""

    def __init__(self, levels: tuple[int, ...], *, positions: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(positions, len(levels)))
        self.register_buffer("running_var", torch.ones(len(levels)))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor([prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def _scaled(self, latents: Tensor, *, batch: bool) -> Tensor:
        """[..., D] -> positions among the levels, in [0, level - 1]."""
        with full_precision(latents):
            rows_RPD = latents.reshape(-1, *self.running_mean.shape).to(self.running_mean.dtype)
            mean_PD = self._shared(rows_RPD.mean(0)) if batch else self.running_mean
            centred_RPD = rows_RPD - mean_PD
            var_D = self._shared(centred_RPD.square().mean((0, 1))) if batch else self.running_var
            if batch:
                self.running_mean.lerp_(mean_PD.detach(), EMA_STEP)
                self.running_var.lerp_(var_D.detach(), EMA_STEP)
            normed_RPD = centred_RPD * (var_D + VARIANCE_FLOOR).rsqrt()
            return ((normed_RPD.tanh() + 1) * 0.5 * (self.levels - 1)).view(latents.shape)

    def _shared(self, statistic: Tensor) -> Tensor:
        return statistic if self.across is None else self.across(statistic)

    def _codes(self, scaled: Tensor) -> Tensor:
        return (scaled.round().long() * self.places).sum(-1)

    @torch.no_grad()
    def codes(self, latents: Tensor) -> Tensor:
        """[..., D] -> int64 [...]."""
        return self._codes(self._scaled(latents, batch=False))

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 [...] -> [..., D] in [-1, 1]."""
        digits = codes.unsqueeze(-1) // self.places % self.levels
        return digits.to(self.running_mean.dtype) * 2 / (self.levels - 1) - 1

    def features(self) -> Tensor:
        """What neighbouring codes have in common, [codes, J]: each dimension's level as one-hot, and as a number."""
        codes = torch.arange(int(self.levels.prod()), device=self.levels.device)
        digits = codes.unsqueeze(-1) // self.places % self.levels
        one_hot = [F.one_hot(digits[:, d], int(n)) for d, n in enumerate(self.levels)]
        return torch.cat([*one_hot, self.vectors(codes)], -1).to(self.running_mean.dtype)

    def jittered(self, codes: Tensor, share: float, generator: Source) -> Tensor:
        """Codes int64 [...] in which this share of all levels has moved to a neighbouring one."""
        digits = codes.unsqueeze(-1) // self.places % self.levels
        moved = uniform(digits.shape, generator, device=codes.device) < share
        step = integers(2, digits.shape, generator, device=codes.device) * 2 - 1
        moved_digits = (digits + moved * step).clamp(min=0).minimum(self.levels - 1)
        return (moved_digits * self.places).sum(-1)

    def forward(self, latents: Tensor, *, quantize: bool, generator: Source | None) -> Quantized:
        """Quantize [..., D]; with `quantize=False` uniform noise of half a level takes the place of rounding.

        Raises: ValueError if noise is asked for without a generator.
        """
        scaled = self._scaled(latents, batch=self.training)
        codes = self._codes(scaled.detach())
        if quantize:
            passed = scaled + (scaled.round() - scaled).detach()
        elif generator is None:
            raise ValueError("quantize=False adds noise: give the generator that draws it")
        else:
            noise = uniform(scaled.shape, generator, device=scaled.device, dtype=scaled.dtype)
            passed = scaled + noise - 0.5
        return Quantized(passed * 2 / (self.levels - 1) - 1, codes, scaled.new_zeros(()))
