"""Pictures of MuJoCo worlds: keeps one GL context per process, draws uint8 frames.

Knows nothing of tasks or rewards. The context belongs to the thread that drew first.
"""

from __future__ import annotations

import atexit
import os
import re
import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from mbrl.envs.back_end import NoRendering, back_end
from mbrl.envs.protocol import Camera, FreeCamera, NamedCamera, NumberedCamera, ProtocolConfig

_MAX_GEOMS = 2000
OBEYED = re.compile(r"MUJOCO_(GL|EGL)|PYOPENGL|LIBGL|MESA|EGL_|__EGL|__GLX|GALLIUM|DISPLAY$")
"""Variables that OpenGL's libraries obey."""


class _Display:
    """The process's one GL context, made at the first frame and freed at exit before EGL itself shuts down."""

    def __init__(self) -> None:
        self.context: Any = None
        self.painters: weakref.WeakSet[Painter] = weakref.WeakSet()

    def make_current(self) -> None:
        if self.context is None:
            self.context = _opened(back_end())
            atexit.register(self.close)  # runs before the eglTerminate that mujoco.egl registered just now
        self.context.make_current()

    def close(self) -> None:
        for painter in list(self.painters):
            painter.close()
        if self.context is not None:
            self.context.free()
            self.context = None


def _opened(chosen: str) -> Any:
    """A GL context of this back end. Raises: NoRendering with what it says, and the variables that it obeys."""
    try:
        if chosen == "egl":
            from mujoco.egl import GLContext
        elif chosen == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.gl_context import GLContext
        return GLContext(256, 256)
    except Exception as error:  # OpenGL's libraries raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        named = [f"{key}={value}" for key, value in sorted(os.environ.items()) if OBEYED.match(key)]
        unset = f"; unset {' '.join(named)}" if named else ""
        raise NoRendering(f"{chosen} cannot be opened ({said}){unset}") from error


_display = _Display()


class Painter:
    """Draws the worlds of one MuJoCo model (any number of copies of it) as a protocol says.

    Meshes and textures are loaded into GL once; what differs between copies (poses, heights of a terrain) is given at
    each frame.

    Raises: ValueError for a camera that the model does not have; NoRendering.
    """

    def __init__(self, model: mujoco.MjModel, protocol: ProtocolConfig) -> None:
        self.image, self.flip = protocol.image, protocol.flip
        self._camera = _camera(model, protocol.camera)
        fast = protocol.quality == "fast"
        if fast:  # before the context is made: it allocates these buffers
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        _display.make_current()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.image)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.image)
        self._gl: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if fast:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0  # sensors are not part of a world's look
        self._heights = model.hfield_data.copy()
        self._rectangle = mujoco.MjrRect(0, 0, self.image, self.image)
        self._raw_HWC = np.empty((self.image, self.image, 3), np.uint8)
        _display.painters.add(self)

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData) -> NDArray[np.uint8]:
        """The frame of this state, u8 [3, H, W], top row first; a new array each time."""
        assert self._gl is not None, "a closed painter cannot draw"
        _display.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl)  # another painter may have bound its own
        if not np.array_equal(model.hfield_data, self._heights):
            self._heights = model.hfield_data.copy()
            for terrain in range(model.nhfield):
                mujoco.mjr_uploadHField(model, self._gl, terrain)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._gl)
        mujoco.mjr_readPixels(self._raw_HWC, None, self._rectangle, self._gl)
        frame_HWC = self._raw_HWC[::-1]  # GL counts rows from below
        if self.flip == "vertical":
            frame_HWC = frame_HWC[::-1]
        elif self.flip == "rot180":
            frame_HWC = frame_HWC[::-1, ::-1]
        return np.ascontiguousarray(frame_HWC.transpose(2, 0, 1))

    def close(self) -> None:
        """Frees the GL buffers; may be called twice."""
        if self._gl is not None:
            _display.make_current()
            self._gl.free()
            self._gl = None


def _camera(model: mujoco.MjModel, camera: Camera) -> mujoco.MjvCamera:
    view = mujoco.MjvCamera()
    if isinstance(camera, FreeCamera):
        view.type = mujoco.mjtCamera.mjCAMERA_FREE
        view.lookat[:] = camera.lookat
        view.distance, view.azimuth, view.elevation = camera.distance, camera.azimuth, camera.elevation
        return view
    view.type = mujoco.mjtCamera.mjCAMERA_FIXED
    if isinstance(camera, NumberedCamera) and camera.number < model.ncam:
        view.fixedcamid = camera.number
        return view
    known = [model.camera(i).name for i in range(model.ncam)]
    if not isinstance(camera, NamedCamera) or camera.name not in known:
        asked = getattr(camera, "name", getattr(camera, "number", camera))
        raise ValueError(f"camera must be a free camera or one of {', '.join(known)} (got {asked})")
    view.fixedcamid = known.index(camera.name)
    return view
