"""The DeepMind Control Suite as simulators: all its tasks, seen through its own cameras, at any moment gone back to.

Knows dm_control's classes; imports them only when worlds are built. Frames come from `pixels`, not from dm_control.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbrl.envs.back_end import unfit_variables
from mbrl.envs.protocol import FreeCamera, NumberedCamera, ProtocolConfig
from mbrl.envs.simulator import SimStep, UnknownTask, WorldFacts, symlog

# As data, so that a config is checked without importing the simulator; tests compare it with the suite's own.
# fmt: off
TASKS = {
    "acrobot-swingup": (1, 6, 4, 28), "acrobot-swingup_sparse": (1, 6, 4, 28), "ball_in_cup-catch": (2, 8, 8, 37),
    "cartpole-balance": (1, 5, 4, 28), "cartpole-balance_sparse": (1, 5, 4, 28), "cartpole-swingup": (1, 5, 4, 28),
    "cartpole-swingup_sparse": (1, 5, 4, 28), "cartpole-two_poles": (1, 8, 6, 38),
    "cartpole-three_poles": (1, 11, 8, 48), "cheetah-run": (6, 17, 18, 94), "dog-stand": (38, 223, 197, 797),
    "dog-walk": (38, 223, 197, 797), "dog-trot": (38, 223, 197, 797), "dog-run": (38, 223, 197, 797),
    "dog-fetch": (38, 232, 210, 828), "finger-spin": (2, 9, 6, 73), "finger-turn_easy": (2, 12, 6, 73),
    "finger-turn_hard": (2, 12, 6, 73), "fish-upright": (5, 21, 27, 137), "fish-swim": (5, 24, 27, 137),
    "hopper-stand": (4, 15, 14, 74), "hopper-hop": (4, 15, 14, 74), "humanoid-stand": (21, 67, 55, 299),
    "humanoid-walk": (21, 67, 55, 299), "humanoid-run": (21, 67, 55, 299), "humanoid-run_pure_state": (21, 55, 55, 299),
    "humanoid_CMU-stand": (56, 137, 125, 514), "humanoid_CMU-walk": (56, 137, 125, 514),
    "humanoid_CMU-run": (56, 137, 125, 514), "lqr-lqr_2_1": (1, 4, 4, 28), "lqr-lqr_6_2": (2, 12, 12, 69),
    "manipulator-bring_ball": (5, 44, 22, 212), "manipulator-bring_peg": (5, 44, 22, 225),
    "manipulator-insert_ball": (5, 44, 22, 225), "manipulator-insert_peg": (5, 44, 22, 238),
    "pendulum-swingup": (1, 3, 2, 18), "point_mass-easy": (2, 4, 4, 27), "point_mass-hard": (2, 4, 4, 27),
    "quadruped-walk": (12, 78, 57, 262), "quadruped-run": (12, 78, 57, 262), "quadruped-escape": (12, 101, 57, 40683),
    "quadruped-fetch": (12, 90, 70, 293), "reacher-easy": (2, 6, 4, 65), "reacher-hard": (2, 6, 4, 65),
    "stacker-stack_2": (5, 49, 28, 185), "stacker-stack_4": (5, 63, 40, 227), "swimmer-swimmer6": (5, 25, 16, 185),
    "swimmer-swimmer15": (14, 61, 34, 392), "walker-stand": (6, 24, 18, 94), "walker-walk": (6, 24, 18, 94),
    "walker-run": (6, 24, 18, 94),
}
"""All tasks, `<domain>-<task>`: how many numbers an action, an observation, a state and a snapshot of each have."""
# fmt: on
MOVED = {
    "finger": ("site_pos",),
    "fish": ("geom_pos",),
    "manipulator": ("body_pos", "body_quat"),
    "point_mass": ("wrap_prm",),
    "quadruped-escape": ("hfield_data",),
    "reacher": ("geom_pos",),
    "stacker": ("body_pos",),
    "swimmer": ("geom_pos", "light_pos"),
}
"""Arrays of the model that the tasks of these names write at a reset: where targets are, and what a terrain is like."""
STEPS = 1000  # of an episode of the suite, whatever the length of a step
UNLIMITED = 1e10  # what dm_control says of actuators without limits
INSTALL = "pip install --no-deps dm-control==1.0.28 dm-env lxml"


@dataclass(frozen=True, kw_only=True)
class DMCTask:
    """A task of the suite by `<domain>-<task>`, e.g. `walker-walk`. Raises: UnknownTask."""

    tasks: ClassVar[Sequence[str]] = tuple(TASKS)
    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UnknownTask("the Control Suite", self.name, TASKS)

    def facts(self, protocol: ProtocolConfig) -> WorldFacts:
        """Rewards are in [0, 1], and no success is known; only linear-quadratic tasks end, where they come to rest."""
        action, observation, state, snapshot = TASKS[self.name]
        return WorldFacts(
            action_dim=action,
            terminates=self.name.startswith("lqr"),
            success=False,
            proprio_dim=observation,
            state_dim=state,
            snapshot_dim=snapshot,
        )

    def complaints(self, protocol: ProtocolConfig) -> Iterator[str]:
        """About what draws, the package, the camera, the length of an episode and its beginning."""
        yield from unfit_variables()
        if importlib.util.find_spec("dm_control") is None:
            yield f"{self.name} needs the package dm-control, which is not installed; type: {INSTALL}"
        if protocol.camera is None or isinstance(protocol.camera, FreeCamera):
            yield (
                f"protocol.camera must be a camera of the model in the Control Suite (got protocol {protocol.name}); "
                "use protocol=dmc_vision"
            )
        steps = protocol.decisions * protocol.action_repeat
        if steps > STEPS:
            yield (
                f"protocol.decisions={protocol.decisions} x protocol.action_repeat={protocol.action_repeat} must be <= "
                f"{STEPS} simulator steps in the Control Suite (got {steps}); "
                f"lower protocol.decisions to {STEPS // protocol.action_repeat}"
            )
        if protocol.zero_action_first:
            yield "protocol.zero_action_first must be false in the Control Suite, whose resets settle by themselves"

    def build(self, *, protocol: ProtocolConfig, rows: int) -> list[DMC]:
        """`rows` worlds on copies of one compiled model, with one painter. Raises: NoRendering, ValueError (camera)."""
        from mbrl.envs.pixels import Painter

        domain, task = self.name.split("-")
        # the model of the linear-quadratic tasks is random: here it is always the same one
        env = suite().load(domain, task, task_kwargs={"random": 0})
        if isinstance(protocol.camera, NumberedCamera):
            number = protocol.camera.by_domain.get(domain, protocol.camera.number)
            protocol = dataclasses.replace(protocol, camera=NumberedCamera(number=number, by_domain={}))
        painter = Painter(env.physics.model.ptr, protocol)
        moved = next((arrays for name, arrays in MOVED.items() if self.name.startswith(name)), ())
        steps = round(env.control_timestep() / env.physics.timestep())
        return [
            DMC(env.physics if row == 0 else env.physics.copy(), copy.deepcopy(env.task), steps, moved, painter)
            for row in range(rows)
        ]


def suite() -> Any:
    """dm_control's suite; it must find no OpenGL, since a second user of it in this process could take the first one's.

    Two lines of its quadruped do not run as they are: one calls a function that NumPy 2.4 no longer has, one makes an
    OpenGL context for a picture that nobody asked for.
    """
    import mujoco  # noqa: F401  before the variable says that there is nothing to draw with

    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        from dm_control import suite
        from dm_control.suite import quadruped
    finally:
        del os.environ["MUJOCO_GL"]
        if chosen is not None:
            os.environ["MUJOCO_GL"] = chosen

    def sensor_names(physics: Any, *kinds: int) -> list[str]:
        (numbers,) = np.isin(physics.model.sensor_type, kinds).nonzero()
        return [physics.model.id2name(number, "sensor") for number in numbers]

    quadruped.Physics._get_sensor_names = sensor_names
    quadruped.Physics.contexts = None
    return suite


class DMC:
    """A task of the suite whose whole episode is a function of its seed and its actions.

    Steps as dm_control's `Environment` does, without its time limit: the protocol has one.
    """

    def __init__(self, physics: Any, task: Any, steps: int, moved: Sequence[str], painter: Any) -> None:
        """`steps`: of the physics for one of the task; `moved`: arrays of the model that are part of a moment."""
        import mujoco

        self._physics, self._task, self._steps, self._painter = physics, task, steps, painter
        self._model, self._data = physics.model.ptr, physics.data.ptr
        spec = task.action_spec(physics)
        limited = spec.maximum < UNLIMITED
        self._middle = np.where(limited, (spec.minimum + spec.maximum) / 2, 0.0)
        self._reach = np.where(limited, (spec.maximum - spec.minimum) / 2, 1.0)
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._integration = np.empty(mujoco.mj_stateSize(self._model, self._kind))
        self._moved = [getattr(self._model, name) for name in moved]
        self._ends = np.cumsum([len(self._integration), self._data.sensordata.size, *(a.size for a in self._moved)])

    def reset(self, seed: int) -> None:
        """Begins the episode of this seed."""
        self._task.random.seed(seed)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)

    def step(self, action: NDArray[np.float32]) -> SimStep:
        """One step of the task (10 to 40 ms of simulated time); [-1, 1] are the actuators' limits."""
        from dm_control.rl.control import PhysicsError

        try:
            self._task.before_step(self._middle + self._reach * action, self._physics)
            self._physics.step(self._steps)
            self._task.after_step(self._physics)
        except PhysicsError:
            return SimStep(0.0, unstable=True)
        ended = self._task.get_termination(self._physics) is not None
        return SimStep(float(self._task.get_reward(self._physics)), terminated=ended)

    def draw(self) -> NDArray[np.uint8]:
        """u8 [3, H, W]."""
        return self._painter.draw(self._model, self._data)

    def state(self) -> NDArray[np.float32]:
        """Positions, velocities and activations of the physics, f32 [S]."""
        return self._physics.get_state().astype(np.float32)

    def proprio(self) -> NDArray[np.float32]:
        """The task's observation, flattened in its own order, on a symlog scale: velocities reach 50; f32 [Q]."""
        parts = self._task.get_observation(self._physics).values()
        return symlog(np.concatenate([np.ravel(part) for part in parts]))

    def snapshot(self) -> NDArray[np.float64]:
        """Physics, sensors (forces in them are those of the last step) and what the reset has moved, f64 [P]."""
        import mujoco

        mujoco.mj_getState(self._model, self._data, self._integration, self._kind)
        return np.concatenate([self._integration, self._data.sensordata, *(array.ravel() for array in self._moved)])

    def restore(self, snapshot_P: NDArray[np.float64]) -> None:
        """Inverse of `snapshot`, also of another world of this task."""
        import mujoco

        integration, sensors, *moved = np.split(snapshot_P, self._ends[:-1])
        for array, piece in zip(self._moved, moved, strict=True):
            array[:] = piece.reshape(array.shape)
        mujoco.mj_setState(self._model, self._data, integration, self._kind)
        mujoco.mj_step1(self._model, self._data)  # what every step of dm_control ends with
        self._data.sensordata[:] = sensors

    def close(self) -> None:
        """Frees the painter, which the worlds of one task share: they end together."""
        self._painter.close()
