"""The simulator itself behind the WorldModel protocol, for diagnosis: an agent that fails in it fails by itself.

It reads true states and steps true physics, so what is learned in it says nothing about learning from pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import admissible
from mbrl.envs.simulator import Task, decide
from worldmodel.microbatch import MicroBatch, RowNoise
from worldmodel.spec import EnvSpec, ModelSpec, ObsKey, Part

SCALE = 10.0
"""Features per unit of the simulator's state, counted from the state of the first episode: decimetres in Meta-World."""


@dataclass(frozen=True, kw_only=True)
class OracleModelConfig:
    """Nothing to set: the simulator is what it is."""

    obs_keys: ClassVar[tuple[ObsKey, ...]] = ("state", "snapshot")
    parts: ClassVar[tuple[Part, ...]] = ()

    def build(self, *, task: Task, protocol: ProtocolConfig, env_spec: EnvSpec) -> OracleModel:
        """A world of its own that goes wherever imagination goes."""
        return OracleModel(task.build(protocol=protocol, rows=1)[0], protocol, env_spec)


class OracleModel(nn.Module):
    """A WorldModel without weights: a dream state is a snapshot, an imagined step is a real one.

    Dream state: `latent` f32 [S], the scaled state; `wm`: `snapshot` f64 [P] and `frame` i64 [1].
    """

    def __init__(self, simulator: Any, protocol: ProtocolConfig, env_spec: EnvSpec) -> None:
        super().__init__()
        self._simulator, self._protocol, self._env_spec = simulator, protocol, env_spec
        simulator.reset(0)
        self._centre_S = torch.from_numpy(simulator.state().copy())
        self.spec = ModelSpec(
            image=protocol.image,
            context_frames=1,
            action_dim=env_spec.action_dim,
            max_frames=1 + protocol.decisions,
            context="first_frame",
            burn_in=1,
            obs_keys=OracleModelConfig.obs_keys,
            latent={"state": len(self._centre_S)},
            state={
                ("wm", "snapshot"): (simulator.snapshot().shape, torch.float64),
                ("wm", "frame"): ((1,), torch.int64),
                "latent": ((len(self._centre_S),), torch.float32),
                "reward": ((1,), torch.float32),
                "continue": ((1,), torch.float32),
            },
        )
        self.version = 0

    def encode(self, clip: TensorDict) -> TensorDict:
        """The moment of the clip's last frame."""
        return self._at(clip["snapshot"][:, -1], clip["state"][:, -1], clip["state"].shape[1])

    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | RowNoise | None) -> TensorDict:
        """One true decision in every row, one after the other; nothing is drawn from `generator`."""
        snapshot_BP = state["wm", "snapshot"].cpu().numpy()
        clean_BA = admissible(action_BA, self._env_spec)
        rows = [self._decide(*row) for row in zip(snapshot_BP, clean_BA, strict=True)]
        snapshots, states, rewards, goings = zip(*rows, strict=True)
        moments, features = (torch.from_numpy(np.stack(values)) for values in (snapshots, states))
        arrived = self._at(moments, features, self.depth(state) + 1)
        arrived["reward"] = torch.tensor(rewards, dtype=torch.float32)[:, None]
        arrived["continue"] = torch.tensor(goings, dtype=torch.float32)[:, None]
        return arrived.to(action_BA.device)

    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        """The moment of the real step; its reward is not predicted."""
        return self._at(step["snapshot"], step["state"], self.depth(state) + 1)

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """See `worldmodel.api.WorldModel.fork`."""
        return state.repeat_interleave(copies, 0)

    def depth(self, state: TensorDict) -> int:
        """See `worldmodel.api.WorldModel.depth`."""
        return int(state["wm", "frame"][0, 0])

    def _at(self, snapshot_BP: Tensor, state_BS: Tensor, frame: int) -> TensorDict:
        """The dream state of a moment that nothing is known of beside it."""
        latent_BS, rows = self._feature(state_BS), [len(state_BS)]
        wm = {"snapshot": snapshot_BP, "frame": torch.full((*rows, 1), frame, device=snapshot_BP.device)}
        known = {"reward": latent_BS.new_zeros(*rows, 1), "continue": latent_BS.new_ones(*rows, 1)}
        return TensorDict({"wm": wm, "latent": latent_BS, **known}, batch_size=rows)

    def _decide(
        self, snapshot_P: NDArray[np.float64], action_A: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], float, bool]:
        """The moment after a decision, its state, the reward, and whether it goes on."""
        simulator = self._simulator
        simulator.restore(snapshot_P)
        made = decide(simulator, action_A, self._protocol)
        if made.unstable:  # the step counts for nothing, as in RowsEnv, and the moment stays
            simulator.restore(snapshot_P)
        goes_on = not (made.terminated or made.unstable)
        return simulator.snapshot().copy(), simulator.state().copy(), made.reward, goes_on

    def decode(self, state: TensorDict) -> Tensor:
        """Draws every row's moment, u8 [B, 3, H, W]."""
        frames = []
        for snapshot_P in state["wm", "snapshot"].cpu().numpy():
            self._simulator.restore(snapshot_P)
            frames.append(torch.from_numpy(self._simulator.draw().copy()))
        return torch.stack(frames)

    def _feature(self, state_S: Tensor) -> Tensor:
        return SCALE * (state_S - self._centre_S.to(state_S.device))

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def updated(self, part: Part) -> None:
        """Nothing moves."""

    def prepare(self, part: Part) -> None:
        """Nothing is needed."""

    def losses(
        self, clip: TensorDict, part: Part, *, step: int, generator: torch.Generator, micro: MicroBatch | None = None
    ) -> NoReturn:
        """Raises: TypeError; there is nothing to fit."""
        raise TypeError("the oracle model has nothing to fit: set schedule.tokenizer and schedule.dynamics to nothing")
