"""A SLURM of one node on this machine's loopback, with daemons of its own that end with the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
# a job that is queued again waits for cred_expire, two minutes if nothing is said
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=15
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=20
MailProg=/bin/true
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """What keeps SLURM from being started here; empty if nothing does."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        return f"needs SLURM: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "needs root to start SLURM's daemons"


@contextmanager
def slurm(home: Path) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach it. `home`: short, for a socket lies in it."""
    for name in ("state", "spool"):
        (home / name).mkdir(parents=True)
    home.chmod(0o755)  # munged wants nobody else to be able to write here
    key, host = home / "munge.key", socket.gethostname().partition(".")[0]
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (home / "slurm.conf").write_text(CONFIG.format(home=home, host=host, ports=free_ports()))
    environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}
    files = {name: home / f"munge.{name}" for name in ("socket", "key", "log", "pid", "seed")}
    munged = ["munged", "--foreground", "--force", f"--socket={files['socket']}", f"--key-file={files['key']}"]
    munged += [f"--log-file={files['log']}", f"--pid-file={files['pid']}", f"--seed-file={files['seed']}"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for line in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            with (home / f"{line[0]}.out").open("wb") as output:
                started.append(subprocess.Popen(line, env=environment, stdout=output, stderr=output))
            wait(lambda: files["socket"].exists(), "munged")
        asked = ["sinfo", "--noheader", "--format=%T"]
        wait(lambda: "idle" in subprocess.run(asked, env=environment, capture_output=True, text=True).stdout, "slurm")
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports[0], ports[1]


def wait(done: object, what: str, seconds: float = 60.0) -> None:
    """Until `done()`. Raises: TimeoutError."""
    assert callable(done)
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} is not there after {seconds:.0f} s")
        time.sleep(0.1)
