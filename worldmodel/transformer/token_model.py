"""TokenModel: token ids and actions in; hidden states, next-code logits, reward and continuation out.

It knows the token layout and nothing of frames, tokenizers or caches.
"""

# B rows, N positions, F future frames, K codes of a future frame, T frames of a clip, A action, D hidden, E feature

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.layout import TokenLayout
from worldmodel.sequence import IGNORED, layout_ids, layout_labels
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig, sight
from worldmodel.transformer.initial import Unset, uniform, zero
from worldmodel.transformer.llama import INIT_STD, TransformerConfig
from worldmodel.twohot import TwoHot, symexp, symlog


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How actions get in, and what is read off the hidden state at the end of each frame.

    Attributes:
        action: where the action into a frame is added: `slot`, at the token that opens it (published); `frame`, at each
            of its tokens, so that no attention has to be learned before actions have any effect.
        reward: `none`; `scalar`: the published linear layer on the hidden state, squared error on symlog rewards;
            `twohot`: an MLP on [hidden, the caller's feature], cross-entropy on two-hot rewards (`worldmodel.twohot`).
        bins: two-hot bins, spread evenly under symlog over [low, high]; 0 unless `twohot`.
        low: symlog reward of the first bin; 0 unless `twohot`.
        high: symlog reward of the last bin; 0 unless `twohot`.
        width: inner width of the two-hot MLP; 0 unless `twohot`.
        action_recon: weight of the published action-reconstruction loss (spec 8.1 step 5); 0 means no such head.
    """

    action: Literal["slot", "frame"]
    reward: Literal["none", "scalar", "twohot"]
    bins: int
    low: float
    high: float
    width: int
    action_recon: float

    def __post_init__(self) -> None:
        if self.action not in ("slot", "frame"):
            raise ValueError(f"action must be slot or frame (got {self.action})")
        if self.reward not in ("none", "scalar", "twohot"):
            raise ValueError(f"reward must be none, scalar or twohot (got {self.reward})")
        if self.action_recon < 0:
            raise ValueError(f"action_recon must be >= 0 (got {self.action_recon})")
        if self.reward != "twohot":
            for name in ("bins", "low", "high", "width"):
                if getattr(self, name) != 0:
                    raise ValueError(f"{name} must be 0 with reward={self.reward} (got {getattr(self, name)})")
            return
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2 with reward=twohot (got {self.bins})")
        if self.width < 1:
            raise ValueError(f"width must be at least 1 with reward=twohot (got {self.width})")
        if not -40 <= self.low < self.high <= 40:
            raise ValueError(f"low must be below high, both within 40 of 0 (got {self.low} and {self.high})")
        if self.low == -self.high and self.bins % 2 == 0:
            raise ValueError(f"bins must be odd with low=-high, so that 0 is a bin (got {self.bins})")


class TokenOutput(NamedTuple):
    """What a plain pass over whole strings gives.

    Attributes:
        loss: mean cross-entropy (nats) of logits[:, :-1] against labels[:, 1:]; None without labels.
        logits: [B, N, V], at least float32.
        rewards: [B, F, 1] predicted rewards, symlog, read at each frame's last code; None without a `scalar` head.
        hidden: [B, N, D] post-norm hidden states.
    """

    loss: Tensor | None
    logits: Tensor
    rewards: Tensor | None
    hidden: Tensor


class TokenModel(nn.Module):
    """The language model with an action embedding and the heads (spec section 8; published names where they exist)."""

    def __init__(
        self,
        transformer: TransformerConfig,
        layout: TokenLayout,
        *,
        condition_dim: int,
        heads: HeadConfig,
        feature_dim: int,
        continues: bool,
        generator: torch.Generator,
        proprio_dim: int = 0,
        features_VJ: Tensor | None = None,
        decoding: DecodingConfig = AUTOREGRESSIVE,
    ) -> None:
        """Fresh weights from `generator`; action embedding, continue and proprio outputs start at zero, rewards near 0.

        Args:
            condition_dim: A, width of what is given with each frame: the action, and what is known of the robot; 0
                makes an action-free model, which has no action embedding.
            features_VJ: what embedding and output matrix are composed of (`Llama`); None: free rows.
            proprio_dim: numbers Q whose push a head predicts; an action has what is known of them behind it (in A too).
            feature_dim: width E of the feature that the two-hot head reads beside the hidden state.
            continues: whether a head predicts that the episode goes on (else the probability is 1).
            decoding: what predicts the codes of a frame.
        Raises: ValueError where `decoding` has more passes than a frame has codes.
        """
        super().__init__()
        self.decoding, self.draws = decoding, decoding.draws(layout.codes_future)
        self.layout, self.heads, self.condition_dim, self.has_continue = layout, heads, condition_dim, continues
        hidden = transformer.hidden
        self.llm = transformer.build(vocab=layout.vocab, generator=generator, features_VJ=features_VJ)
        if condition_dim:
            self.action_linear = zero(Unset(condition_dim, hidden))  # what is given actions starts unchanged
        if heads.reward == "scalar":
            self.reward_linear = uniform(Unset(hidden, 1), generator)
        if heads.reward == "twohot":
            first = uniform(Unset(hidden + feature_dim, heads.width), generator)
            last = zero(Unset(heads.width, heads.bins))
            self.reward_head = nn.Sequential(first, nn.RMSNorm(heads.width, eps=1e-6), nn.SiLU(), last)
            self.twohot = TwoHot(low=heads.low, high=heads.high, bins=heads.bins)
            with torch.no_grad():  # evenly over [low, high] the mean would be the largest bins', in every unknown state
                last.bias.copy_(self.twohot.peak_at_zero())
        if continues:
            self.continue_linear = zero(Unset(hidden, 1))
        if proprio_dim:
            self.proprio_linear = zero(Unset(hidden + condition_dim, proprio_dim))
        if heads.action_recon:
            self.action_recon_linear = uniform(Unset(hidden, condition_dim), generator)
        if decoding.has_queries:
            self.frame_queries = nn.Parameter(torch.empty(layout.codes_future, hidden))
            nn.init.normal_(self.frame_queries, std=INIT_STD, generator=generator)

    def embed(self, ids_BN: Tensor, actions_BFA: Tensor | None) -> Tensor:
        """Input embeddings [B, N, D]; actions_BFA[:, j] is added at the `sdf` of future frame j, or all over the frame.

        Args:
            ids_BN: vocabulary ids of whole frames (see `layout_ids`).
            actions_BFA: float [B, F, A], the action that leads INTO frame j; None adds nothing.
        """
        embeddings_BND = self.llm.embed(ids_BN)
        if actions_BFA is None or (self.condition_dim == 0 and actions_BFA.shape[-1] == 0):
            return embeddings_BND
        frames = self.layout.frames(ids_BN.shape[1])
        if actions_BFA.shape != (wanted := (ids_BN.shape[0], frames, self.condition_dim)):
            raise ValueError(f"actions {tuple(actions_BFA.shape)} must be {wanted}")
        added_BND = torch.zeros_like(embeddings_BND)
        action_BFD = self.action_linear(actions_BFA).to(added_BND.dtype)
        if self.heads.action == "slot":
            added_BND[:, self.layout.prelude :: self.layout.stride] = action_BFD
        else:
            added_BND[:, self.layout.prelude :] = action_BFD.repeat_interleave(self.layout.stride, 1)
        return embeddings_BND + added_BND

    def hidden_states(
        self, ids_BN: Tensor, actions_BFA: Tensor | None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Hidden states [B, N, D] after the final norm of every position; `generator` feeds dropout in train mode."""
        return self.llm(self.embed(ids_BN, actions_BFA), generator=generator)

    def queries(self, embedded: Tensor, known: Tensor, added: Tensor | float) -> Tensor:
        """Input embeddings [..., K, D] of a frame's queries.

        Args:
            embedded: [..., K, D], embeddings of the frame's ids.
            known: bool [..., K], which of these are shown.
            added: [..., 1, D], what the action into the frame adds.
        """
        return torch.where(known.unsqueeze(-1), embedded, self.frame_queries) + added

    def predicting(
        self,
        ids_BN: Tensor,
        actions_BFA: Tensor | None,
        *,
        known_BFK: Tensor | None,
        first: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [B, P, D] of all future positions, and those [B, f, K, D] that predict the codes of f frames.

        Nothing is read from the context's positions, about half of a clip: the last block leaves their output away.

        Args:
            known_BFK: bool [B, F, K], which codes of its own frame a query sees; None: there are no queries.
            first: the first of the f frames; the others up to the end follow.
            generator: source of dropout.
        """
        embeddings_BND, length = self.embed(ids_BN, actions_BFA), ids_BN.shape[1]
        by_frame = (self.layout.frames(length), self.layout.stride)
        if known_BFK is None:
            hidden_BPD = self.llm(embeddings_BND, generator=generator, keep=length - self.layout.prelude)
            return hidden_BPD, hidden_BPD.unflatten(1, by_frame)[:, first:, :-1]
        ids_BfK = ids_BN[:, self.layout.prelude :].unflatten(1, by_frame)[:, first:, 1:]
        added: Tensor | float = 0.0
        if actions_BFA is not None and actions_BFA.shape[-1]:
            added = self.action_linear(actions_BFA[:, first:]).unsqueeze(2)
        queries_BfKD = self.queries(self.llm.embed(ids_BfK), known_BFK[:, first:], added)
        there = sight(self.layout, by_frame[0], first=first, device=ids_BN.device)
        both_BMD = torch.cat([embeddings_BND, queries_BfKD.flatten(1, 2)], 1)
        future = length - self.layout.prelude
        hidden_BMD = self.llm(both_BMD, generator=generator, sight=there, keep=both_BMD.shape[1] - self.layout.prelude)
        return hidden_BMD[:, :future], hidden_BMD[:, future:].unflatten(1, ids_BfK.shape[1:])

    def forward(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        action: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> TokenOutput:
        """The published pass over whole strings (spec 8.1); training has `losses`, which computes fewer logits.

        Args:
            ids: int64 [B, N] vocabulary ids.
            labels: int64 [B, N], aligned with the ids.
            action: float [B, T, A] or [B, T-1, A], the published rows: row k leads from frame k of the clip (its
                context included) to frame k + 1. None adds nothing.
            generator: source of dropout, in train mode.
        Raises: ValueError if the shapes do not fit together.
        """
        frames = self.layout.frames(ids.shape[1])
        hidden = self.hidden_states(
            ids, None if action is None else self.into_frames(action, frames), generator=generator
        )
        logits, loss = self.llm.logits(hidden), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        rewards = None
        if self.heads.reward == "scalar":
            rewards = self.reward_symlog(self.frame_hidden(hidden[:, self.layout.prelude :])).unsqueeze(-1)
        return TokenOutput(loss, logits, rewards, hidden)

    def into_frames(self, action_BTA: Tensor, frames: int) -> Tensor:
        """The actions [B, F, A] that lead into the future frames, of the published rows of a clip (see `forward`).

        Raises: ValueError if there are not T or T - 1 rows.
        """
        first, rows = self.layout.context - 1, action_BTA.shape[1]
        if rows - first not in (frames, frames + 1):
            raise ValueError(
                f"action {tuple(action_BTA.shape)} must have {first + frames} or {first + frames + 1} rows, one for "
                f"each frame of the clip ({self.layout.context} context and {frames} future ones; the last is not read)"
            )
        return action_BTA[:, first : first + frames]

    def frame_hidden(self, hidden_BPD: Tensor) -> Tensor:
        """The hidden states at each future frame's last code, [B, F, D]: there reward and feature are read."""
        return hidden_BPD[:, self.layout.stride - 1 :: self.layout.stride]

    def code_loss(self, hidden_BND: Tensor, labels_BN: Tensor) -> Tensor:
        """Mean cross-entropy (nats) of the supervised next ids, of which labels_BN are aligned with the positions."""
        logits, targets_BN = self.llm.logits(hidden_BND[:, :-1]), labels_BN[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets_BN.flatten(), ignore_index=IGNORED)

    def frame_loss(self, predicting_BFKD: Tensor, codes_BFK: Tensor, known_BFK: Tensor | None) -> Tensor:
        """Mean cross-entropy (nats) of each frame's codes, [B, F]; of those that no query was shown.

        Args:
            predicting_BFKD: see `predicting`.
        """
        logits, ids_BFK = self.llm.logits(predicting_BFKD), codes_BFK + self.layout.vocab_context
        nats_BFK = F.cross_entropy(logits.flatten(0, 2), ids_BFK.flatten(), reduction="none").view_as(codes_BFK)
        if known_BFK is None:
            return nats_BFK.mean(-1)
        return nats_BFK.masked_fill(known_BFK, 0).sum(-1) / (~known_BFK).sum(-1)

    def reward_symlog(self, hidden: Tensor) -> Tensor:
        """Symlog reward [...] of the `scalar` head, the published one, from hidden [..., D]."""
        return self.reward_linear(hidden).squeeze(-1).float()

    def reward(self, hidden: Tensor, feature: Tensor | None = None) -> Tensor:
        """Predicted reward [...] in environment units from hidden [..., D] and, for `twohot`, feature [..., E]."""
        if self.heads.reward == "scalar":
            return symexp(self.reward_symlog(hidden))
        logits = self._reward_logits(hidden, feature)
        return self.twohot.decode(logits)

    def reward_loss(self, hidden: Tensor, reward: Tensor, feature: Tensor | None = None) -> Tensor:
        """Loss of every frame [...], not averaged: squared symlog error, or two-hot cross-entropy in nats.

        Args:
            reward: [...] environment units.
        """
        if self.heads.reward == "scalar":
            return (self.reward_symlog(hidden) - symlog(reward.float())).square()
        logits = self._reward_logits(hidden, feature)
        return self.twohot.loss(logits, reward)

    def continues(self, hidden: Tensor) -> Tensor:
        """Probability [...] that the episode goes on after the frame; 1 without a head."""
        if not self.has_continue:
            return torch.ones(hidden.shape[:-1], device=hidden.device)
        return self._continue_logit(hidden).sigmoid()

    def continue_loss(self, hidden: Tensor, goes_on: Tensor) -> Tensor:
        """Binary cross-entropy of every frame [...], not averaged; goes_on is 0 where the episode ended, else 1."""
        return F.binary_cross_entropy_with_logits(self._continue_logit(hidden), goes_on, reduction="none")

    def action_recon_loss(self, hidden_BPD: Tensor, actions_BFA: Tensor) -> Tensor:
        """Mean squared error of each frame's action, read from every position of the frame (spec 8.1 step 5)."""
        read_BPA = self.action_recon_linear(hidden_BPD)
        return (read_BPA - actions_BFA.repeat_interleave(self.layout.stride, 1)).square().mean()

    def losses(
        self,
        context_codes_BtN: Tensor,
        codes_BFK: Tensor,
        *,
        actions_BFA: Tensor | None,
        features_BFE: Tensor | None,
        reward_BF: Tensor,
        reward_mask_BF: Tensor,
        continue_BF: Tensor,
        num_observed: int,
        generator: torch.Generator,
        read_BFK: Tensor | None = None,
        acceleration_BFQ: Tensor | None = None,
        burn_in: int = 0,
        known_BFK: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalar losses of a training clip, as many as there are heads: codes, reward, continue, proprio, action_recon.

        Args:
            codes_BFK: what is to be predicted.
            read_BFK: what the model reads instead, a disturbed form of `codes_BFK`.
            acceleration_BFQ: [B, F, Q] target of `acceleration`; without the `burn_in` frames, which no dream predicts.
            reward_BF: [B, F] reward received on arriving in frame j, environment units; finite.
            reward_mask_BF: bool [B, F], where it is known; the reward loss is the mean over these.
            continue_BF: float [B, F], 0 where the episode terminated in frame j.
            given: leading frames whose codes are not supervised.
            known_BFK: what queries see of their own frame (`DecodingConfig.shown`).
            generator: source of dropout.
        """
        targets_BN = layout_ids(context_codes_BtN, codes_BFK, self.layout)
        ids_BN = targets_BN if read_BFK is None else layout_ids(context_codes_BtN, read_BFK, self.layout)
        hidden_BPD, predicting_BfKD = self.predicting(
            ids_BN, actions_BFA, known_BFK=known_BFK, first=num_observed, generator=generator
        )
        hidden_BFD = self.frame_hidden(hidden_BPD)
        if known_BFK is None:  # the separators are ids to be predicted, too
            labels_BN = layout_labels(targets_BN, self.layout, num_observed=num_observed)
            observed = self.layout.stride * num_observed  # no logits where nothing is supervised
            supervised_BP = labels_BN[:, self.layout.prelude + observed :]
            losses = {"codes": self.code_loss(hidden_BPD[:, observed:], supervised_BP)}
        else:
            supervised = (codes_BFK[:, num_observed:], known_BFK[:, num_observed:])
            losses = {"codes": self.frame_loss(predicting_BfKD, *supervised).mean()}
        if self.heads.reward != "none":
            each_BF = self.reward_loss(hidden_BFD, reward_BF, features_BFE) * reward_mask_BF
            losses["reward"] = each_BF.sum() / reward_mask_BF.sum().clamp(min=1)
        if self.has_continue:
            losses["continue"] = self.continue_loss(hidden_BFD, continue_BF).mean()
        if acceleration_BFQ is not None and actions_BFA is not None:
            losses["proprio"] = (
                (self.acceleration(hidden_BFD, actions_BFA) - acceleration_BFQ)[:, burn_in:].square().mean()
            )
        if self.heads.action_recon and actions_BFA is not None:
            losses["action_recon"] = self.heads.action_recon * self.action_recon_loss(hidden_BPD, actions_BFA)
        return losses

    def acceleration(self, hidden: Tensor, action: Tensor) -> Tensor:
        """What a decision adds to the proprioception's last change [..., Q], times `worldmodel.proprio.CHANGE_GAIN`.

        It is read from the hidden state and, without the detour, from the action with what is known behind it.
        """
        return self.proprio_linear(torch.cat([hidden, action.to(hidden.dtype)], -1)).float()

    def _reward_logits(self, hidden: Tensor, feature: Tensor | None) -> Tensor:
        if self.heads.reward != "twohot":
            raise ValueError("this model has no reward head (heads.reward=none): build it with scalar or twohot")
        read = hidden if feature is None else torch.cat([hidden, feature.to(hidden.dtype)], -1)
        return self.reward_head(read).float()

    def _continue_logit(self, hidden: Tensor) -> Tensor:
        return self.continue_linear(hidden).squeeze(-1).float()
