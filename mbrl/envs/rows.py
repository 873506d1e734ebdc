"""E rows side by side as one TorchRL environment: the real step of `worldmodel.spec`, batch [E].

Does what rows cannot do for themselves: counts episodes, names their seeds, checks all actions before any row moves.
Knows no particular world, and not in which process a row lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.row import Seen
from mbrl.envs.simulator import EnvDataError, WorldFacts
from mbrl.envs.workers import Home
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec


class RowsEnv(EnvBase):
    """Real environments for the loop: all rows step together, rows may be reset one by one.

    * Row i's episode k begins from `seeds.integer(stream, i, k)`, however many rows there are, and wherever they live.
    * The time limit gives `truncated`, never `terminated`. So does a breakdown of the physics: the broken simulator
      step gives no reward and no success, the frame before the decision is repeated, and `breakdowns` counts it.
    * Actions that are not finite or not [E, A] never reach a simulator (EnvDataError); others are clipped to [-1, 1].
      The step that comes back holds the action that was executed.
    * What a world does wrong never leaves its row (EnvDataError with the place).
    """

    def __init__(
        self,
        home: Home,
        facts: WorldFacts,
        protocol: ProtocolConfig,
        *,
        rows: int,
        task: str,
        seeds: Seeds,
        stream: str,
        snapshots: bool = False,
    ) -> None:
        """`snapshots`: every step carries `snapshot`, from which a simulator can go on; the rows at `home` do."""
        super().__init__(device="cpu", batch_size=[rows])
        self.facts, self.protocol, self.task, self.seeds, self.stream = facts, protocol, task, seeds, stream
        self._home = home
        self.env_spec = env_spec_of(facts, protocol)
        self.widths = facts.widths(snapshots=snapshots)
        """How many numbers every step carries beside its frame, by key: `proprio`, `state`, perhaps `snapshot`."""
        self.breakdowns = 0
        """Episodes that were cut because the physics broke down."""
        self._episode = [0] * rows
        self._next_episode = [0] * rows
        blank: dict[str, NDArray[Any]] = {"pixels": np.zeros((3, protocol.image, protocol.image), np.uint8)}
        blank |= {key: np.zeros(width, DTYPES[key]) for key, width in self.widths.items()}
        self._seen = [Seen(frame=blank, episode=0, truncated=True) for _ in range(rows)]
        """What each row showed last."""
        self._declare(rows)

    def _declare(self, rows: int) -> None:
        def flag() -> Binary:
            return Binary(1, shape=(rows, 1), dtype=torch.bool)

        image, width = self.env_spec.image, self.env_spec.action_dim
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=(rows, 3, image, image), dtype=torch.uint8),
            **{
                key: Unbounded(shape=(rows, width), dtype=torch.float64 if key == "snapshot" else torch.float32)
                for key, width in self.widths.items()
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

    # -- episodes and their numbers ------------------------------------------------------------------------------------

    @property
    def episodes(self) -> list[int]:
        """The number of each row's episode; assigning sets the numbers that the next reset opens."""
        return list(self._episode)

    @episodes.setter
    def episodes(self, numbers: Sequence[int]) -> None:
        if len(numbers) != len(self._seen) or min(numbers) < 0:
            raise ValueError(f"episodes must be {len(self._seen)} numbers >= 0 (got {list(numbers)})")
        self._episode, self._next_episode = list(numbers), list(numbers)

    def _set_seed(self, seed: int | None) -> None:
        """Another run seed, from the next reset on."""
        if seed is not None:
            self.seeds = Seeds(seed)

    def _opened(self, row: int) -> tuple[int, int]:
        """The next episode's number and seed; it is counted as begun."""
        episode = self._next_episode[row]
        self._episode[row], self._next_episode[row] = episode, episode + 1
        return episode, self.seeds.integer(self.stream, row, episode)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        which = [True] * len(self._seen) if asked is None else asked.reshape(-1).tolist()
        orders = {row: ("begin", *self._opened(row)) for row, wanted in enumerate(which) if wanted}
        for row, seen in self._home.ask(orders).items():
            self._seen[row] = seen
        return self.current()

    def current(self) -> TensorDict:
        """What an agent sees now, [E]: as `reset` returns it, but nothing moves."""
        flags = ("success", "done", "terminated", "truncated")
        nothing = {key: torch.zeros(len(self._seen), 1, dtype=torch.bool) for key in flags}
        return TensorDict({**looked(self._seen), **nothing}, batch_size=self.batch_size)

    # -- one decision --------------------------------------------------------------------------------------------------

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action_EA = self.executed(tensordict["action"])
        tensordict.set("action", action_EA)  # whoever remembers this step remembers what was done
        answers = self._home.ask({row: ("decide", action_A) for row, action_A in enumerate(action_EA.numpy())})
        self._seen = [answers[row] for row in range(len(self._seen))]
        self.breakdowns += sum(seen.unstable for seen in self._seen)
        return TensorDict(arrived(self._seen), batch_size=self.batch_size)

    def executed(self, action_EA: Tensor) -> Tensor:
        """What the simulators do when an agent says this, f32 [E, A]: clipped, or one-hot; moves nothing.

        All rows' actions are checked before any simulator moves: a non-finite one makes MuJoCo reset silently.
        Raises: EnvDataError for a wrong shape, for what is not finite, and where a row has ended.
        """
        expected = (len(self._seen), self.env_spec.action_dim)
        if tuple(action_EA.shape) != expected:
            raise EnvDataError(f"action must have shape {expected} (got {tuple(action_EA.shape)}) {self._where(0)}")
        for row, action_A in enumerate(action_EA):
            if not bool(torch.isfinite(action_A).all()):
                raise EnvDataError(f"action {action_A.tolist()} is not finite {self._where(row)}")
            if self._seen[row].ended:
                raise EnvDataError(f"the episode has ended, reset before the next step {self._where(row)}")
        return torch.from_numpy(admissible(action_EA, self.env_spec))

    def _where(self, row: int) -> str:
        return f"in row {row} of {self.task}, episode {self._episode[row]}, decision {self._seen[row].decision}"

    # -- experts, replay, end ------------------------------------------------------------------------------------------

    def expert_actions(self) -> Tensor:
        """What each row's scripted expert would do now, f32 [E, A] in [-1, 1]. Moves nothing.

        Raises: ValueError where there is none.
        """
        if not self.facts.expert:
            raise ValueError(f"{self.task} has no scripted expert to ask")
        actions = self._home.ask(dict.fromkeys(range(len(self._seen)), ("expert",)))
        return torch.from_numpy(np.stack([actions[row] for row in range(len(self._seen))]))

    def replay_actions(self, episodes: Sequence[int], actions: Sequence[Tensor]) -> list[TensorDict]:
        """Re-creates open episodes exactly: begins each row's episode from its seed and repeats its actions.

        Args:
            episodes: the number of each row's open episode.
            actions: per row f32 [T, A], T may differ and may be 0 (a tensor [E, T, A] will do).

        Returns: per row its real steps as they were, batch [T]; `current()` is what the agent sees next.

        Raises: EnvDataError if an episode ends before its actions do (another task, protocol, seed or simulator).
        """
        self.episodes = episodes
        done = [admissible(actions_TA, self.env_spec) for actions_TA in actions]
        answers = self._home.ask({row: ("replay", *self._opened(row), done[row]) for row in range(len(done))})
        self._seen = [answers[row][-1] for row in range(len(done))]
        return [steps_of(answers[row], done[row]) for row in range(len(done))]

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulators; may be called twice."""
        self._home.close()
        super().close(raise_if_closed=False)


DTYPES: Mapping[str, type[np.generic]] = {"proprio": np.float32, "state": np.float32, "snapshot": np.float64}


def looked(seen: Sequence[Seen]) -> dict[str, Tensor]:
    """What n moments show, [n, ...], in memory of its own."""
    frames = {key: torch.from_numpy(np.stack([one.frame[key] for one in seen])) for key in seen[0].frame}
    return {**frames, "is_init": torch.tensor([[one.decision == 0 and not one.ended] for one in seen])}


def arrived(seen: Sequence[Seen]) -> dict[str, Tensor]:
    """What belongs under `next` of n decisions, [n, ...]."""
    flags = {name: torch.tensor([[getattr(one, name)] for one in seen]) for name in ("terminated", "truncated")}
    flags |= {
        "done": flags["terminated"] | flags["truncated"],
        "success": torch.tensor([[one.success] for one in seen]),
    }
    reward = torch.tensor([[one.reward] for one in seen], dtype=torch.float32)
    return {**looked(seen), **flags, "reward": reward}


def steps_of(seen: Sequence[Seen], actions_TA: NDArray[np.float32]) -> TensorDict:
    """The T real steps between T + 1 moments, batch [T]."""
    if len(seen) == 1:
        return TensorDict({}, batch_size=[0])
    size = [len(actions_TA)]
    action = {"action": torch.from_numpy(actions_TA), "next": TensorDict(arrived(seen[1:]), batch_size=size)}
    return TensorDict({**looked(seen[:-1]), **action}, batch_size=size)


def env_spec_of(facts: WorldFacts, protocol: ProtocolConfig) -> EnvSpec:
    """What others may know of environments of such worlds."""
    return EnvSpec(
        image=protocol.image,
        action_dim=facts.action_dim,
        discrete=facts.discrete,
        action_repeat=protocol.action_repeat,
        decisions=protocol.decisions,
        terminates=facts.terminates,
        proprio_dim=facts.proprio_dim,
    )


def admissible(actions: Tensor, env_spec: EnvSpec) -> NDArray[np.float32]:
    """[..., A] finite numbers -> what a simulator may see: exactly one-hot, or clipped to [-1, 1]."""
    actions = actions.detach().cpu().to(torch.float32)
    if env_spec.discrete:
        actions = torch.nn.functional.one_hot(actions.argmax(-1), env_spec.action_dim).to(torch.float32)
    return actions.clamp(-1, 1).numpy()
