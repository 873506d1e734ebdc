"""E worlds side by side in one process as one TorchRL environment: the real step of `worldmodel.spec`, batch [E].

Does what every world needs and no world should do for itself: action repeat, time limit, guards, counted seeds, exact
replay. Knows no particular world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import EnvDataError, Simulator, decide
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec


class RowsEnv(EnvBase):
    """Real environments for the loop: all rows step together, rows may be reset one by one.

    * Row i's episode k begins from `seeds.integer(stream, i, k)`, however many rows there are.
    * The time limit gives `truncated`, never `terminated`. So does a breakdown of the physics: the broken simulator
      step gives no reward and no success, the frame before the decision is repeated, and `breakdowns` counts it.
    * Actions that are not finite or not [E, A] never reach a simulator (EnvDataError); others are clipped to [-1, 1].
    * Rewards and frames that are not finite or mis-shaped never leave (EnvDataError).
    """

    def __init__(
        self,
        simulators: Sequence[Simulator],
        protocol: ProtocolConfig,
        *,
        task: str,
        seeds: Seeds,
        stream: str,
        snapshots: bool = False,
    ) -> None:
        """`snapshots`: every step carries `snapshot`, from which a simulator can go on."""
        rows, first = len(simulators), simulators[0]
        super().__init__(device="cpu", batch_size=[rows])
        self.protocol, self.task, self.seeds, self.stream = protocol, task, seeds, stream
        self._simulators = list(simulators)
        self.env_spec = EnvSpec(
            image=protocol.image,
            action_dim=first.action_dim,
            discrete=first.discrete,
            action_repeat=protocol.action_repeat,
            decisions=protocol.decisions,
            terminates=first.terminates,
            proprio_dim=first.proprio_dim,
        )
        self.breakdowns = 0
        """Episodes that were cut because the physics broke down."""
        self._episode = [0] * rows
        self._next_episode = [0] * rows
        self._decision = [0] * rows
        self._open = [False] * rows
        self._snapshots = snapshots
        if snapshots:
            first.reset(0)  # how long a snapshot is shows only then
        blank = torch.zeros(3, protocol.image, protocol.image, dtype=torch.uint8)
        self._seen = [{"pixels": blank, **self._known(first)} for _ in range(rows)]
        """What each row sees and knows now."""
        self._is_init_E = torch.zeros(rows, dtype=torch.bool)
        self._declare(rows)

    def _declare(self, rows: int) -> None:
        def flag() -> Binary:
            return Binary(1, shape=(rows, 1), dtype=torch.bool)

        image, width = self.env_spec.image, self.env_spec.action_dim
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=(rows, 3, image, image), dtype=torch.uint8),
            **{
                key: Unbounded(shape=(rows, width), dtype=self._seen[0][key].dtype) for key, width in self.known.items()
            },
            is_init=flag(),
            success=flag(),
            shape=(rows,),
        )
        if self.env_spec.discrete:
            self.action_spec = OneHot(width, shape=(rows, width), dtype=torch.float32)
        else:
            self.action_spec = Bounded(-1.0, 1.0, shape=(rows, width), dtype=torch.float32)
        self.reward_spec = Unbounded(shape=(rows, 1), dtype=torch.float32)
        self.done_spec = Composite(done=flag(), terminated=flag(), truncated=flag(), shape=(rows,))

    @property
    def known(self) -> dict[str, int]:
        """How many numbers every step carries beside its frame, by key: `proprio`, `state`, perhaps `snapshot`."""
        return {key: len(seen) for key, seen in self._seen[0].items() if key != "pixels"}

    # -- episodes and their numbers ------------------------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, slice]:
        """What slices of `state` are called."""
        return dict(self._simulators[0].parts)

    @property
    def episodes(self) -> list[int]:
        """The number of each row's episode; assigning sets the numbers that the next reset opens."""
        return list(self._episode)

    @episodes.setter
    def episodes(self, numbers: Sequence[int]) -> None:
        if len(numbers) != len(self._simulators) or min(numbers) < 0:
            raise ValueError(f"episodes must be {len(self._simulators)} numbers >= 0 (got {list(numbers)})")
        self._episode, self._next_episode = list(numbers), list(numbers)

    def _set_seed(self, seed: int | None) -> None:
        """Another run seed, from the next reset on."""
        if seed is not None:
            self.seeds = Seeds(seed)

    def _begin(self, row: int, episode: int) -> None:
        self._episode[row], self._next_episode[row] = episode, episode + 1
        self._decision[row], self._open[row] = 0, True
        simulator = self._simulators[row]
        simulator.reset(self.seeds.integer(self.stream, row, episode))
        self._seen[row] = self._look(row)
        self._is_init_E[row] = True

    def _look(self, row: int) -> dict[str, Tensor]:
        """Frame and knowledge of this moment."""
        simulator = self._simulators[row]
        return {"pixels": torch.from_numpy(self._checked(simulator.draw(), row)), **self._known(simulator)}

    def _known(self, simulator: Simulator) -> dict[str, Tensor]:
        state_S = torch.from_numpy(simulator.state())
        centre_Q, scale_Q = torch.tensor(simulator.proprio_centre), torch.tensor(simulator.proprio_scale)
        proprio_Q = (state_S[: simulator.proprio_dim] - centre_Q) * scale_Q
        known = {"proprio": proprio_Q, "state": state_S}
        return known | ({"snapshot": torch.from_numpy(simulator.snapshot())} if self._snapshots else {})

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        which = [True] * len(self._simulators) if asked is None else asked.reshape(-1).tolist()
        for row, wanted in enumerate(which):
            if wanted:
                self._begin(row, self._next_episode[row])
        return self.current()

    def current(self) -> TensorDict:
        """What an agent sees now, [E]: as `reset` returns it, but nothing moves."""
        rows = len(self._simulators)
        nothing = torch.zeros(rows, 1, dtype=torch.bool)
        return TensorDict(
            {
                **{key: torch.stack([seen[key] for seen in self._seen]) for key in self._seen[0]},
                "is_init": self._is_init_E[:, None].clone(),
                "success": nothing,
                "done": nothing.clone(),
                "terminated": nothing.clone(),
                "truncated": nothing.clone(),
            },
            batch_size=[rows],
        )

    # -- one decision --------------------------------------------------------------------------------------------------

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        actions_EA = self._checked_actions(tensordict["action"])
        return torch.stack([self._decide(row, action_A) for row, action_A in enumerate(actions_EA)])

    def _decide(self, row: int, action_A: NDArray[np.float32]) -> TensorDict:
        """One decision in one row; what belongs under `next`, batch []."""
        try:
            made = decide(self._simulators[row], action_A, self.protocol)
        except EnvDataError as error:
            raise EnvDataError(f"{error} {self._where(row)}") from error
        self._decision[row] += 1
        self._is_init_E[row] = False
        if made.unstable:
            self.breakdowns += 1
        else:
            self._seen[row] = self._look(row)
        terminated = made.terminated
        truncated = not terminated and (made.unstable or self._decision[row] >= self.protocol.decisions)
        self._open[row] = not (terminated or truncated)
        values = {"terminated": terminated, "truncated": truncated, "success": made.success, "is_init": False}
        td = TensorDict({key: torch.tensor([value]) for key, value in values.items()}, batch_size=[])
        td["done"] = torch.tensor([terminated or truncated])
        td["reward"] = torch.tensor([made.reward], dtype=torch.float32)
        td.update(self._seen[row])
        return td

    # -- guards --------------------------------------------------------------------------------------------------------

    def _where(self, row: int) -> str:
        return f"in row {row} of {self.task}, episode {self._episode[row]}, decision {self._decision[row]}"

    def _checked_actions(self, actions_EA: Tensor) -> NDArray[np.float32]:
        """All rows' actions are checked before any simulator moves: a non-finite one makes MuJoCo reset silently."""
        expected = (len(self._simulators), self.env_spec.action_dim)
        if tuple(actions_EA.shape) != expected:
            raise EnvDataError(f"action must have shape {expected} (got {tuple(actions_EA.shape)}) {self._where(0)}")
        for row, action_A in enumerate(actions_EA):
            if not bool(torch.isfinite(action_A).all()):
                raise EnvDataError(f"action {action_A.tolist()} is not finite {self._where(row)}")
            if not self._open[row]:
                raise EnvDataError(f"the episode has ended, reset before the next step {self._where(row)}")
        return admissible(actions_EA, self.env_spec)

    def _checked(self, frame_CHW: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        expected = (3, self.env_spec.image, self.env_spec.image)
        if frame_CHW.shape != expected or frame_CHW.dtype != np.uint8:
            raise EnvDataError(
                f"frame must be uint8 {expected} (got {frame_CHW.dtype} {frame_CHW.shape}) {self._where(row)}"
            )
        return frame_CHW

    # -- experts, replay, end ------------------------------------------------------------------------------------------

    def expert_actions(self) -> Tensor:
        """What each row's scripted expert would do now, f32 [E, A] in [-1, 1]. Moves nothing."""
        return torch.from_numpy(np.stack([simulator.expert() for simulator in self._simulators]))

    def replay_actions(self, episodes: Sequence[int], actions: Sequence[Tensor]) -> list[TensorDict]:
        """Re-creates open episodes exactly: begins each row's episode from its seed and repeats its actions.

        Args:
            episodes: the number of each row's open episode.
            actions: per row f32 [T, A], T may differ and may be 0 (a tensor [E, T, A] will do).

        Returns: per row its real steps as they were, batch [T]; `current()` is what the agent sees next.

        Raises: EnvDataError if an episode ends before its actions do (another task, protocol, seed or simulator).
        """
        self.episodes = episodes
        return [self._replay_row(row, actions_TA) for row, actions_TA in enumerate(actions)]

    def _replay_row(self, row: int, actions_TA: Tensor) -> TensorDict:
        self._begin(row, self._next_episode[row])
        steps = []
        for action_A, clean_A in zip(actions_TA, admissible(actions_TA, self.env_spec), strict=True):
            if not self._open[row]:
                raise EnvDataError(
                    f"the episode ended before its {len(actions_TA)} logged actions did {self._where(row)}"
                )
            now: dict[str, Any] = {**self._seen[row], "is_init": self._is_init_E[row, None].clone()}
            now |= {"action": action_A.clone(), "next": self._decide(row, clean_A)}
            steps.append(TensorDict(now, batch_size=[]))
        return torch.stack(steps) if steps else TensorDict({}, batch_size=[0])

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulators; may be called twice."""
        for simulator in self._simulators:
            simulator.close()
        super().close(raise_if_closed=False)


def admissible(actions: Tensor, env_spec: EnvSpec) -> NDArray[np.float32]:
    """[..., A] finite numbers -> what a simulator may see: exactly one-hot, or clipped to [-1, 1]."""
    actions = actions.detach().cpu().to(torch.float32)
    if env_spec.discrete:
        actions = torch.nn.functional.one_hot(actions.argmax(-1), env_spec.action_dim).to(torch.float32)
    return actions.clamp(-1, 1).numpy()
