"""A model of which each process may hold a share (FSDP2), put together: what is measured, written and read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worldmodel.ivideogpt import IVideoGPT
from worldmodel.losses.tokenizer import eval_mode
from worldmodel.optim import copy_to_dtensor, whole
from worldmodel.processes import Processes, Sharding


class WholeModel:
    """To be made before the model is shared; all processes must ask."""

    def __init__(self, model: IVideoGPT, *, processes: Processes, sharding: Sharding) -> None:
        self.model, self._sharded = model, sharding == "fsdp2"
        # a sharded model cannot run in one process alone: what is measured and written is a copy
        self._twin = copy.deepcopy(model) if self._sharded and processes.first else None

    @contextmanager
    def measuring(self) -> Iterator[IVideoGPT]:
        """The whole model in eval mode, to be read, in the first process; all must enter."""
        model = self.model
        if self._sharded:
            weights = self.state_dict()
            if self._twin is not None:
                self._twin.load_state_dict(weights)
                self._twin.updated("dynamics")
                model = self._twin
        with eval_mode(model):
            yield model

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by name."""
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. Raises: ValueError where names differ."""
        own = self.model.state_dict()
        if wrong := own.keys() ^ state.keys():
            raise ValueError(f"the state of the model must hold its own tensors (differs in {sorted(wrong)[:5]})")
        with torch.no_grad():
            for name, tensor in own.items():
                copy_to_dtensor(tensor, state[name])
        self.model.updated("tokenizer")
        self.model.updated("dynamics")
