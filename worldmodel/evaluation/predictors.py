"""The models whose predictions are judged, seen alike: clips become codes, codes are continued, codes become frames.

Knows what a clip is (worldmodel.spec) and nothing of metrics, files or configurations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.seeds import Seeds
from worldmodel.sequence import codes_of_ids, layout_ids
from worldmodel.spec import ContextMode, ModelSpec
from worldmodel.tokenizer.compressive import CompressiveTokenizer

# B clips, t context frames, T frames behind them, G frames that are shown as they are, A action, K codes of a frame

STREAM = "predict"


class Predictor(ABC):
    """A model that continues clips.

    Attributes:
        spec: what it reads; its `burn_in` frames behind the context are shown, the others are predicted.
    """

    def __init__(self, tokenizer: CompressiveTokenizer, spec: ModelSpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.tokenizer.parameters()).device

    @property
    def num_observed(self) -> int:
        """Frames G at the head of a clip that the model is shown."""
        return self.spec.burn_in + self._context

    @property
    def _context(self) -> int:
        """Context frames that are no copies of a frame of the clip itself."""
        return self.spec.context_frames if self.spec.context == "sliding" else 0

    def truth(self, clip: TensorDict) -> Tensor:
        """All frames of a clip in time, f32 [B, G + H, 3, S, S] in [0, 1]."""
        frames = torch.cat([clip["context"][:, : self._context], clip["pixels"]], 1)
        return frames.to(self.device).float() / 255

    @torch.no_grad()
    def read(self, clip: TensorDict) -> TensorDict:
        """The clip with `context_codes` i64 [B, t*N] and `codes` i64 [B, T, K] in place of its frames."""
        frames = [clip[key].to(self.device).float() / 255 for key in ("context", "pixels")]
        context_BtN, codes_BTK = self.tokenizer.tokenize(*frames)
        rest = {key: clip[key].to(self.device) for key in ("action", "proprio") if key in clip.keys()}  # noqa: SIM118
        read = {"context_codes": context_BtN.flatten(1), "codes": codes_BTK, **rest}
        return TensorDict(read, batch_size=clip.batch_size)

    @abstractmethod
    def dream(self, read: TensorDict, action_BTA: Tensor, seeds: Seeds | None, draw: int = 0) -> Tensor:
        """Codes i64 [B, T, K]: those of the observed frames, and what follows them under these actions.

        Args:
            seeds: with `draw`, name the random numbers; None: the most likely codes.
        """

    @torch.no_grad()
    def frames(self, read: TensorDict, codes_BTK: Tensor) -> Tensor:
        """All frames as the tokenizer shows them, f32 [B, G + H, 3, S, S] in [0, 1]."""
        per_frame = read["context_codes"].unflatten(1, (self.tokenizer.layout.context, -1))
        context, future = self.tokenizer.decode(per_frame, codes_BTK)
        return torch.cat([context[:, : self._context], future], 1).float().clamp(0, 1)


class Dreaming(Predictor):
    """A world model of reinforcement learning (`worldmodel.ivideogpt.IVideoGPT`), with its own rule of sampling."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.tokenizer, model.spec)
        self.model = model.eval()

    def dream(self, read: TensorDict, action_BTA: Tensor, seeds: Seeds | None, draw: int = 0) -> Tensor:
        """See `Predictor`: one encoding, then one imagined step for each frame."""
        observed, frames = self.spec.burn_in, action_BTA.shape[1]
        shown = {key: read[key][:, :observed] for key in read.keys() if key != "context_codes"}  # noqa: SIM118
        start = TensorDict({**shown, "context_codes": read["context_codes"]}, batch_size=read.batch_size)
        dream, policy = Dream(self.model, seeds=seeds or Seeds(0)), fixed_actions(action_BTA[:, observed:])
        made = dream.rollout(
            policy, dream.encode(start), 0, frames - observed, stream=STREAM, draw=draw, sample=seeds is not None
        )
        return self.model.codes_of(made.state)[1]


class Generating(Predictor):
    """A published model (`worldmodel.published.model.VideoGPT`): action-free strings are drawn in one go, as published.

    Args:
        rule: how ids are drawn.
        horizon: most frames that its transformer has positions for.
    """

    def __init__(self, model: Any, *, rule: SamplingConfig, horizon: int) -> None:
        context: ContextMode = "sliding"
        spec = ModelSpec(
            image=model.tokenizer.config.image,
            context_frames=model.context,
            action_dim=model.action_dim,
            max_frames=horizon,
            context=context,
            burn_in=0,
        )
        super().__init__(model.tokenizer, spec)
        self.model, self.rule = model.eval(), rule

    def dream(self, read: TensorDict, action_BTA: Tensor, seeds: Seeds | None, draw: int = 0) -> Tensor:
        """See `Predictor`. Published rows of actions: row k leads from frame k of the clip, context included, on."""
        layout, rows = self.model.layout, len(read)
        ids = layout_ids(read["context_codes"], read["codes"][:, :0], layout)
        before = action_BTA.new_zeros(rows, layout.context - 1, action_BTA.shape[2])
        action = torch.cat([before, action_BTA], 1) if self.spec.action_dim else None
        rule, generator = (self.rule, seeds.torch(STREAM, draw, device=self.device)) if seeds else ("argmax", None)
        drawn = self.model.generate(ids, frames=action_BTA.shape[1], action=action, sampling=rule, generator=generator)
        return codes_of_ids(drawn, layout)[1]
