"""What a world may do wrong at the door: each fault is one line with world, row, episode and decision."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mbrl.envs.simulator import EnvDataError, SimStep
from tests.envs.worlds import COUNTING, Recorder, recorded


@dataclass
class Lender(Recorder):
    """Gives the same buffers each time, as simulators that are made for speed do."""

    lent: dict[str, NDArray[Any]] = field(default_factory=dict)

    def _lend(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        buffer = self.lent.setdefault(name, value.copy())
        buffer[:] = value
        return buffer

    def draw(self) -> NDArray[Any]:
        return self._lend("frame", super().draw())

    def state(self) -> NDArray[Any]:
        return self._lend("state", super().state())

    def snapshot(self) -> NDArray[Any]:
        return self._lend("snapshot", super().snapshot())


def test_buffers_that_a_world_uses_again_change_nothing_that_was_given_away() -> None:
    lending, giving = (recorded([kind(), kind()], snapshots=True) for kind in (Lender, Recorder))
    action_EA = torch.zeros(2, 3)
    paths = []
    for env in (lending, giving):
        now, steps = env.reset(), []
        for _ in range(4):
            stepped, now = env.step_and_maybe_reset(now.set("action", action_EA))
            steps.append(stepped)
        paths.append(torch.stack(steps))
    keys = ("pixels", "proprio", "state", "snapshot")
    for key in (*keys, *(("next", key) for key in keys)):
        assert torch.equal(paths[0][key], paths[1][key]), key


def test_an_open_episode_of_lent_buffers_is_recreated_exactly() -> None:
    again = recorded([Lender()]).replay_actions([0], [torch.zeros(4, 3)])[0]
    assert again["pixels"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert again["state"][:, 0].tolist() == [0, 1, 2, 3]


def broken(change: str, made: Callable[[Recorder], Any]) -> Recorder:
    """A recorder whose method `change` does `made` from its second step on."""

    class Broken(Recorder):
        pass

    whole = getattr(Recorder, change)

    def method(self: Recorder, *given: Any) -> Any:
        answer = whole(self, *given)
        return made(self) if self.count >= 2 else answer

    setattr(Broken, change, method)
    return Broken()


def raised(error: BaseException) -> Callable[[Recorder], Any]:
    def method(world: Recorder) -> Any:
        raise error

    return method


def step(**changes: Any) -> Callable[[Recorder], Any]:
    return lambda world: SimStep(**({"reward": 1.0, "terminated": False, "success": False} | changes))


FAULTS: dict[str, tuple[str, Callable[[Recorder], Any], str]] = {
    "raises": ("step", raised(RuntimeError("the arm\nfell off")), "step raised RuntimeError: the arm fell off"),
    "raises without words": ("draw", raised(KeyError()), "draw raised KeyError"),
    "leaves the program": ("step", raised(SystemExit(0)), "step raised SystemExit"),
    "answers nothing": ("step", lambda world: None, "step must return a SimStep (got None)"),
    "answers as gym does": ("step", lambda world: [0.0, False], "step must return a SimStep (got a list)"),
    "reward is text": ("step", step(reward="1.0"), "reward must be a number (got '1.0')"),
    "reward is an array": ("step", step(reward=np.zeros(1)), "reward must be a number (got ndarray float64 (1,)"),
    "reward overflows": ("step", step(reward=1e39), "reward 1e+39 does not fit into float32"),
    "reward is a flag": ("step", step(reward=True), "reward must be a number (got True)"),
    "end is a number": ("step", step(terminated=1.0), "terminated must be True or False (got 1.0)"),
    "success is unknown": ("step", step(success=None), "success must be True or False (got None)"),
    "frame is a list": ("draw", lambda world: [[0]], "frame must be uint8 (3, 16, 16) (got a list)"),
    "frame is float": ("draw", lambda world: np.zeros((3, 16, 16)), "frame must be uint8 (3, 16, 16) (got float64"),
    "frame is HWC": ("draw", lambda world: np.zeros((16, 16, 3), np.uint8), "(got uint8 (16, 16, 3))"),
    "state is nan": ("state", lambda world: np.array([0.0, np.nan], np.float32), "state must be finite"),
    "state overflows": ("state", lambda world: np.array([0.0, 1e300]), "state must be finite in float32"),
    "state is short": ("state", lambda world: np.zeros(1, np.float32), "state must be 2 numbers (got float32 (1,))"),
    "state is text": ("state", lambda world: np.array(["a", "b"]), "state must be 2 numbers (got <U1 (2,))"),
    "snapshot is None": ("snapshot", lambda world: None, "snapshot must be 3 numbers (got None)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_world_is_one_line_with_its_place(name: str) -> None:
    method, made, said = FAULTS[name]
    env = recorded([Recorder(), broken(method, made)], snapshots=True)
    env.reset()
    for _ in range(2):
        env.reset()  # episode 2
    now = env.current()
    now = env.step_and_maybe_reset(now.set("action", torch.zeros(2, 3)))[1]
    with pytest.raises(EnvDataError) as caught:
        env.step(now.set("action", torch.zeros(2, 3)))
    assert said in str(caught.value)
    assert "in row 1 of recorder, episode 2, decision 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_keyboard_interrupt_in_a_world_stays_one() -> None:
    env = recorded([broken("step", raised(KeyboardInterrupt()))])
    now = env.reset()
    now = env.step_and_maybe_reset(now.set("action", torch.zeros(1, 3)))[1]
    with pytest.raises(KeyboardInterrupt):
        env.step(now.set("action", torch.zeros(1, 3)))


def test_a_fault_in_a_reset_is_told_too() -> None:
    class Broken(Recorder):
        def reset(self, seed: int) -> None:
            sys.exit("no licence")

    with pytest.raises(
        EnvDataError, match=r"Broken\.reset raised SystemExit: no licence in row 0 of recorder, episode 0"
    ):
        recorded([Broken()]).reset()


def test_the_step_that_comes_back_holds_the_action_that_was_executed() -> None:
    world = Recorder()
    env = recorded([world])
    stepped = env.step(env.reset().set("action", torch.tensor([[7.0, -7.0, 0.25]])))
    assert stepped["action"].tolist() == [[1.0, -1.0, 0.25]] == [world.actions[0].tolist()]
    discrete = recorded([Recorder(facts=dataclasses.replace(COUNTING, discrete=True))])
    assert discrete.step(discrete.reset().set("action", torch.tensor([[0.1, 0.7, 0.2]])))["action"].tolist() == [
        [0.0, 1.0, 0.0]
    ]
