"""What a world model costs: parameters, and floating-point operations of an update and of an imagined frame.

Counted by running each once on one row (torch's counter: products and convolutions, two operations for each
multiplication and addition; what is done element by element is left out), so it holds for any world model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agents.api import build
from mbrl.envs.rows import env_spec_of
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, ModelSpec

FRAMES = 4
"""Imagined frames whose mean is taken: a frame costs a little more the more there are before it."""


@dataclass(frozen=True)
class Cost:
    """Of one configuration.

    Attributes:
        parameters: numbers that each part learns.
        vocabulary: how many of them are embeddings of token ids, and their transpose at the output.
        update: FLOPs of one update of each part, forward and backward, over its whole batch.
        prefill: FLOPs of reading a dream's start, one row.
        frame: FLOPs of an imagined frame behind it, one row.
    """

    parameters: Mapping[str, int]
    vocabulary: int
    update: Mapping[str, float]
    prefill: float
    frame: float


def cost_of(groups: Mapping[str, Any]) -> Cost:
    """Of the world model, fits and world that a run's config dataclasses (`Configs.groups`) describe, on the CPU.

    Builds the model with fresh weights; no simulator, no data.
    """
    sizes = {name: groups[name] for name in ("tokenizer", "transformer", "task", "protocol")}
    env_spec = env_spec_of(groups["task"].facts(groups["protocol"]), groups["protocol"])
    model: Any = build(groups["worldmodel"], {**sizes, "env_spec": env_spec, "seeds": Seeds(0)})
    parts = {part: model.parameters_of(part) for part in model.spec.parts}
    update = {part: _update(model, part, getattr(groups["fit"], part), env_spec) for part in parts}
    prefill, frame = _imagination(model, env_spec)
    named = [(name, p.numel()) for held in parts.values() for name, p in held.items()]
    return Cost(
        parameters={part: sum(p.numel() for p in held.values()) for part, held in parts.items()},
        vocabulary=sum(count for name, count in named if "embed_tokens" in name or "lm_head" in name),
        update=update,
        prefill=prefill,
        frame=frame,
    )


def flops_of_run(groups: Mapping[str, Any], cost: Cost, *, env_steps: int) -> float:
    """FLOPs that fits and dreams of a run have taken after so many env steps; the agent's networks are left out."""
    schedule, agent = groups["schedule"], groups["agent"]
    fits = sum(schedule.fits[part].owed(env_steps, 0) * update for part, update in cost.update.items())
    dreams = getattr(agent, "batch_size", 0) * (cost.prefill + getattr(agent, "horizon", 0) * cost.frame)
    return float(fits + schedule.learn.owed(env_steps, 0) * dreams)


def _update(model: Any, part: str, fit: Any, env_spec: EnvSpec) -> float:
    """FLOPs of an update, from one clip; its codes are made beforehand, since replay memoises them."""
    clip = random_clip(model.spec, env_spec, fit.length)
    if part != "tokenizer" and model.spec.codes is not None:
        clip["context_codes"], clip["codes"] = model.tokenize(clip.pop("context"), clip.pop("pixels"))

    def once() -> None:
        model.losses(clip, part, step=2**20, generator=torch.Generator().manual_seed(0))["loss"].backward()

    return counted(once) * fit.batch


def _imagination(model: Any, env_spec: EnvSpec) -> tuple[float, float]:
    """FLOPs of a prefill, and of a frame in the mean over the first few; 0 for one that learns or dreams nothing."""
    spec = model.spec
    if not (spec.dreams and spec.parts):
        return 0.0, 0.0
    dream, clip = Dream(model, seeds=Seeds(0)), random_clip(spec, env_spec, max(1, spec.burn_in))
    held: list[TensorDict] = []
    frames = min(FRAMES, spec.max_frames - spec.burn_in)
    policy = fixed_actions(torch.zeros(1, frames, spec.action_dim))
    with torch.no_grad():
        prefill = counted(lambda: held.append(dream.encode(clip)))
        rollout = counted(lambda: dream.rollout(policy, held[0], 0, frames, stream="cost", draw=0))
    return prefill, rollout / frames


def counted(work: Callable[[], object]) -> float:
    """FLOPs of `work`."""
    packed = {torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32: _linear_flops}
    if torch.backends.mkldnn.is_available():
        packed[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    # the fused attention of a CPU is not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=packed) as counter:
        work()
    return float(counter.get_total_flops())


def _linear_flops(x_shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Of a product with a packed matrix."""
    return 2 * x_shape[-1] * math.prod(out_shape)


def random_clip(spec: ModelSpec, env_spec: EnvSpec, length: int) -> TensorDict:
    """One clip (worldmodel.spec) of `length` frames; what it shows is noise."""
    generator = torch.Generator().manual_seed(0)

    def frames(number: int) -> Tensor:
        size = (1, number, 3, spec.image, spec.image)
        return torch.randint(256, size, dtype=torch.uint8, generator=generator)

    clip = {
        "action": torch.zeros(1, length, spec.action_dim),
        "reward": torch.zeros(1, length),
        "reward_mask": torch.ones(1, length, dtype=torch.bool),
        "continue": torch.ones(1, length),
    }
    if "pixels" in spec.obs_keys:
        clip |= {"context": frames(spec.context_frames), "pixels": frames(length)}
    if "proprio" in spec.obs_keys:
        clip["proprio"] = torch.zeros(1, length, env_spec.proprio_dim)
    return TensorDict(clip, batch_size=[1])
