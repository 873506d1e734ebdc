"""A dream as TorchRL knows it: static specs, and an environment for its collectors, losses and planners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from worldmodel.dream.imagine import Dream
from worldmodel.dream.session import DreamSession, Starts
from worldmodel.spec import EnvSpec, ModelSpec

STATE = "dream"
"""Where a dream state lies in a TensorDict of the environment."""


def state_spec(spec: ModelSpec, batch: Sequence[int], *, device: torch.device | str | None = "cpu") -> Composite:
    """What a dream state [*batch] of this model holds, at every step (`worldmodel.spec.ModelSpec.state`)."""
    whole = Composite(shape=batch, device=device)
    for key, (shape, dtype) in spec.state.items():
        whole[key] = Unbounded((*batch, *shape), dtype=dtype, device=device)
    return whole


class DreamEnv(EnvBase):
    """Dreams as a TorchRL environment.

    * It has no state: a dream state, of fixed shapes, lies in the TensorDict under `dream` and goes from step to step
      by reference, so nothing is read again. Whoever stores steps may leave it out (`exclude("dream", ...)`).
    * With `starts` and `rows` it is locked to [rows], and `reset` begins at replay's clips: for collectors. Without,
      it takes dream states of any batch size, `reset(TensorDict({"dream": state}), set_state=True)`: for planners.
    * All rows begin and end together: `truncated` at the horizon, `terminated` never. An end is soft in a dream:
      `continue` f32 [1] in [0, 1] is observed, the model's probability that the episode goes on after this frame.
    * Frames are sampled with numbers named by (stream, draw, frame), and `reset` takes the next draw: after
      `env.draw = k` everything is again as it was from draw k on. `set_seed` counts on from the first draw of a seed.
    * Actions are taken as the real environment takes them: clipped to [-1, 1], or made one-hot; the TensorDict holds
      the action that was executed.

    Not a `ModelBasedEnvBase`: that one makes the model a module of its own, whose parameters whoever holds the
    environment (a loss, a planner) would train, move and save. This one has no parameters.
    """

    _supports_set_state = True

    def __init__(
        self,
        dream: Dream,
        env_spec: EnvSpec,
        *,
        horizon: int,
        keys: tuple[str, ...] = ("latent",),
        starts: Starts | None = None,
        rows: int | None = None,
        stream: str = "dream/env",
        device: torch.device | str = "cpu",
    ) -> None:
        """Args: as for `DreamSession`, and
            keys: what is observed of a state: any of `latent`, a part of it, `pixels`; `continue` always is.
        Raises: ValueError in one line.
        """
        session = DreamSession(dream, env_spec, horizon=horizon, starts=starts, rows=rows, stream=stream, device=device)
        # a given state may be one at the horizon; TorchRL's own check would also make the host wait
        super().__init__(device=device, batch_size=[] if rows is None else [rows], allow_done_after_reset=True)
        self._batch_locked = rows is not None
        self.session = session  # no module: nothing of the model becomes this environment's
        known = ("pixels", "latent", *dream.spec.latent)
        if not keys or (unknown := [key for key in keys if key not in known]):
            raise ValueError(f"keys must be some of {', '.join(known)} (got {', '.join(unknown) if keys else 'none'})")
        self._seen = (*dict.fromkeys(keys), "continue")
        self._declare(dream.spec, env_spec)

    def _declare(self, spec: ModelSpec, env_spec: EnvSpec) -> None:
        batch, device = self.batch_size, self.device

        def flag() -> Binary:
            return Binary(1, shape=(*batch, 1), dtype=torch.bool, device=device)

        def numbers(width: int) -> Unbounded:
            return Unbounded((*batch, width), device=device)

        observed: dict[str, TensorSpec] = {"latent": numbers(spec.latent_dim), "continue": numbers(1)}
        observed |= {name: numbers(width) for name, width in spec.latent.items()}
        frame = (*batch, 3, spec.image, spec.image)
        observed["pixels"] = Bounded(0, 255, shape=frame, dtype=torch.uint8, device=device)
        self.observation_spec = Composite({key: observed[key] for key in self._seen}, shape=batch, device=device)
        self.observation_spec[STATE] = state_spec(spec, batch, device=device)
        self.state_spec = Composite({STATE: state_spec(spec, batch, device=device)}, shape=batch, device=device)
        width = env_spec.action_dim
        if env_spec.discrete:
            self.action_spec = OneHot(width, shape=(*batch, width), dtype=torch.float32, device=device)
        else:
            self.action_spec = Bounded(-1.0, 1.0, shape=(*batch, width), dtype=torch.float32, device=device)
        self.reward_spec = numbers(1)
        flags = {name: flag() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch, device=device)

    @property
    def draw(self) -> int:
        """Number of the dreams that go on now; assigning it says which the next reset begins."""
        return self.session.draw

    @draw.setter
    def draw(self, number: int) -> None:
        self.session.draw = number

    def _set_seed(self, seed: int | None) -> None:
        """From the next reset on, draws are counted from the first that belongs to `seed`; None goes on counting."""
        if seed is not None:
            self.session.seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, *, set_state: bool = False) -> TensorDictBase:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        if asked is not None and not bool(asked.all()):
            raise ValueError("dreams begin and end together: reset all rows, or none (got a part of them)")
        if not set_state or tensordict is None:
            return self._shown(self.session.begin(), self.batch_size)
        return self._shown(self.session.begin(_in_a_row(tensordict[STATE])), tensordict.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self.session.executed(tensordict["action"])
        tensordict["action"] = action
        arrived = self.session.step(_in_a_row(tensordict[STATE]), action.reshape(-1, action.shape[-1]))
        shown = self._shown(arrived, tensordict.batch_size)
        shown["reward"] = arrived["reward"].reshape(*tensordict.batch_size, 1)
        return shown

    @torch.no_grad()
    def _shown(self, state: TensorDict, batch: torch.Size) -> TensorDict:
        """What of a state [B] is in a TensorDict of this batch size."""
        over_B1 = self.session.over(state)
        flags = {"done": over_B1, "truncated": over_B1.clone(), "terminated": torch.zeros_like(over_B1)}
        seen = self.session.dream.view(state, self._seen)
        promised = state.select(*self.session.dream.spec.state)
        shown = TensorDict({STATE: promised, **seen, **flags}, batch_size=state.batch_size, device=self.device)
        return shown if shown.batch_size == batch else shown.reshape(batch)


def _in_a_row(state: TensorDict) -> TensorDict:
    """States of any batch size as [B]; those that are [B] stay the very tensors that the model gave out."""
    return state if state.ndim == 1 else state.reshape(-1)
