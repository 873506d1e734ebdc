"""TokenModel: token ids and actions in; hidden states, next-code logits, reward and continuation out.

It knows the token layout and nothing of frames, tokenizers or caches.
"""

# B rows, N positions, F future frames, K codes of a future frame, T frames of a clip, A action, D hidden, E feature

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.layout import TokenLayout
from worldmodel.transformer.llama import TransformerConfig

IGNORED = -100  # label of a position that is not supervised (torch's own convention)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How actions get in, and what is read off the hidden state at the end of each frame.

    Attributes:
        action: where the action into a frame is added: `slot`, at the token that opens it (published); `frame`, at each
            of its tokens, so that no attention has to be learned before actions have any effect.
        reward: `none`; `scalar`: the published linear layer on the hidden state, squared error on symlog rewards;
            `twohot`: an MLP on [hidden, the caller's feature], cross-entropy on two-hot symlog rewards.
        bins: two-hot bins, spread evenly over [low, high]; 0 unless `twohot`.
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
        if not self.low < self.high:
            raise ValueError(f"low must be below high (got {self.low} and {self.high})")


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(|x| + 1)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def layout_ids(context_codes_BtN: Tensor, codes_BFK: Tensor, layout: TokenLayout) -> Tensor:
    """The token string of codes (spec section 4): offsets added, separators put in.

    Args:
        context_codes_BtN: int64 [B, t*N] or [B, t, N], codes in [0, vocab_context), frame after frame.
        codes_BFK: int64 [B, F, K], codes in [0, vocab_future); F = 0 gives the context alone.
    Returns: int64 [B, layout.length(F)] vocabulary ids.
    Raises: ValueError if the number of codes does not fit the layout.
    """
    return string_of_ids(context_codes_BtN, codes_BFK + layout.vocab_context, layout)


def string_of_ids(context_codes_BtN: Tensor, ids_BFK: Tensor, layout: TokenLayout) -> Tensor:
    """As `layout_ids`, for future frames that are vocabulary ids already (a model may have drawn any id)."""
    rows = context_codes_BtN.shape[0]
    per_row = layout.context * layout.codes_context
    if context_codes_BtN[0].numel() != per_row:
        raise ValueError(
            f"context codes {tuple(context_codes_BtN.shape)} must be {per_row} = {layout.context} frames x "
            f"{layout.codes_context} codes per row"
        )
    if ids_BFK.dim() != 3 or ids_BFK.shape[0] != rows or ids_BFK.shape[2] != layout.codes_future:
        raise ValueError(f"future ids {tuple(ids_BFK.shape)} must be [{rows}, F, {layout.codes_future}]")
    context_BtN = context_codes_BtN.reshape(rows, layout.context, layout.codes_context)
    opened_BtN = F.pad(context_BtN, (1, 0), value=layout.scf).flatten(1)
    return torch.cat([opened_BtN[:, 1:], F.pad(ids_BFK, (1, 0), value=layout.sdf).flatten(1)], 1)


def layout_labels(ids_BN: Tensor, layout: TokenLayout, *, given: int = 0) -> Tensor:
    """Labels aligned with the ids: IGNORED up to and including the `sdf` of the first supervised frame.

    Args:
        given: leading future frames that are observed, not predicted.
    Returns: int64 [B, N]; with given = 0 the published labels: all codes and every later `sdf` are targets.
    """
    labels_BN = ids_BN.clone()
    labels_BN[:, : layout.sdf_position(given) + 1] = IGNORED
    return labels_BN


def align_clip(
    action_BTA: Tensor, reward_BT: Tensor, *, context: int, target: Literal["arriving", "published"]
) -> tuple[Tensor, Tensor]:
    """Actions and reward targets of the future frames of a published clip, whose row k is the transition k -> k + 1.

    Args:
        action_BTA: [B, T, A]; the action that leads into future frame j is row t - 1 + j.
        reward_BT: [B, T], environment units.
        target: `arriving`: the reward of the transition that led into frame j, row t - 1 + j; `published`: QUIRK 14,
            the next transition's reward, row t + j.
    Returns: actions [B, F, A] and rewards [B, F], F = T - t.
    """
    if target not in ("arriving", "published"):
        raise ValueError(f"target must be arriving or published (got {target})")
    rewards_BF = reward_BT[:, context - 1 : -1] if target == "arriving" else reward_BT[:, context:]
    return action_BTA[:, context - 1 : -1], rewards_BF


class TokenModel(nn.Module):
    """The language model with an action embedding and the heads (spec section 8; published names where they exist)."""

    bins: Tensor

    def __init__(
        self,
        transformer: TransformerConfig,
        layout: TokenLayout,
        *,
        action_dim: int,
        heads: HeadConfig,
        feature_dim: int,
        continues: bool,
        generator: torch.Generator,
        proprio_dim: int = 0,
        features_VJ: Tensor | None = None,
    ) -> None:
        """Fresh weights from `generator`; the action embedding, two-hot, continue and proprio outputs start at zero.

        Args:
            features_VJ: what embedding and output matrix are composed of (`Llama`); None: free rows.
            proprio_dim: numbers Q whose change a head predicts; an action then has them behind it (A includes Q).
            feature_dim: width E of the feature that the two-hot head reads beside the hidden state.
            continues: whether a head predicts that the episode goes on (else the probability is 1).
        """
        super().__init__()
        self.layout, self.heads, self.action_dim, self.has_continue = layout, heads, action_dim, continues
        hidden = transformer.hidden
        self.llm = transformer.build(vocab=layout.vocab, generator=generator, features_VJ=features_VJ)
        self.action_linear = _zero(_Unset(action_dim, hidden))  # an action-free model starts unchanged
        if heads.reward == "scalar":
            self.reward_linear = _uniform(_Unset(hidden, 1), generator)
        if heads.reward == "twohot":
            first = _uniform(_Unset(hidden + feature_dim, heads.width), generator)
            last = _zero(_Unset(heads.width, heads.bins))
            self.reward_head = nn.Sequential(first, nn.RMSNorm(heads.width, eps=1e-6), nn.SiLU(), last)
            self.register_buffer("bins", torch.linspace(heads.low, heads.high, heads.bins), persistent=False)
        if continues:
            self.continue_linear = _zero(_Unset(hidden, 1))
        if proprio_dim:
            self.proprio_linear = _zero(_Unset(hidden, proprio_dim))
        if heads.action_recon:
            self.action_recon_linear = _uniform(_Unset(hidden, action_dim), generator)

    def embed(self, ids_BN: Tensor, actions_BFA: Tensor | None) -> Tensor:
        """Input embeddings [B, N, D]; actions_BFA[:, j] is added at the `sdf` of future frame j, or all over the frame.

        Args:
            ids_BN: vocabulary ids of whole frames (see `layout_ids`).
            actions_BFA: float [B, F, A], the action that leads INTO frame j; None for an action-free model.
        """
        embeddings_BND = self.llm.embed(ids_BN)
        if actions_BFA is None:
            return embeddings_BND
        frames = self.layout.frames(ids_BN.shape[1])
        if actions_BFA.shape != (ids_BN.shape[0], frames, self.action_dim):
            raise ValueError(f"actions {tuple(actions_BFA.shape)} must be {(ids_BN.shape[0], frames, self.action_dim)}")
        added_BND = torch.zeros_like(embeddings_BND)
        action_BFD = self.action_linear(actions_BFA).to(added_BND.dtype)
        if self.heads.action == "slot":
            added_BND[:, self.layout.prelude :: self.layout.stride] = action_BFD
        else:
            added_BND[:, self.layout.prelude :] = action_BFD.repeat_interleave(self.layout.stride, 1)
        return embeddings_BND + added_BND

    def forward(
        self, ids_BN: Tensor, actions_BFA: Tensor | None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Hidden states [B, N, D] after the final norm of every position; `generator` feeds dropout in train mode."""
        return self.llm(self.embed(ids_BN, actions_BFA), generator=generator)

    def frame_hidden(self, hidden_BND: Tensor) -> Tensor:
        """The hidden states at each future frame's last code, [B, F, D]: there reward and feature are read."""
        return hidden_BND[:, self.layout.reward_position(0) :: self.layout.stride]

    def code_loss(self, hidden_BND: Tensor, labels_BN: Tensor) -> Tensor:
        """Mean cross-entropy (nats) of the supervised next ids; logits are computed at their positions only."""
        targets_BN = labels_BN[:, 1:]
        supervised_BN = targets_BN != IGNORED
        return F.cross_entropy(self.llm.logits(hidden_BND[:, :-1][supervised_BN]), targets_BN[supervised_BN])

    def reward_symlog(self, hidden: Tensor, feature: Tensor | None = None) -> Tensor:
        """Predicted symlog reward [...] from hidden [..., D] and, read by the two-hot head only, feature [..., E]."""
        if self.heads.reward == "scalar":
            return self.reward_linear(hidden).squeeze(-1).float()
        return self._reward_logits(hidden, feature).softmax(-1) @ self.bins

    def reward(self, hidden: Tensor, feature: Tensor | None = None) -> Tensor:
        """Predicted reward [...] in environment units; arguments as for `reward_symlog`."""
        return symexp(self.reward_symlog(hidden, feature))

    def reward_loss(self, hidden: Tensor, reward: Tensor, feature: Tensor | None = None) -> Tensor:
        """Loss of every frame [...], not averaged: squared symlog error, or two-hot cross-entropy in nats.

        Args:
            reward: [...] environment units.
        """
        target = symlog(reward.float())
        if self.heads.reward == "scalar":
            return (self.reward_symlog(hidden) - target).square()
        return -(two_hot(target, self.bins) * self._reward_logits(hidden, feature).log_softmax(-1)).sum(-1)

    def continues(self, hidden: Tensor) -> Tensor:
        """Probability [...] that the episode goes on after the frame; 1 without a head."""
        if not self.has_continue:
            return torch.ones(hidden.shape[:-1], device=hidden.device)
        return self._continue_logit(hidden).sigmoid()

    def continue_loss(self, hidden: Tensor, goes_on: Tensor) -> Tensor:
        """Binary cross-entropy of every frame [...], not averaged; goes_on is 0 where the episode ended, else 1."""
        return F.binary_cross_entropy_with_logits(self._continue_logit(hidden), goes_on, reduction="none")

    def action_recon_loss(self, hidden_BND: Tensor, actions_BFA: Tensor) -> Tensor:
        """Mean squared error of each frame's action, read from every position of the frame (spec 8.1 step 5)."""
        read_BPA = self.action_recon_linear(hidden_BND[:, self.layout.prelude :])
        return (read_BPA - actions_BFA.repeat_interleave(self.layout.stride, 1)).square().mean()

    def losses(
        self,
        context_codes_BtN: Tensor,
        codes_BFK: Tensor,
        *,
        actions_BFA: Tensor | None,
        features_BFE: Tensor | None,
        reward_BF: Tensor,
        reward_known_BF: Tensor,
        continue_BF: Tensor,
        given: int,
        generator: torch.Generator,
        read_BFK: Tensor | None = None,
        change_BFQ: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalar losses of a training clip, as many as there are heads: codes, reward, continue, proprio, action_recon.

        Args:
            codes_BFK: what is to be predicted.
            read_BFK: what the model reads instead, a disturbed form of `codes_BFK`.
            change_BFQ: [B, F, Q] change of the proprioception into frame j; not supervised in the `given` frames and in
                the first, of which nothing earlier is known.
            reward_BF: [B, F] reward received on arriving in frame j, environment units.
            reward_known_BF: bool [B, F]; the reward loss is the mean over these.
            continue_BF: float [B, F], 0 where the episode terminated in frame j.
            given: leading frames whose codes are not supervised.
            generator: source of dropout.
        """
        targets_BN = layout_ids(context_codes_BtN, codes_BFK, self.layout)
        ids_BN = targets_BN if read_BFK is None else layout_ids(context_codes_BtN, read_BFK, self.layout)
        hidden_BND = self(ids_BN, actions_BFA, generator=generator)
        hidden_BFD = self.frame_hidden(hidden_BND)
        losses = {"codes": self.code_loss(hidden_BND, layout_labels(targets_BN, self.layout, given=given))}
        if self.heads.reward != "none":
            # an unknown reward may be NaN, which would survive a product with 0
            known_BF = reward_BF.masked_fill(~reward_known_BF, 0)
            each_BF = self.reward_loss(hidden_BFD, known_BF, features_BFE) * reward_known_BF
            losses["reward"] = each_BF.sum() / reward_known_BF.sum().clamp(min=1)
        if self.has_continue:
            losses["continue"] = self.continue_loss(hidden_BFD, continue_BF).mean()
        if change_BFQ is not None:
            losses["proprio"] = (self.proprio_linear(hidden_BFD) - change_BFQ)[:, max(given, 1) :].square().mean()
        if self.heads.action_recon and actions_BFA is not None:
            losses["action_recon"] = self.heads.action_recon * self.action_recon_loss(hidden_BND, actions_BFA)
        return losses

    def _reward_logits(self, hidden: Tensor, feature: Tensor | None) -> Tensor:
        if self.heads.reward != "twohot":
            raise ValueError("this model has no reward head (heads.reward=none): build it with scalar or twohot")
        read = hidden if feature is None else torch.cat([hidden, feature.to(hidden.dtype)], -1)
        return self.reward_head(read).float()

    def _continue_logit(self, hidden: Tensor) -> Tensor:
        return self.continue_linear(hidden).squeeze(-1).float()


def two_hot(x: Tensor, bins_n: Tensor) -> Tensor:
    """Weights [..., n] on evenly spaced bins whose mean is x, at most two neighbours non-zero; x is clamped to them.

    >>> two_hot(torch.tensor([0.25, 9.0]), torch.tensor([0.0, 1.0, 2.0])).tolist()
    [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]
    """
    spacing = bins_n[1] - bins_n[0]
    place = ((x.clamp(bins_n[0], bins_n[-1]) - bins_n[0]) / spacing).unsqueeze(-1)
    return (1 - (place - torch.arange(len(bins_n), device=x.device)).abs()).clamp(min=0)


class _Unset(nn.Linear):
    """A linear layer that draws nothing when made; `_zero` or `_uniform` fills it."""

    def reset_parameters(self) -> None:
        """Leave weight and bias unset."""


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _uniform(linear: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Torch's own initial range, drawn from `generator`."""
    bound = linear.in_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear
