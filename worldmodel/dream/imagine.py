"""The world model as an agent sees it: encode a clip, go on, roll a policy out. Knows the WorldModel protocol only.

The one loop over imagined steps is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.answers import shown, wrong
from worldmodel.api import Tokenizing, WorldModel
from worldmodel.microbatch import RowNoise, Source
from worldmodel.processes import Processes
from worldmodel.seeds import Seeds
from worldmodel.spec import Rollout, is_action

Policy = Callable[[TensorDict, Any], tuple[Tensor, Any]]


class Dream:
    """Imagination: what a policy would see and earn, from a dream state on (`agents.api.Dream`).

    Rows never end one by one in a dream: an end is the soft `continue` in [0, 1], the hard end is the horizon.
    """

    def __init__(self, model: WorldModel, *, seeds: Seeds) -> None:
        self.model = model
        self.spec = model.spec
        self.seeds = seeds

    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip -> the dream state after its last frame."""
        return self._state("encode", self.model.encode(clip), len(clip))

    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        """The state after a real step [B], which has `spec.obs_keys`."""
        return self._state("observe", self.model.observe(state, action_BA, step), len(state))

    def step(self, state: TensorDict, action_BA: Tensor, generator: Source | None = None) -> TensorDict:
        """The state after an imagined step; without a generator the most likely one."""
        after = self._state("imagine", self.model.imagine(state, action_BA, generator), len(state))
        for key in ("reward", "continue"):
            if not isinstance(value := after.get(key, None), Tensor) or value.shape != (len(state), 1):
                raise wrong(self.model, "imagine", f"a tensor [{len(state)}, 1] as {key}", shown(value))
        return after

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """Every row `copies` times: row b becomes rows b * copies and on. Nothing is read again."""
        return self._state("fork", self.model.fork(state, copies), len(state) * copies)

    def decode(self, state: TensorDict) -> Tensor:
        """The newest frame, u8 [B, 3, H, W]."""
        frame_BCHW = self.model.decode(state)
        size = (len(state), 3, self.spec.image, self.spec.image)
        if not isinstance(frame_BCHW, Tensor) or frame_BCHW.dtype != torch.uint8 or frame_BCHW.shape != size:
            raise wrong(self.model, "decode", f"frames uint8 {size}", shown(frame_BCHW))
        return frame_BCHW

    def _state(self, name: str, given: Any, rows: int) -> TensorDict:
        """What a method of the model returned. Raises: WrongAnswer unless it is a state of so many rows."""
        if not isinstance(given, TensorDict) or given.batch_size != (rows,):
            got = f"one [{', '.join(map(str, given.batch_size))}]" if isinstance(given, TensorDict) else shown(given)
            raise wrong(self.model, name, f"a TensorDict [{rows}]", got)
        latent_BD, width = given.get("latent", None), self.spec.latent_dim
        if not isinstance(latent_BD, Tensor) or latent_BD.shape != (rows, width):
            raise wrong(self.model, name, f"a tensor [{rows}, {width}] as latent", shown(latent_BD))
        return given

    def codes_of(self, state: TensorDict) -> tuple[Tensor, Tensor]:
        """Codes of the context and of all frames that the state knows (`worldmodel.api.Tokenizing.codes_of`)."""
        return self._tokenizing.codes_of(state)

    def detokenize(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        """Codes -> frames u8 [B, F, 3, H, W] (`worldmodel.api.Tokenizing.detokenize`)."""
        return self._tokenizing.detokenize(context_BN, codes_BFK)

    @property
    def _tokenizing(self) -> Tokenizing:
        """Raises: TypeError for a model without codes (`spec.codes`)."""
        if not isinstance(self.model, Tokenizing):
            raise TypeError(f"{type(self.model).__name__} has no codes")
        return self.model

    @torch.no_grad()
    def rollout(
        self,
        policy: Policy,
        state: TensorDict,
        memory: Any,
        horizon: int,
        *,
        stream: str,
        draw: int,
        keys: tuple[str, ...] = ("latent",),
        sample: bool = True,
        processes: Processes | None = None,
    ) -> Rollout:
        """Imagine `horizon` steps under `policy`.

        Args:
            policy: td [B] of `keys`, and memory -> action f32 [B, A] in [-1, 1] and memory.
            state: dream state [B].
            stream: with `draw` and the state's number of frames, names the random numbers a frame is sampled with.
            keys: what the policy sees and the trajectory holds of each state: `latent`, a part of it by its name in
                `spec.latent`, `pixels`, or any key of the state.
            sample: False takes the most likely frames and draws nothing.
            processes: those that roll out the other rows of one batch, all at once; None: all rows are here.
        Returns: the trajectory [B, horizon] (worldmodel.spec) and where it ended; no gradient enters the model.
        Raises: ValueError for a horizon or keys that cannot be; WrongAnswer for what is no action.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be >= 1 (got {horizon})")
        seen, steps = self.view(state, keys), []
        for _ in range(horizon):
            action_BA, memory = asked(policy, TensorDict(seen, batch_size=state.batch_size), memory)
            action_BA = action_BA.to(state["latent"])  # a policy may answer in any real type
            generator = self.generator(state, stream=stream, draw=draw) if sample else None
            state = self.step(state, action_BA, own_rows(generator, processes, len(state)))
            arrived = self.view(state, keys)
            earned = {key: state[key] for key in ("reward", "continue")}
            steps.append(TensorDict({**seen, "action": action_BA, "next": arrived | earned}, state.batch_size))
            seen = arrived
        return Rollout(torch.stack(steps, 1), state, memory)

    def generator(self, state: TensorDict, *, stream: str, draw: int) -> torch.Generator:
        """What the frame that follows `state` is sampled with.

        Counted by the state's own frames: a rollout that is continued draws what a longer one would have drawn.
        """
        return self.seeds.torch(stream, draw, self.model.depth(state), device=state["latent"].device)

    def view(self, state: TensorDict, keys: tuple[str, ...]) -> dict[str, Tensor]:
        """What a policy sees of a state [B]: `keys` as in `rollout`."""
        return {key: self._seen(state, key) for key in keys}

    def _seen(self, state: TensorDict, key: str) -> Tensor:
        if key == "pixels":
            return self.decode(state)
        if key in self.spec.latent:
            return self.spec.part_of(state["latent"], key)
        if key not in state.keys():  # noqa: SIM118
            known = sorted({"pixels", *self.spec.latent, *(name for name in list(state.keys()) if name != "wm")})
            raise ValueError(f"keys must be some of {', '.join(known)} (got {key})")
        return state[key]


def asked(policy: Policy, td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
    """`policy(td, memory)`. Raises: WrongAnswer where that is no action for each row, and a memory."""
    given, rows = policy(td, memory), len(td)
    if not isinstance(given, tuple) or len(given) != 2:
        raise wrong(policy, "__call__", "an action and a memory", shown(given))
    if not is_action(given[0], rows):
        raise wrong(policy, "__call__", f"a tensor of actions [{rows}, A]", shown(given[0]))
    return given


def own_rows(generator: torch.Generator | None, processes: Processes | None, rows: int) -> Source | None:
    """What this process's `rows` draw from; of several processes each has its part of the whole batch's numbers."""
    if generator is None or processes is None or processes.world == 1:
        return generator
    return RowNoise(generator=generator, first=processes.rank * rows, rows=processes.world * rows)


def fixed_actions(action_BHA: Tensor) -> Policy:
    """The policy that takes these actions whatever it sees; its memory is the step index, 0 at first."""

    def policy(td: TensorDict, step: int) -> tuple[Tensor, int]:
        return action_BHA[:, step], step + 1

    return policy
