"""What was dreamt, kept for off-policy agents: trajectories as codes, from which transitions are drawn like real ones.

A frame is some dozens of bytes instead of thousands, so that all of it is part of an agent's state; frames are shown by
the world model of the moment when they are drawn. C trajectories, F frames of each, H of them imagined; N, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Dream
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec, ObsKey, Rollout, Subset


class ImaginedReplay:
    """The newest `capacity` imagined trajectories; each begins with `num_observed` real frames."""

    def __init__(
        self, capacity: int, *, spec: ModelSpec, num_observed: int, horizon: int, dream: Dream, seeds: Seeds
    ) -> None:
        """Raises: ValueError for a model without codes."""
        if spec.codes is None:
            raise ValueError("agent: imagined transitions are kept as codes, and this world model has none")
        self._dream, self._seeds, self._num_observed, self._horizon = dream, seeds, num_observed, horizon
        most = max(spec.codes.vocab_context, spec.codes.vocab_future) - 1
        code = torch.int16 if most <= torch.iinfo(torch.int16).max else torch.int32
        self.held = {
            "context": torch.zeros(capacity, spec.context_frames * spec.codes.context, dtype=code),
            "codes": torch.zeros(capacity, num_observed + horizon, spec.codes.future, dtype=code),
            "action": torch.zeros(capacity, horizon, spec.action_dim),
            "reward": torch.zeros(capacity, horizon),
            "continue": torch.zeros(capacity, horizon),
        }
        self.trajectories = 0
        """How many were added ever; the oldest make room."""

    def __len__(self) -> int:
        """Stored decisions."""
        return min(self.trajectories, len(self.held["action"])) * self._horizon

    def add(self, rollout: Rollout) -> None:
        """Takes the rows of a rollout over the whole horizon."""
        context_BN, codes_BFK = self._dream.codes_of(rollout.state)
        path = rollout.path
        new = {"context": context_BN, "codes": codes_BFK, "action": path["action"]}
        new |= {key: path["next", key][..., 0] for key in ("reward", "continue")}
        rows = len(context_BN)
        place_B = (self.trajectories + torch.arange(rows)) % len(self.held["action"])
        for key, value in new.items():
            self.held[key][place_B] = value.to(self.held[key])
        self.trajectories += rows

    def transitions(
        self,
        n: int,
        *,
        n_step: int,
        stack: int,
        stream: str,
        draw: int,
        subset: Subset = "all",
        keys: Sequence[ObsKey] = ("pixels",),
    ) -> TensorDict:
        """`n` transitions (worldmodel.spec), batch [n], on the model's device.

        An imagined decision is drawn in proportion to the chance that its dream went on until then. The horizon cuts an
        episode off: there the value of the last frame closes a shorter return.
        Raises: ValueError for a subset, for keys other than pixels, or if nothing was imagined yet.
        """
        if subset != "all" or tuple(keys) != ("pixels",):
            raise ValueError(f"imagined transitions have pixels and no subsets (got {list(keys)}, {subset})")
        if not len(self):
            raise ValueError("nothing was imagined yet")
        going_CH = self.held["continue"][: len(self) // self._horizon].double().cumprod(1)
        reached_C = torch.cat([torch.ones_like(going_CH[:, :1]), going_CH[:, :-1]], 1).flatten().cumsum(0)
        drawn_W = torch.from_numpy(self._seeds.numpy(f"imagined/{stream}", draw).random(n)) * reached_C[-1]
        flat_W = torch.searchsorted(reached_C, drawn_W, right=True).clamp(max=len(self) - 1)
        row_W, decision_W = flat_W // self._horizon, flat_W % self._horizon
        end_W = (decision_W + n_step).clamp(max=self._horizon)

        # frames before and after, `stack` of each: frame `num_observed - 1` is the one that decision 0 is taken in
        newest_W2 = torch.stack([decision_W, end_W], 1) + self._num_observed - 1
        index_W2S = (newest_W2[..., None] + torch.arange(1 - stack, 1)).clamp(min=0)
        codes_WFK = self.held["codes"][row_W[:, None], index_W2S.flatten(1)]
        frames_WFCHW = self._dream.detokenize(self.held["context"][row_W].long(), codes_WFK.long())
        now_WCHW, then_WCHW = (half.flatten(1, 2) for half in frames_WFCHW.split(stack, 1))

        step_WN = decision_W[:, None] + torch.arange(n_step)
        inside_WN, step_WN = step_WN < end_W[:, None], step_WN.clamp(max=self._horizon - 1)
        reward_WN = self.held["reward"][row_W[:, None], step_WN] * inside_WN
        continue_WN = torch.where(inside_WN, self.held["continue"][row_W[:, None], step_WN], 1.0)
        then = {"pixels": then_WCHW, "reward": reward_WN, "continue": continue_WN, "steps": end_W - decision_W}
        now = {"pixels": now_WCHW, "action": self.held["action"][row_W, decision_W]}
        return TensorDict({**now, "next": then}, batch_size=[n]).to(frames_WFCHW.device)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, as codes."""
        return {**self.held, "trajectories": torch.tensor(self.trajectories)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`; copies."""
        self.held = {key: state[key].to(held).clone() for key, held in self.held.items()}
        self.trajectories = int(state["trajectories"])
