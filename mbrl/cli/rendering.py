"""Set-up's last step: proves that frames can be drawn here, and gets the OpenGL libraries where they are missing.

The probe runs in processes of its own, because a GL back end that failed stays chosen for the life of a process.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from mbrl.cli.errors import BAD_INPUT, DONE

PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri")  # Debian's and Ubuntu's names
PROBE_SECONDS = 120
INSTALL_SECONDS = 900

PROBE = """
from mbrl.envs.gl import drawn_by
print(drawn_by())
"""


def probe() -> tuple[str | None, str]:
    """Draws one frame in a fresh process; (what drew it, why nothing could)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"drawing one frame took longer than {PROBE_SECONDS} seconds"
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1], ""
    return None, (done.stderr.strip().splitlines() or ["the process ended without a word"])[-1]


def install_command(*, root: bool) -> str:
    """The one line that gets the libraries on this system."""
    sudo = "" if root else "sudo "
    if shutil.which("apt-get"):
        return f"{sudo}apt-get update && {sudo}apt-get install -y {' '.join(PACKAGES)}"
    if shutil.which("dnf"):
        return f"{sudo}dnf install -y mesa-libEGL mesa-libGL mesa-dri-drivers"
    if shutil.which("pacman"):
        return f"{sudo}pacman -S --needed mesa"
    return "install Mesa's EGL and software renderer with your system's package manager"


def install(run: Callable[[Sequence[str]], bool]) -> bool:
    """Installs Debian's packages where that is possible without asking anybody (root, apt-get, no choice forced)."""
    if not (os.geteuid() == 0 and shutil.which("apt-get")):
        return False
    print(f"==> no OpenGL library found: installing {' '.join(PACKAGES)}", flush=True)
    return run(["apt-get", "update"]) and run(["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES])


def run_quietly(command: Sequence[str]) -> bool:
    """Whether the command succeeded; its last words are printed if not."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"==> {' '.join(command)} took longer than {INSTALL_SECONDS} seconds", file=sys.stderr)
        return False
    if done.returncode:
        print("\n".join(done.stderr.strip().splitlines()[-3:]), file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    """Checks, installs if it may, checks again; prints one line. Exit code 0 if frames can be drawn."""
    drawn, why = probe()
    forced = os.environ.get("MUJOCO_GL")
    if drawn is None and not forced and platform.system() == "Linux" and install(run_quietly):
        drawn, why = probe()
    if drawn is not None:
        print(f"==> rendering works: {drawn}")
        return DONE
    print(f"error: frames cannot be drawn here ({why})", file=sys.stderr)
    if forced:
        print(f"MUJOCO_GL={forced} was asked for; unset it to let another back end be tried", file=sys.stderr)
    else:
        print(f"type this and run make again:\n  {install_command(root=os.geteuid() == 0)}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
