"""The data contract: names, dtypes and shapes of every TensorDict that crosses a folder.

Axes: B rows, E environments, T steps of a clip, t context frames, A action, N context codes, K codes of a future frame,
D latent feature, F frames so far, Q proprioception, S state, P snapshot.
Frames are uint8 [3, H, W] everywhere outside a network.

* real step, batch [E]: `pixels` u8 [3,H,W], `proprio` f32 [Q] (what a robot knows of itself, scaled to be about 1),
  `is_init` bool [1], `action` f32 [A] in [-1, 1], the one that was executed, and under `next`: `pixels`, `proprio`,
  `reward` f32 [1] (summed over the action repeat, plus the protocol's bonus), `terminated`, `truncated`, `done`,
  `success` bool [1] (False where the world knows none).
  Beside them, for instruments and for models that declare it (`ModelSpec.obs_keys`): `state` f32 [S], the simulator's
  knowledge, and `snapshot` f64 [P], from which a simulator can go on.
* clip, batch [B]: what a world model reads: t context frames and T frames that follow.
  `context` u8 [t,3,H,W] and `pixels` u8 [T,3,H,W], or their ids `context_codes` i64 [t*N] and `codes` i64 [T,K];
  `proprio` f32 [T,Q], `state` f32 [T,S], `snapshot` f64 [T,P], those that the model reads;
  `action` f32 [T,A], the action that led INTO frame j (zero where the episode begins); for training also
  `reward` f32 [T] received on arriving in frame j, always finite; `reward_mask` bool [T], where it is known (not in the
  frame that opens an episode, nor where nobody recorded it); `continue` f32 [T] (0 where the episode terminated in
  frame j).
* transition, batch [B]: what an off-policy agent learns from, n decisions at most and what was seen before and after.
  `pixels` u8 [3*S,H,W], the S newest frames, oldest first (before an episode its first frame repeats); `action` f32
  [A], the first decision; under `next`: `pixels` as it ends; `reward` f32 [n] and `continue` f32 [n] on arriving in
  each frame; `steps` i64 [], how many decisions there are. `steps` < n where the episode ends before n: then `reward`
  is padded with 0, and `continue` with its last value, 0 where the episode terminated, 1 where it was truncated. The
  n-step return bootstraps from the last real frame, which is `next`'s, and not where the episode terminated:
  sum_k gamma^k (prod_{j<k} continue_j) reward_k + gamma^steps (prod_j continue_j) value(next). (DrQ-v2 leaves out
  starts whose n steps do not fit; here every decision is drawn alike, with a shorter return.)
  Other keys of a frame (`proprio` f32 [S*Q], `state`, `snapshot`) are stacked likewise where they are asked for.
* dream state, batch [B], of fixed shapes (`ModelSpec.state` has all of them): `latent` f32 [D]; `proprio` f32 [Q] of a
  model that reads it; `reward` f32 [1] (environment units) and `continue` f32 [1] in [0, 1]; `wm`, the model's own, and
  in it `frame` i64 [1], how many frames the state knows behind its context, the same in all rows.
  That of iVideoGPT: `context` [t*N], `codes` [M,K] and, where it reads them, `proprio` f32 [M,Q], `actions` f32 [M,A]
  for M = `max_frames`, of which the first `frame` are filled and the others 0; `pooled` f32, the context's vectors;
  `ticket` i64 [1]. Codes are i16, or i32 where a codebook is larger. A state that was encoded from pixels also has
  `frames` u8 [t,3,H,W], the context's, which `observe` needs.
* imagined trajectory, batch [B, H]: the keys that were asked for (`latent`, its named parts, `pixels`, `reward`, ...),
  `action`, and under `next`: the same keys one frame later, `reward` f32 [1] and `continue` f32 [1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from tensordict import TensorDict

ContextMode = Literal["sliding", "first_frame"]
Part: TypeAlias = str
"""A part of a world model that is fitted by itself; `schedule.<part>` and `fit.<part>` say when and how."""
ObsKey = Literal["pixels", "proprio", "state", "snapshot"]
StateKey = str | tuple[str, ...]
Subset = Literal["all", "demos", "recent"]
"""Of the episodes of a replay."""


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """The discrete codes of a model that has any (`worldmodel.api.Tokenizing`).

    Attributes:
        context: N, codes of a context frame.
        future: K, codes of a future frame.
        vocab_context: how many codes there are for a context frame.
        vocab_future: the same for a future frame.
    """

    context: int
    future: int
    vocab_context: int
    vocab_future: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What others may know of a world model.

    Attributes:
        image: side of the square frames in pixels.
        context_frames: context frames t.
        action_dim: A.
        max_frames: future frames that fit behind one context; a model that dreams has more than `burn_in`.
        context: `sliding`: the context is the t frames just before the clip (the paper); `first_frame`: the
            episode's first frame, t times, for the whole episode; the clip's first frame is observed, not predicted.
        burn_in: real frames T given after the context when imagination or acting starts (0 is possible with
            `sliding`).
        obs_keys: what of a real step the model reads; a clip carries these keys and no others of their kind.
        latent: named parts of the feature that an agent reads, in order, and their widths.
        state: shape of one row and dtype of everything in a dream state, at every step.
        parts: what of it is fitted, in this order; the losses of the last part judge the whole model.
        codes: None for a model without codes.
        rewards: whether rewards are predicted; if not, those of imagined states are nan.
    """

    image: int
    context_frames: int
    action_dim: int
    max_frames: int
    context: ContextMode
    burn_in: int
    obs_keys: tuple[ObsKey, ...] = ("pixels",)
    latent: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[StateKey, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    codes: CodeSpec | None = None
    rewards: bool = True

    @property
    def dreams(self) -> bool:
        """Whether the model imagines any frame."""
        return self.max_frames > self.burn_in

    @property
    def latent_dim(self) -> int:
        """D, width of the whole latent."""
        return sum(self.latent.values())

    def require_horizon(self, horizon: int) -> None:
        """Raises: ValueError if so many imagined frames do not fit behind the observed ones."""
        if self.burn_in + horizon > self.max_frames:
            raise ValueError(
                f"horizon must be <= {self.max_frames - self.burn_in}, the frames that fit behind the model's context "
                f"and its {self.burn_in} observed ones (got {horizon}); lower agent.horizon"
            )

    def part_of(self, latent: torch.Tensor, name: str) -> torch.Tensor:
        """A named part of latents [..., D]."""
        names = list(self.latent)
        return latent.split(list(self.latent.values()), -1)[names.index(name)]


class Rollout(NamedTuple):
    """What was imagined, and whence it can be continued.

    Attributes:
        path: imagined trajectory [B, H].
        state: the dream state after its last step.
        memory: the policy's after its last action.
    """

    path: TensorDict
    state: TensorDict
    memory: Any


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What others may know of an environment.

    Attributes:
        image: side of the square frames in pixels.
        action_dim: A (one-hot width if `discrete`).
        discrete: actions are one of A choices, given as a one-hot vector.
        action_repeat: simulator steps per decision.
        decisions: decisions per episode before truncation.
        terminates: whether an episode can end by itself; if not, `continue` is 1 and needs no head.
        proprio_dim: Q.
    """

    image: int
    action_dim: int
    discrete: bool
    action_repeat: int
    decisions: int
    terminates: bool
    proprio_dim: int = 0


def is_action(given: Any, rows: int) -> bool:
    """Whether that is a plain tensor of real numbers [rows, A]."""
    fits = isinstance(given, torch.Tensor) and given.ndim == 2 and len(given) == rows
    return bool(fits and not given.is_complex() and is_plain(given))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it has values that lie in rows: it is not sparse, not packed, and not of sizes alone."""
    return tensor.layout is torch.strided and tensor.device.type != "meta"
