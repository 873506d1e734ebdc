"""The WorldModel protocol: what a world model must answer. Everything else about it is its own business."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.microbatch import MicroBatch, Source
from worldmodel.spec import ModelSpec, Part


class WorldModel(Protocol):
    """Predicts frames and rewards. Knows nothing of agents, replay or environments.

    TensorDict keys and shapes: `worldmodel.spec`. Methods raise ValueError on shapes that `spec` forbids.
    """

    spec: ModelSpec
    version: int
    """+1 after every weight update; whatever was cached under another version is stale."""

    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip (pixels or codes, with `action`) -> the dream state after its last frame."""
        ...

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: Source | None) -> TensorDict:
        """Next state; the frame is sampled from `generator`, or is the most likely one where it is None.

        Where processes share the rows of a dream it is a `RowNoise` (`worldmodel.microbatch` draws from either).
        """
        ...

    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        """Next state; the frame is a real one: `step` [B] has what `spec.obs_keys` of it."""
        ...

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """The state of every row `copies` times: row b becomes rows b * copies and on. Nothing is read again."""
        ...

    def depth(self, state: TensorDict) -> int:
        """Frames that the state knows behind its context; no host sync for a state that the model made last."""
        ...

    def decode(self, state: TensorDict) -> Tensor:
        """The state's newest frame, u8 [B, 3, H, W]."""
        ...

    def prepare(self, part: Part) -> None:
        """Before the first losses of `part`: makes ready what they need beside the weights.

        Raises: ValueError, one line that says what is missing and how to get it.
        """
        ...

    def losses(
        self, clip: TensorDict, part: Part, *, step: int, generator: torch.Generator, micro: MicroBatch | None = None
    ) -> dict[str, Tensor]:
        """Losses of one part on a training clip: `loss` with gradient, and detached scalars to log.

        Args:
            step: updates of this part so far (schedules such as a warm-up without quantisation read it).
            generator: every random choice of the loss draws from it.
            micro: which piece of a larger batch the clip is (`generator` is the same in every piece), so that the mean
                of the pieces' losses is the loss of the batch; None: it is the whole batch.
        """
        ...

    def parameters_of(self, part: Part) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters of one part, by name."""
        ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What a loss may move without an optimizer: running statistics, by name."""
        ...

    def updated(self, part: Part) -> None:
        """To be called after each optimizer step: moves `version`; caches made under the old weights are forgotten."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Inverse of `state_dict`, strict."""
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """What a world model with codes (`spec.codes`) answers besides `WorldModel`; others are not asked."""

    tokenizer_version: int
    """+1 after every update of the tokenizer; codes memoised under another one are stale."""

    def tokenize(self, context_BtCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames -> (context codes i64 [B, t*N], codes i64 [B, T, K])."""
        ...

    def detokenize(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        """What codes show: uint8 frames [B, F, 3, H, W]."""
        ...

    def codes_of(self, state: TensorDict) -> tuple[Tensor, Tensor]:
        """What a dream state knows: context codes i64 [B, t*N], and codes i64 [B, F, K] of all its frames."""
        ...

    def code_features(self, context_BN: Tensor, codes_BFK: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the context's codes f32 [B, C] and of each frame's f32 [B, F, E]."""
        ...
