"""Meta-World v3 as simulators: all 50 tasks, goals that follow the episode's seed, breakdowns of the physics noticed.

Knows Meta-World's classes; imports them only when worlds are built. Frames come from `pixels`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.back_end import unfit_variables
from mbrl.envs.protocol import NamedCamera, NumberedCamera, ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask, WorldFacts

# As data, so that a config is checked without importing the simulator; tests compare it with Meta-World's own.
# fmt: off
TASKS = {
    "assembly-v3": 701, "basketball-v3": 753, "bin-picking-v3": 733, "box-close-v3": 712, "button-press-v3": 664,
    "button-press-topdown-v3": 664, "button-press-topdown-wall-v3": 690, "button-press-wall-v3": 690,
    "coffee-button-v3": 748, "coffee-pull-v3": 750, "coffee-push-v3": 750, "dial-turn-v3": 671, "disassemble-v3": 705,
    "door-close-v3": 664, "door-lock-v3": 680, "door-open-v3": 665, "door-unlock-v3": 680, "drawer-close-v3": 672,
    "drawer-open-v3": 690, "faucet-close-v3": 681, "faucet-open-v3": 681, "hammer-v3": 736, "hand-insert-v3": 676,
    "handle-press-v3": 676, "handle-press-side-v3": 675, "handle-pull-v3": 672, "handle-pull-side-v3": 673,
    "lever-pull-v3": 666, "peg-insert-side-v3": 725, "peg-unplug-side-v3": 714, "pick-out-of-hole-v3": 686,
    "pick-place-v3": 673, "pick-place-wall-v3": 688, "plate-slide-v3": 683, "plate-slide-back-v3": 683,
    "plate-slide-back-side-v3": 683, "plate-slide-side-v3": 683, "push-v3": 673, "push-back-v3": 675,
    "push-wall-v3": 688, "reach-v3": 670, "reach-wall-v3": 688, "shelf-place-v3": 699, "soccer-v3": 709,
    "stick-pull-v3": 735, "stick-push-v3": 735, "sweep-v3": 692, "sweep-into-v3": 658, "window-close-v3": 700,
    "window-open-v3": 699,
}
"""All tasks, and how many numbers a moment of each has (`mbrl.envs.snapshot`)."""
# fmt: on
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
STEPS = 500  # Meta-World's episodes are no longer
# where the hand is, how far the gripper is open, and where the controller wants the hand, which follows with a lag;
# against an obstacle the two part, and without the third nobody can tell how the hand will move
CENTRE = np.array([0.0, 0.6, 0.2, 0.5, 0.0, 0.6, 0.2], np.float32)  # metres, about where the hand begins
SCALE = np.array([10.0, 10.0, 10.0, 1.0, 10.0, 10.0, 10.0], np.float32)  # decimetres


@dataclass(frozen=True, kw_only=True)
class MetaWorldTask:
    """One of the 50 tasks, by its v3 name. Raises: UnknownTask."""

    tasks: ClassVar[Sequence[str]] = tuple(TASKS)
    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UnknownTask("Meta-World", self.name, TASKS)

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        """The same of all tasks but for the length of a moment."""
        return WorldFacts(
            action_dim=4,
            proprio_dim=len(CENTRE),
            state_dim=42,
            snapshot_dim=TASKS[self.name],
            expert=True,
            parts={"hand": slice(0, 3), "object": slice(7, 10)},
        )

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        """About what draws, the camera and the length of an episode."""
        yield from unfit_variables()
        camera = protocol.camera
        if camera is None:
            yield (
                f"protocol.camera must be a camera in Meta-World (got null in protocol {protocol.name}); "
                "use another protocol, for example protocol=default"
            )
        if isinstance(camera, NumberedCamera):
            yield f"protocol.camera must be named or free in Meta-World (got a number in protocol {protocol.name})"
        if isinstance(camera, NamedCamera) and camera.name not in CAMERAS:
            yield f"protocol.camera.name must be one of {', '.join(CAMERAS)} in Meta-World (got {camera.name})"
        steps = protocol.decisions * protocol.action_repeat + protocol.zero_action_first
        if steps > STEPS:
            yield (
                f"protocol.decisions={protocol.decisions} x protocol.action_repeat={protocol.action_repeat} must be <= "
                f"{STEPS} simulator steps in Meta-World (got {steps}); "
                f"lower protocol.decisions to {STEPS // protocol.action_repeat - protocol.zero_action_first}"
            )

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[MetaWorld]:
        """`rows` worlds that share one compiled model and one painter. Raises: NoRendering."""
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
        self._sim_state: Any = None

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        import mujoco

        self._begin(seed)
        if self._sim_state is None:  # a world has all its attributes only when it has been stepped once
            from mbrl.envs.snapshot import SimState

            self.step(np.zeros(4, np.float32))
            self._sim_state = SimState(self._world)
            self._begin(seed)
        world = self._world
        for _ in range(self._settle):
            self.step(np.zeros(4, np.float32))
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
        return SimStep(reward=float(reward), success=bool(info["success"]), unstable=unstable)

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

    def proprio(self) -> NDArray[np.float32]:
        """Hand, gripper and where the controller wants the hand, f32 [7]."""
        return (self.state()[: len(CENTRE)] - CENTRE) * SCALE

    def snapshot(self) -> NDArray[np.float64]:
        """See `mbrl.envs.snapshot`; f64 [P]. Only after a reset."""
        assert self._sim_state is not None, "a world that was never reset has no moment yet"
        return np.concatenate([self._observation, self._sim_state.read()])

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Inverse of `snapshot`, also of another world of this task. Only after a reset."""
        assert self._sim_state is not None, "a world that was never reset has no moment yet"
        self._observation = snapshot_P[: self._observation.size].copy()
        self._sim_state.write(snapshot_P[self._observation.size :])

    def expert(self) -> NDArray[np.float32]:
        """Meta-World's scripted policy for this task, clipped to [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policies warn that they ask for more than 1, which is clipped here
            action = self._policy.get_action(self._observation)
        return np.clip(action, -1, 1).astype(np.float32)

    def close(self) -> None:
        """Frees the painter, which the worlds of one task share: they end together."""
        self._painter.close()
