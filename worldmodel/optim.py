"""The one optimiser of the project: AdamW on named parameters, clipped by norm, warmed up, saved as flat tensors.

A ground file: it knows parameters and their names and nothing else, so `worldmodel` and `agents` may both import it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of one `Optimizer`.

    Attributes:
        lr: step size after the warm-up.
        beta1: decay of the mean gradient, in [0, 1).
        beta2: decay of the mean squared gradient, in [0, 1).
        eps: added to the root of the mean squared gradient.
        weight_decay: decoupled decay (times lr) of weights with two or more axes; biases and gains never decay.
        max_grad_norm: the gradients of all parameters together are scaled down to this norm; inf never clips.
        warmup_steps: updates over which lr rises linearly from lr / warmup_steps to lr; 0 starts at lr.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    warmup_steps: int

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0 (got {getattr(self, name)})")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1) (got {getattr(self, name)})")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        """An optimiser of `parameters`, which must already lie on their device."""
        return Optimizer(parameters, self)


Decayed = Literal["matrices", "not_embeddings", "everything"]


@dataclass(frozen=True, kw_only=True)
class ScheduledOptimConfig(OptimConfig):
    """An `OptimConfig` with the choices of pre-training (spec 10.2).

    Attributes:
        decay_steps: updates after which lr has fallen to 0 along a cosine that begins behind the warm-up; 0 keeps lr.
        weight_decay_on: what `weight_decay` acts on: `matrices` with two or more axes; `not_embeddings`: those but for
            token embeddings (the published `embed_no_wd`); `everything`, as the published code without that flag.
    """

    decay_steps: int
    weight_decay_on: Decayed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps must be 0 or > warmup_steps={self.warmup_steps} (got {self.decay_steps})")
        if self.decay_steps < 0:
            raise ValueError(f"decay_steps must be >= 0 (got {self.decay_steps})")
        if self.weight_decay_on not in ("matrices", "not_embeddings", "everything"):
            raise ValueError(
                f"weight_decay_on must be matrices, not_embeddings or everything (got {self.weight_decay_on})"
            )


class Optimizer:
    """AdamW whose step happens wholly or not at all, and whose state is a flat dict of tensors by parameter name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        if not parameters:
            raise ValueError("an optimizer needs at least one parameter (got none)")
        self._parameters = dict(parameters)
        self._lr, self._max_grad_norm, self._warmup_steps = config.lr, config.max_grad_norm, config.warmup_steps
        self._decay_steps = config.decay_steps if isinstance(config, ScheduledOptimConfig) else 0
        self.updates = 0
        """Steps taken so far."""
        what: Decayed = config.weight_decay_on if isinstance(config, ScheduledOptimConfig) else "matrices"
        weight_decay_on = [p for name, p in self._parameters.items() if decays(name, p, what)]
        plain = [p for name, p in self._parameters.items() if not decays(name, p, what)]
        groups = [
            {"params": weight_decay_on, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,  # one kernel per group instead of a loop over tensors
        )
        for parameter in self._parameters.values():
            # made at once, not at the first gradient, so that what is saved always has every name
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    @property
    def lr(self) -> float:
        """Step size of the next step."""
        if self.updates < self._warmup_steps:
            return self._lr * min(1.0, (self.updates + 1) / self._warmup_steps)
        if not self._decay_steps:
            return self._lr
        gone = min(1.0, (self.updates - self._warmup_steps) / (self._decay_steps - self._warmup_steps))
        return self._lr * 0.5 * (1 + math.cos(math.pi * gone))

    @property
    def parameters(self) -> Iterable[nn.Parameter]:
        """What it moves."""
        return self._parameters.values()

    def step(self, loss: Tensor) -> float | None:
        """Takes one step down the gradient of a scalar loss.

        Returns: the norm of all gradients before clipping, or None if it or the loss was not finite. Nothing has
            changed then: parameters, moments and counters are as before. One host sync.
        """
        loss.backward()
        return self.apply(loss)

    def apply(self, loss: Tensor) -> float | None:
        """As `step`, for a loss whose gradients (perhaps those of several pieces) are there already."""
        whole_norm = whole(nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm))
        finite_too = torch.isfinite(whole_norm) & torch.isfinite(loss.detach())
        norm, finite = to_host(torch.stack([whole_norm, finite_too]))
        if finite:
            for group in self._adam.param_groups:
                group["lr"] = self.lr
            self._adam.step()
            self.updates += 1
        self._adam.zero_grad(set_to_none=True)
        return norm if finite else None

    def to(self, device: torch.device | str) -> Optimizer:
        """Moves the moments after the parameters themselves have been moved."""
        for state in self._adam.state.values():
            for name in _MOMENTS:
                state[name] = state[name].to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """`updates` and, for every parameter, `<name>.step`, `<name>.exp_avg` and `<name>.exp_avg_sq` (not copies)."""
        flat = {"updates": torch.tensor(self.updates)}
        for name, parameter in self._parameters.items():
            flat |= {f"{name}.{moment}": whole(self._adam.state[parameter][moment]) for moment in _MOMENTS}
        return flat

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`; copies.

        Raises: ValueError if a name is missing, unknown or has another shape; nothing is changed then.
        """
        own = self.state_dict()
        if wrong := own.keys() ^ state.keys():
            raise ValueError(f"optimizer state must hold the model's own parameters (differs in {sorted(wrong)[:5]})")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"optimizer state {name} must be {tuple(tensor.shape)} (got {tuple(state[name].shape)})"
                )
        self.updates = int(state["updates"])
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                copy_to_dtensor(self._adam.state[parameter][moment], state[f"{name}.{moment}"])


def to_host(values: Tensor) -> list[float]:
    """Values [N] as numbers. The host waits for the device here; an update reads nothing of it in any other way."""
    return values.tolist()  # sync


def decays(name: str, parameter: nn.Parameter, what: Decayed) -> bool:
    """Whether weight decay acts on a parameter.

    >>> decays("llm.model.embed_tokens.weight", nn.Parameter(torch.ones(3, 2)), "not_embeddings")
    False
    >>> decays("llm.model.norm.weight", nn.Parameter(torch.ones(3)), "everything")
    True
    """
    if what == "everything":
        return True
    return parameter.ndim >= 2 and not (what == "not_embeddings" and "embed_tokens" in name)


def sharded(tensor: Tensor) -> bool:
    """Whether each process holds a share of it only (a DTensor, asked without the second that its import takes)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a share, put together (all processes must ask); others as they are."""
    return tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def copy_to_dtensor(tensor: Tensor, content: Tensor) -> None:
    """Copies a whole tensor into one of which each process may hold a share."""
    if sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        content = distribute_tensor(content.to(tensor.device), mesh, placements)
    tensor.copy_(content)
