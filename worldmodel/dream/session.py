"""A batch of dreams that begin and end together: what the faces for TorchRL and Gymnasium have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.dream.imagine import Dream
from worldmodel.spec import EnvSpec

Starts = Callable[[int, int], TensorDict]
"""Rows, number of the draw -> clips [rows] (worldmodel.spec) of `spec.burn_in` frames, on any device."""
DRAWS = 2**32
"""Of one seed: those of different seeds are never the same."""


class DreamSession:
    """Where dreams begin, what random numbers they draw, which actions they take, and when they are over.

    It holds no state of theirs but counters. The frame that follows a state is sampled as in `Dream.rollout`, with
    numbers named by the stream, the draw and the state's own frames: who goes back to draw k gets the same bits.
    """

    def __init__(
        self,
        dream: Dream,
        env_spec: EnvSpec,
        *,
        horizon: int,
        starts: Starts | None,
        rows: int | None,
        stream: str,
        device: torch.device | str,
    ) -> None:
        """Args:
            env_spec: of the world that the model was fitted to: it says what an action is.
            horizon: imagined frames after which a dream is over.
            starts: where dreams begin; None with `rows` None: from given states only.
            rows: how many begin at once.
            stream: with draw and frame, names the random numbers of an imagined frame.
            device: where the model's weights are.
        Raises: ValueError in one line.
        """
        spec, most = dream.spec, dream.spec.max_frames - dream.spec.burn_in
        if env_spec.action_dim != spec.action_dim:
            raise ValueError(
                f"env_spec.action_dim must be the world model's, {spec.action_dim} (got {env_spec.action_dim})"
            )
        if not spec.rewards:
            raise ValueError("an environment pays rewards, and this world model predicts none (heads.reward=none)")
        if not 1 <= horizon <= most:
            raise ValueError(f"horizon must be in [1, {most}], what fits behind a start of the model (got {horizon})")
        if (starts is None) != (rows is None):
            raise ValueError(f"starts and rows go together: both, or none of them (got rows={rows})")
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be >= 1 (got {rows})")
        self.dream, self.rows, self.device = dream, rows, torch.device(device)
        self._discrete, self._last = env_spec.discrete, spec.burn_in + horizon
        self._starts, self._stream = starts, stream
        self._draw = self._next_draw = 0

    @property
    def draw(self) -> int:
        """Number of the dreams that go on now; assigning it says which the next reset begins."""
        return self._draw

    @draw.setter
    def draw(self, number: int) -> None:
        if number < 0:
            raise ValueError(f"draw must be >= 0 (got {number})")
        self._draw = self._next_draw = number

    def seed(self, seed: int) -> None:
        """From the next reset on, draws are counted from the first that belongs to `seed`."""
        self.draw = seed * DRAWS

    @torch.no_grad()
    def begin(self, state: TensorDict | None = None) -> TensorDict:
        """The states [rows] in which the dreams of the next draw begin, or `state`.

        Raises: ValueError without starts, and where they give clips of other sizes.
        """
        self._draw, self._next_draw = self._next_draw, self._next_draw + 1
        if state is not None:
            return state
        if self._starts is None or self.rows is None:
            raise ValueError("these dreams have no starts: begin them with a dream state, or give starts and rows")
        clip, burn_in = self._starts(self.rows, self._draw), self.dream.spec.burn_in
        if (got := clip["action"].shape[:2]) != (self.rows, burn_in):
            raise ValueError(f"starts must give {self.rows} clips of {burn_in} frames (got {got[0]} of {got[1]})")
        return self.dream.encode(clip.to(self.device))

    @torch.no_grad()
    def step(self, state: TensorDict, action_BA: Tensor) -> TensorDict:
        """The state after an imagined step; the action is one of `executed`."""
        generator = self.dream.generator(state, stream=self._stream, draw=self._draw)
        return self.dream.step(state, action_BA, generator)

    def executed(self, action_BA: Tensor) -> Tensor:
        """What the world would do when an agent says this, f32 [..., A]: clipped to [-1, 1], or exactly one-hot."""
        action_BA = action_BA.to(self.device, torch.float32)
        if self._discrete:
            return torch.zeros_like(action_BA).scatter_(-1, action_BA.argmax(-1, keepdim=True), 1.0)
        return action_BA.clamp(-1, 1)

    def over(self, state: TensorDict) -> Tensor:
        """Whether a dream [B] has reached the horizon, bool [B, 1]; all rows have or none; nothing is read."""
        return state["wm", "frame"] >= self._last
