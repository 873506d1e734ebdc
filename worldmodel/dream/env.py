"""Dream states as TorchRL knows them: static specs, so that collectors can allocate before anything is imagined."""

from __future__ import annotations

import torch
from torchrl.data import Composite, Unbounded

from worldmodel.spec import ModelSpec


def state_spec(spec: ModelSpec, rows: int, *, device: torch.device | str = "cpu") -> Composite:
    """What a dream state [rows] of this model holds, at every step (`worldmodel.spec.ModelSpec.state`)."""
    leaves = {key: Unbounded((rows, *shape), dtype=dtype, device=device) for key, (shape, dtype) in spec.state.items()}
    whole = Composite(shape=(rows,), device=device)
    for key, leaf in leaves.items():
        whole[key] = leaf
    return whole
