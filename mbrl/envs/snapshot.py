"""A Meta-World world's whole moment as one vector of float64, which any other world of the same task can go on from.

Physics is only a part of it: tasks move bodies and sites of their model at a reset, and keep numbers that their rewards
read (where the object began, where the goal is) as attributes.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_MOVED = ("body_pos", "body_quat", "site_pos")  # arrays of the model that tasks write at a reset
_IGNORED = frozenset({"_last_stable_obs"})  # what Meta-World falls back to in a broken simulation; None at first
_DERIVED = ("xpos", "site_xpos", "geom_xpos")  # attributes that are windows into these follow the physics by themselves
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


class SimState:
    """Reads and writes the moments of one world; vectors of worlds of one task are interchangeable, bit for bit."""

    def __init__(self, world: Any) -> None:
        """`world`: a Meta-World environment that has been reset and stepped, so that every attribute is there."""
        self._world = world
        self._physics = np.empty(mujoco.mj_stateSize(world.model, _PHYSICS))
        held = vars(world)
        # as they are now: between two episodes some are None
        derived = [getattr(world.data, name) for name in _DERIVED]
        self._attributes = {
            name: value
            for name, value in sorted(held.items())
            if _counts(value) and name not in _IGNORED and not any(np.shares_memory(value, array) for array in derived)
        }
        sizes = [self._physics.size, *(getattr(world.model, name).size for name in _MOVED)]
        sizes += [np.size(value) for value in self._attributes.values()]
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        """Numbers in a moment."""
        return int(self._ends[-1])

    def read(self) -> NDArray[np.float64]:
        """The moment of now, [P].

        Raises: ValueError where an attribute is no longer what it was: the vector would lie.
        """
        model, data, held = self._world.model, self._world.data, vars(self._world)
        mujoco.mj_getState(model, data, self._physics, _PHYSICS)
        parts = [self._physics, *(getattr(model, name) for name in _MOVED)]
        parts += [np.asarray(held[name], np.float64) for name in self._attributes]
        moment_P = np.concatenate([part.ravel() for part in parts])
        if len(moment_P) != len(self):
            raise ValueError(f"a moment must have {len(self)} numbers (got {len(moment_P)})")
        return moment_P

    def write(self, moment_P: NDArray[np.float64]) -> None:
        """Makes `moment_P` the moment of now."""
        model, data, held = self._world.model, self._world.data, vars(self._world)
        pieces = np.split(moment_P, self._ends[:-1])
        for name, piece in zip(_MOVED, pieces[1:], strict=False):
            array = getattr(model, name)
            array[:] = piece.reshape(array.shape)
        mujoco.mj_setState(model, data, pieces[0], _PHYSICS)
        for (name, like), piece in zip(self._attributes.items(), pieces[1 + len(_MOVED) :], strict=True):
            if isinstance(like, np.ndarray):
                held[name] = piece.reshape(like.shape).astype(like.dtype)
            else:  # a number that was None reads as NaN
                held[name] = None if np.isnan(piece[0]) else type(like)(piece[0])
        mujoco.mj_forward(model, data)  # what is derived (places of bodies, contacts) follows
        mujoco.mj_setState(model, data, pieces[0], _PHYSICS)  # the forward pass has moved its own warm start


def _counts(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiu"
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
