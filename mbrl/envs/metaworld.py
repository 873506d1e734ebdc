"""Meta-World v3 as simulators: all 50 tasks, goals that follow the episode's seed, breakdowns of the physics noticed.

Knows Meta-World's classes; imports them only when worlds are built. Frames come from `pixels`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask

# As data, so that a config is checked without importing the simulator; a test compares it with Meta-World's own list.
# fmt: off
TASKS = (
    "assembly-v3", "basketball-v3", "bin-picking-v3", "box-close-v3", "button-press-v3",
    "button-press-topdown-v3", "button-press-topdown-wall-v3", "button-press-wall-v3", "coffee-button-v3",
    "coffee-pull-v3", "coffee-push-v3", "dial-turn-v3", "disassemble-v3", "door-close-v3", "door-lock-v3",
    "door-open-v3", "door-unlock-v3", "drawer-close-v3", "drawer-open-v3", "faucet-close-v3", "faucet-open-v3",
    "hammer-v3", "hand-insert-v3", "handle-press-v3", "handle-press-side-v3", "handle-pull-v3",
    "handle-pull-side-v3", "lever-pull-v3", "peg-insert-side-v3", "peg-unplug-side-v3", "pick-out-of-hole-v3",
    "pick-place-v3", "pick-place-wall-v3", "plate-slide-v3", "plate-slide-back-v3", "plate-slide-back-side-v3",
    "plate-slide-side-v3", "push-v3", "push-back-v3", "push-wall-v3", "reach-v3", "reach-wall-v3",
    "shelf-place-v3", "soccer-v3", "stick-pull-v3", "stick-push-v3", "sweep-v3", "sweep-into-v3",
    "window-close-v3", "window-open-v3",
)
# fmt: on

_HORIZON = 500  # Meta-World's episodes are no longer


@dataclass(frozen=True, kw_only=True)
class MetaWorldTask:
    """One of the 50 tasks, by its v3 name. Raises: UnknownTask."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UnknownTask("Meta-World", self.name, TASKS)

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[MetaWorld]:
        """`rows` worlds that share one compiled model and one painter.

        Raises: ValueError if an episode of the protocol is longer than Meta-World allows; NoRendering.
        """
        steps = protocol.decisions * protocol.action_repeat + protocol.zero_action_first
        if steps > _HORIZON:
            raise ValueError(
                f"decisions * action_repeat must be <= {_HORIZON} simulator steps in Meta-World (got {steps} with "
                f"decisions={protocol.decisions}, action_repeat={protocol.action_repeat})"
            )
        import mujoco
        from metaworld.env_dict import ENV_CLS_MAP
        from metaworld.policies import ENV_POLICY_MAP

        from mbrl.envs.pixels import Painter

        task = ENV_CLS_MAP[self.name]
        compiled: list[Any] = []

        class Copied(task):  # type: ignore[valid-type,misc]
            """The task on a copy of one compiled model: compiling takes 0.1 s, copying 0.005."""

            max_path_length = 10**9  # imagination may go on from the last moments of the longest episode

            def _initialize_simulation(self) -> tuple[Any, Any]:
                if not compiled:
                    model, data = super()._initialize_simulation()
                    compiled.append(copy.copy(model))
                    return model, data
                model = copy.copy(compiled[0])
                return model, mujoco.MjData(model)

        policy: Any = ENV_POLICY_MAP[self.name]
        worlds = [Copied() for _ in range(rows)]
        painter = Painter(compiled[0], protocol)
        settle = int(protocol.zero_action_first)
        return [MetaWorld(world, painter, policy(), settle=settle) for world in worlds]


