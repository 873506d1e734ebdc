"""The world model as an agent sees it: encode a clip, roll a policy out. Knows the WorldModel protocol only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.api import WorldModel
from worldmodel.microbatch import RowNoise, Source
from worldmodel.processes import Processes, alone
from worldmodel.seeds import Seeds


class Dream:
    """Imagination: what a policy would see and earn, from a dream state on (`agents.api.Dream`).

    Rows never end one by one in a dream: an end is the soft `continue` in [0, 1], the hard end is the horizon.
    """

    def __init__(self, model: WorldModel, *, seeds: Seeds, processes: Processes | None = None) -> None:
        """`processes`: each rolls out its rows of the whole batch; None: all rows are here."""
        self.model = model
        self.spec = model.spec
        self.seeds = seeds
        self._processes = processes or alone()

    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip -> the dream state after its last frame."""
        return self.model.encode(clip)

    @torch.no_grad()
    def rollout(
        self,
        policy: Callable[[TensorDict, Any], tuple[Tensor, Any]],
        state: TensorDict,
        memory: Any,
        horizon: int,
        *,
        stream: str,
        draw: int,
        keys: tuple[str, ...] = ("latent",),
    ) -> TensorDict:
        """Imagine `horizon` steps under `policy`.

        Args:
            policy: td [B] (`latent`) and memory -> action f32 [B, A] in [-1, 1] and memory.
            state: dream state [B].
            stream: with `draw`, names the random numbers the frames are sampled with.
            keys: what the trajectory holds of each state, besides reward and continue: `latent`, `pixels`.
        Returns: trajectory [B, horizon] (worldmodel.spec); no gradient enters the model.
        """
        noise: Source = (generator := self.seeds.torch(stream, draw, device=state["latent"].device))
        if (world := self._processes.world) > 1:
            noise = RowNoise(generator=generator, first=self._processes.rank * len(state), rows=world * len(state))
        seen = self._view(state, keys)
        steps = []
        for _ in range(horizon):
            action_BA, memory = policy(state.select("latent"), memory)
            state = self.model.imagine(state, action_BA, noise)
            arrived = self._view(state, keys)
            step = {**seen, "action": action_BA, "next": {**arrived, **{k: state[k] for k in ("reward", "continue")}}}
            steps.append(TensorDict(step, batch_size=state.batch_size))
            seen = arrived
        return torch.stack(steps, 1)  # [B, horizon]

    def _view(self, state: TensorDict, keys: tuple[str, ...]) -> dict[str, Tensor]:
        return {key: self.model.decode(state) if key == "pixels" else state[key] for key in keys}
