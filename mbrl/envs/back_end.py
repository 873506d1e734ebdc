"""Which OpenGL draws MuJoCo's frames here: what the environment's variables ask for, or what answers.

Imports neither MuJoCo nor OpenGL: both take what the variables say at their first import, and fail there.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
from collections.abc import Iterator

_EGL_PLATFORM_DEVICE = 0x313F
OFF = ("disable", "disabled", "off", "false", "0")
ON = ("", "enable", "enabled", "on", "true", "1")
"""What MuJoCo takes for no drawing, and for a back end of its own choice."""
SCREENS = ("glfw", "wgl", "cgl")

NO_GL = (
    "no GL back end to draw MuJoCo frames with: install Mesa's EGL (Debian: apt-get install libegl1 libgl1-mesa-dri) "
    "or OSMesa (apt-get install libosmesa6); a choice can be forced with MUJOCO_GL=egl or MUJOCO_GL=osmesa"
)


class NoRendering(RuntimeError):
    """This machine cannot draw frames; the message says what to install."""


def _egl_answers() -> bool:
    """Whether libEGL lists a device that can be initialised.

    Asked through ctypes, because the first import of PyOpenGL fixes its platform for the whole process: a failed
    attempt with EGL would shut the door to OSMesa.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(addresses):
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(addresses[0])
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(addresses[1])
    devices, found = (ctypes.c_void_p * 16)(), ctypes.c_int()
    if not query(16, devices, ctypes.byref(found)):
        return False
    for device in devices[: found.value]:
        display = display_of(_EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(ctypes.c_void_p(display), None, None):
            return True
    return False


def _osmesa_answers() -> bool:
    name = ctypes.util.find_library("OSMesa")
    if name is None:
        return False
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def back_end() -> str:
    """`egl`, `osmesa` or what MUJOCO_GL says (which is never overruled); `native` where the system has its own.

    Raises: NoRendering with the variable to unset, or the packages to install.
    """
    chosen = _asked() or _answering()
    platform_asked = os.environ.get("PYOPENGL_PLATFORM", "").lower().strip()
    if chosen in ("egl", "osmesa") and platform_asked not in ("", chosen):
        raise NoRendering(f"PYOPENGL_PLATFORM={platform_asked} shuts out {chosen}, which answers here: unset it")
    return chosen


def _asked() -> str:
    """What MUJOCO_GL asks for, if it can be had; empty where the choice is ours. Raises: NoRendering."""
    value = os.environ.get("MUJOCO_GL", "").strip()
    asked = value.lower()
    if asked in ON:
        return ""
    if asked in OFF:
        raise NoRendering(f"MUJOCO_GL={value} forbids drawing; unset it, or set it to egl or osmesa")
    if asked in ("egl", "osmesa"):
        if not (_egl_answers() if asked == "egl" else _osmesa_answers()):
            raise NoRendering(f"MUJOCO_GL={value} does not work here: {_instead()}")
        return asked
    if asked not in SCREENS:
        raise NoRendering(f"MUJOCO_GL={value} is no back end: {_instead()}")
    if platform.system() == "Linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise NoRendering(f"MUJOCO_GL={value} draws on a screen, and there is none (DISPLAY is not set): {_instead()}")
    return "native"


def _answering() -> str:
    if platform.system() != "Linux":
        return "native"
    if _egl_answers():
        return "egl"
    if _osmesa_answers():
        return "osmesa"
    raise NoRendering(NO_GL)


def _instead() -> str:
    """What to do about a variable that asks for what is not there."""
    try:
        return f"unset it, {_answering()} answers here"
    except NoRendering as error:
        return str(error)


def unimportable() -> Iterator[str]:
    """What must be said before MuJoCo is imported at all (torchrl does it): it would refuse what MUJOCO_GL says."""
    if os.environ.get("MUJOCO_GL", "").lower().strip() not in (*ON, *OFF, *SCREENS):
        yield from unfit_variables()


def unfit_variables() -> Iterator[str]:
    """What must be said of variables that someone set, before anything is imported that obeys them."""
    if os.environ.get("MUJOCO_GL", "").lower().strip() in ON and not os.environ.get("PYOPENGL_PLATFORM"):
        return
    try:
        back_end()
    except NoRendering as error:
        yield str(error)
