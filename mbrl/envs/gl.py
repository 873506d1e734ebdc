"""Who draws: the GL back end, its vendor and renderer, and whether that is a graphics card or the processor."""

from __future__ import annotations

import mujoco
import numpy as np

from mbrl.envs.back_end import back_end
from mbrl.envs.pixels import Painter
from mbrl.envs.protocol import FreeCamera, ProtocolConfig

SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swr", "software")
MODEL = "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='1' rgba='1 0 0 1'/></worldbody></mujoco>"
VIEW = ProtocolConfig(
    name="probe",
    image=64,
    camera=FreeCamera(lookat=(0.0, 0.0, 0.0), distance=4.0, azimuth=0.0, elevation=-30.0),
    flip="none",
    quality="full",
    action_repeat=1,
    decisions=1,
    success_bonus=0.0,
    success="any",
    zero_action_first=False,
    deviations=(),
)


def drawn_by() -> str:
    """Draws a red ball and says by what, e.g. `egl, Mesa/X.org llvmpipe (software)`.

    Raises: NoRendering if there is no back end; RuntimeError if no ball is in the frame.
    """
    chosen = back_end()
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    painter = Painter(model, VIEW)
    frame_CHW = painter.draw(model, data).astype(np.int64)
    if not (frame_CHW[0] > frame_CHW[1] + 20).any():
        raise RuntimeError(f"{chosen} drew an empty frame (brightest value {frame_CHW.max()})")
    # PyOpenGL's platform is fixed by its first import, which must be the one of the context that now exists.
    from OpenGL import GL

    vendor, renderer = (GL.glGetString(name).decode() for name in (GL.GL_VENDOR, GL.GL_RENDERER))
    painter.close()
    kind = "software" if any(word in renderer.lower() for word in SOFTWARE) else "hardware"
    return f"{chosen}, {vendor} {renderer} ({kind})"