class MetaWorld:
    """One Meta-World task whose whole episode is a function of its seed and its actions.

    The goal and the objects' places are drawn as Meta-World draws its own lists of goals: one reset with free draws
    from a generator of the episode's seed, then a reset with that draw held fixed.
    """

    action_dim = 4
    discrete = False
    terminates = False
    # where the hand is, how far the gripper is open, and where the controller wants the hand, which follows with a lag;
    # against an obstacle the two part, and without the third nobody can tell how the hand will move
    proprio_dim = 7
    proprio_centre = (0.0, 0.6, 0.2, 0.5, 0.0, 0.6, 0.2)  # metres, about where the hand begins
    proprio_scale = (10.0, 10.0, 10.0, 1.0, 10.0, 10.0, 10.0)  # decimetres
    parts: ClassVar[Mapping[str, slice]] = {"hand": slice(0, 3), "object": slice(7, 10)}

    def __init__(self, world: Any, painter: Any, policy: Any, *, settle: int) -> None:
        import mujoco

        self._world, self._painter, self._policy, self._settle = world, painter, policy, settle
        world._set_task_called = True
        world.seeded_rand_vec = True
        world._partially_observable = False  # the experts read the goal
        world.__dict__.pop("sawyer_observation_space", None)  # it was cached for the hidden goal
        kinds = mujoco.mjtWarning
        self._breakdowns = [int(k) for k in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)]
        self._breakdowns.append(int(kinds.mjWARN_BADCTRL))
        self._observation: NDArray[np.float64] = np.zeros(39)
        self._moments: Any = None

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        import mujoco

        self._begin(seed)
        if self._moments is None:  # a world has all its attributes only when it has been stepped once
            from mbrl.envs.snapshot import Moments

            self.step(np.zeros(self.action_dim, np.float32))
            self._moments = Moments(self._world)
            self._begin(seed)
        world = self._world
        for _ in range(self._settle):
            self.step(np.zeros(self.action_dim, np.float32))
        mujoco.mj_forward(world.model, world.data)  # tasks move bodies after their last forward pass: draw what is

    def _begin(self, seed: int) -> None:
        world = self._world
        world.seed(seed)
        world._freeze_rand_vec = False
        world.reset_model()  # draws
        world._freeze_rand_vec = True
        self._observation = world.reset()[0]

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """One simulator step (12.5 ms of simulated time)."""
        data = self._world.data
        time, counted = data.time, self._broken()
        self._observation, reward, _, _, info = self._world.step(action)
        # MuJoCo answers a broken state by resetting itself, and Meta-World does not tell
        unstable = data.time <= time or self._broken() != counted
        return SimStep(float(reward), terminated=False, success=bool(info["success"]), unstable=unstable)

    def _broken(self) -> int:
        return sum(self._world.data.warning[kind].number for kind in self._breakdowns)

    def draw(self) -> NDArray[np.uint8]:
        """u8 [3, H, W]."""
        return self._painter.draw(self._world.model, self._world.data)

    def state(self) -> NDArray[np.float32]:
        """Meta-World's own 39 numbers: hand, gripper, objects now and one simulator step ago, goal; f32 [42].

        Behind the first 4 is put where the controller wants the hand.
        """
        wanted = self._world.data.mocap_pos[0]
        return np.concatenate([self._observation[:4], wanted, self._observation[4:]]).astype(np.float32)

    def snapshot(self) -> NDArray[np.float64]:
        """See `mbrl.envs.snapshot`; f64 [P]. Only after a reset."""
        assert self._moments is not None, "a world that was never reset has no moment yet"
        return np.concatenate([self._observation, self._moments.read()])

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Inverse of `snapshot`, also of another world of this task. Only after a reset."""
        assert self._moments is not None, "a world that was never reset has no moment yet"
        self._observation = snapshot_P[: self._observation.size].copy()
        self._moments.write(snapshot_P[self._observation.size :])

    def expert(self) -> NDArray[np.float32]:
        """Meta-World's scripted policy for this task, clipped to [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policies warn that they ask for more than 1, which is clipped here
            action = self._policy.get_action(self._observation)
        return np.clip(action, -1, 1).astype(np.float32)

    def close(self) -> None:
        """Frees the painter, which the worlds of one task share: they end together."""
        self._painter.close()
