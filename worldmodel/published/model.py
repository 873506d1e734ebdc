"""The published model as one object: frames to tokens and back, generation, and the rollout for control (spec 4, 9).

Composition only: tokenizer, token model and rollout engine do the work. It knows no files and no training.
"""

# B clips, T frames, t context frames, F future frames, N tokens of a string, K codes of a future frame, A action

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.layout import TokenLayout
from worldmodel.losses.tokenizer import eval_mode
from worldmodel.rollout.engine import TokenEngine
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.sequence import codes_of_ids, layout_labels, string_of_ids
from worldmodel.tokenizer.compressive import CompressiveTokenizer
from worldmodel.tokenizer.networks import RGB
from worldmodel.transformer.token_model import TokenModel
from worldmodel.twohot import symexp

SAMPLINGS = {
    "argmax": SamplingConfig(temperature=0.0, top_k=0, codes_only=False),
    "published": SamplingConfig(temperature=1.0, top_k=100, codes_only=False),
}
"""Rules with a name: the most likely id, and the published draw (spec section 9)."""

Sampling = str | SamplingConfig
Policy = Callable[[Tensor, int], Tensor]
"""(observation float [B, 3k, H, W] in [0, 1], step) -> action [B, A]."""


class Rollout(NamedTuple):
    """An imagined episode, float32; row 0 is a dummy step that carries the first observation.

    Attributes:
        obs: [B, h+1, 3k, H, W] in [0, 1], stacked frames, the oldest first.
        actions: [B, h+1, A]; row j led into observation j.
        rewards: [B, h+1, 1] received on arriving in observation j; NaN, but for the dummy, without a reward head.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor


class VideoGPT(nn.Module):
    """A tokenizer and a transformer that were trained for each other; `worldmodel.load` makes one of files.

    Attributes:
        tokenizer: frames <-> codes.
        transformer: called with (ids, labels, action) it gives `.loss`, `.logits` and `.rewards` (spec 8.1).
    """

    def __init__(self, tokenizer: CompressiveTokenizer, transformer: TokenModel) -> None:
        """Raises ValueError if the two do not speak of the same tokens."""
        super().__init__()
        if tokenizer.layout != transformer.layout:
            raise ValueError(f"the transformer reads {transformer.layout}, the tokenizer writes {tokenizer.layout}")
        self.tokenizer, self.transformer = tokenizer, transformer
        self._engine: tuple[tuple[int, int, SamplingConfig], TokenEngine] | None = None

    @property
    def layout(self) -> TokenLayout:
        """The token string of a clip."""
        return self.tokenizer.layout

    @property
    def context(self) -> int:
        """Context frames t."""
        return self.tokenizer.config.context

    @property
    def action_dim(self) -> int:
        """Width A of the actions; 0 for an action-free model."""
        return self.transformer.condition_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are brought there."""
        return self.transformer.llm.lm_head.weight.device

    def set_context_length(self, frames: int) -> None:
        """Use only the `frames` most recent context frames (spec 2.11). Before any optimizer.

        Raises: ValueError if the context would grow.
        """
        self.tokenizer.set_context_length(frames)
        self.transformer.layout = self.tokenizer.layout
        self._engine = None

    # frames and tokens ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tokenize(self, frames: Tensor, context: int | None = None) -> Tensor:
        """Clips float [B, T, 3, H, W] in [0, 1], T > t -> ids int64 [B, N] (spec 4.1).

        Args:
            context: t, if one wants to be sure that it is the model's.
        Raises: ValueError on other shapes or another t.
        """
        if frames.is_floating_point():  # frames in bytes are refused below
            frames = frames.float()
        with eval_mode(self.tokenizer):
            return self.tokenizer.tokenize_ids(frames.to(self.device), self._checked(context))[0]

    @torch.no_grad()
    def detokenize(self, ids: Tensor, context: int | None = None) -> Tensor:
        """Ids int64 [B, N] -> frames float [B, T, 3, H, W], not clamped (spec 4.2).

        Raises: ValueError on a length that no clip has, another t, or context ids that are not context codes.
        """
        with eval_mode(self.tokenizer):
            return self.tokenizer.detokenize(ids.to(self.device), self._checked(context))

    def labels(self, ids: Tensor) -> Tensor:
        """Labels int64 [B, N] aligned with the ids: -100 up to and including the first `sdf` (spec 4.1)."""
        return layout_labels(ids, self.layout)

    def _checked(self, context: int | None) -> int:
        return self.context if context is None else context

    # generation -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        *,
        frames: int | None = None,
        action: Tensor | None = None,
        sampling: Sampling = "published",
        generator: torch.Generator | None = None,
        force_separators: bool = False,
    ) -> Tensor:
        """Ids int64 [B, N] of the context and `frames` generated frames behind it.

        Without actions the separators are drawn like any other id, as published (spec 9.1); with actions they are
        forced (spec 9.2), and always where queries draw whole frames (`worldmodel.transformer.decoding`).

        Args:
            ids: of a tokenized clip, of which only the context (the first 257 t - 1 as published) is read.
            frames: F; None: as many as `ids` holds behind the context.
            action: [B, T, A] or [B, T-1, A], row k leads from frame k of the clip (context included) to frame k + 1.
            sampling: `argmax`, `published` (temperature 1, top-k 100) or a rule of your own.
            generator: source of the draws, on the model's device.
            force_separators: force them without actions, too.
        Raises: ValueError if what is given does not fit together, or not into the transformer's positions.
        """
        layout, ids = self.layout, ids.to(self.device)
        if ids.shape[1] < layout.prelude:
            raise ValueError(f"ids must hold the context's {layout.prelude} tokens (got {ids.shape[1]})")
        frames = (ids.shape[1] - layout.prelude) // layout.stride if frames is None else frames
        rule = self._rule(sampling, generator)
        context_codes, _ = codes_of_ids(ids[:, : layout.prelude], layout)
        engine = self._prefilled(context_codes.flatten(1), frames, rule)
        forced = force_separators or action is not None or self.transformer.decoding.has_queries
        if not forced and not rule.codes_only:
            length = layout.stride * frames - 1
            behind_BN = engine.sample_string(length, engine.uniform(generator, length))
            opening_B1 = torch.full_like(behind_BN[:, :1], layout.sdf)
            return torch.cat([ids[:, : layout.prelude], opening_B1, behind_BN], 1)
        into_BFA = None if action is None else self.transformer.into_frames(self._actions(action), frames)
        drawn = [
            engine.sample_frame(None if into_BFA is None else into_BFA[:, j], engine.uniform(generator)).ids_BK
            for j in range(frames)
        ]
        return string_of_ids(context_codes, torch.stack(drawn, 1), layout)

    def predict(self, context_frames: Tensor, *, frames: int, **options: object) -> Tensor:
        """Context frames float [B, >= t, 3, H, W] in [0, 1] -> clip [B, t + frames, 3, H, W], not clamped.

        The first t frames come out as the tokenizer sees them. `options` are those of `generate`.
        """
        context = context_frames[:, : self.context]
        blank = torch.zeros_like(context[:, :1])  # the string of a clip has at least one future frame
        ids = self.tokenize(torch.cat([context, blank], 1))
        return self.detokenize(self.generate(ids, frames=frames, **options))  # type: ignore[arg-type]

    # control ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(
        self,
        obs_u8: Tensor,
        policy: Policy,
        horizon: int,
        sampling: Sampling = "argmax",
        *,
        generator: torch.Generator | None = None,
        symlog: bool = True,
    ) -> Rollout:
        """The rollout of the published model-based RL (spec 9.4): the policy acts on what the model imagines.

        Args:
            obs_u8: uint8 [B, 3k, H, W], k >= t stacked frames, the oldest first.
            policy: called with the observation, float [B, 3k, H, W] in [0, 1], and the step 0 .. horizon - 1.
            horizon: h >= 1.
            sampling, generator: as for `generate`.
            symlog: whether the reward head speaks of symlog rewards, so that symexp is applied to them.
        Raises: ValueError if shapes do not fit, or the model knows no actions.
        """
        frames = self._unstacked(obs_u8, horizon)
        rule = self._rule(sampling, generator)
        with eval_mode(self.tokenizer):
            codes, _ = self.tokenizer.tokenize(frames[:, -self.context :], torch.zeros_like(frames[:, :1]))
            decoded = self.tokenizer.decode_context(codes)
            engine = self._prefilled(codes.flatten(1), horizon, rule)
            obs = [frames.flatten(1, 2)]
            actions: list[Tensor] = []
            rewards = [obs[0].new_zeros(len(frames), 1)]
            for step in range(horizon):
                actions.append(self._actions(policy(obs[-1], step)))
                frame = engine.sample_frame(actions[-1], engine.uniform(generator))
                rewards.append(self._reward(frame.hidden_BD))
                known = (frame.ids_BK - self.layout.vocab_context).clamp(0, self.layout.vocab_future - 1)
                seen = self.tokenizer.decode_future(decoded, known[:, None])[:, 0].clamp(0, 1)
                obs.append(torch.cat([obs[-1][:, RGB:], seen], 1))
        actions = [torch.zeros_like(actions[0]), *actions]
        reward_BF = torch.stack(rewards, 1)
        reward_BF = symexp(reward_BF) if symlog else reward_BF
        return Rollout(torch.stack(obs, 1).float(), torch.stack(actions, 1).float(), reward_BF.float())

    def _unstacked(self, obs_u8: Tensor, horizon: int) -> Tensor:
        """Checked; float [B, k, 3, H, W] in [0, 1]."""
        side, least = self.tokenizer.config.image, RGB * self.context
        if obs_u8.dtype != torch.uint8 or obs_u8.dim() != 4 or obs_u8.shape[2:] != (side, side):
            raise ValueError(
                f"obs_u8 must be uint8 [B, 3k, {side}, {side}] (got {obs_u8.dtype} {list(obs_u8.shape)}): "
                "stacked frames, not divided by 255"
            )
        if obs_u8.shape[1] % RGB or obs_u8.shape[1] < least:
            raise ValueError(f"obs_u8 must stack at least {self.context} frames of 3 channels (got {obs_u8.shape[1]})")
        if self.action_dim == 0:
            raise ValueError("this model is action-free: load it with action_dim=A to give it an action embedding")
        if horizon < 1:
            raise ValueError(f"horizon must be >= 1 (got {horizon})")
        return (obs_u8.to(self.device).float() / 255).unflatten(1, (-1, RGB))

    def _reward(self, hidden_BD: Tensor) -> Tensor:
        """Symlog rewards [B, 1]; NaN without the published head."""
        if self.transformer.heads.reward == "none":
            return hidden_BD.new_full((len(hidden_BD), 1), torch.nan)
        if self.transformer.heads.reward != "scalar":
            raise ValueError("the two-hot reward head reads more than tokens: use worldmodel.ivideogpt.IVideoGPT")
        return self.transformer.reward_symlog(hidden_BD).unsqueeze(-1)

    # helpers ----------------------------------------------------------------------------------------------------------

    def _actions(self, action: Tensor) -> Tensor:
        if self.action_dim == 0:
            raise ValueError("this model is action-free: leave action out, or load it with action_dim=A")
        weight = self.transformer.action_linear.weight
        return torch.as_tensor(action, device=weight.device, dtype=weight.dtype)

    def _rule(self, sampling: Sampling, generator: torch.Generator | None) -> SamplingConfig:
        rule = SAMPLINGS.get(sampling) if isinstance(sampling, str) else sampling
        if rule is None:
            raise ValueError(f"sampling must be {', '.join(SAMPLINGS)} or a SamplingConfig (got {sampling})")
        if rule.temperature and generator is None:
            raise ValueError(f"sampling={sampling} draws: give it a generator, or take sampling='argmax'")
        return rule

    def _prefilled(self, context_codes_BN: Tensor, frames: int, rule: SamplingConfig) -> TokenEngine:
        """The engine, having read the context; the last one is kept for calls of the same size."""
        key = (len(context_codes_BN), frames, rule)
        if self._engine is None or self._engine[0] != key:
            self._engine = None  # its cache goes before the next one comes
            self._engine = (key, TokenEngine(self.transformer, rows=key[0], frames=frames, sampling=rule))
        nothing = context_codes_BN.new_empty(key[0], 0, self.layout.codes_future)
        self._engine[1].prefill(context_codes_BN, nothing, None)
        return self._engine[1]


def goal_first(clip: Tensor, *, keep_last: bool = True) -> Tensor:
    """A clip [B, T, ...] for the goal-conditioned model: its last frame first, then all in time (spec 9.3).

    Args:
        keep_last: whether the goal also stays where it was (training: 1 + T frames; the published example drops it).
    """
    return torch.cat([clip[:, -1:], clip if keep_last else clip[:, :-1]], 1)
