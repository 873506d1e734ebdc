"""A benchmark on a SLURM cluster: an array job with one task for each run that is not finished.

Every task is `mbrl bench to=... only=<run>`, so that what a run is, its lock and its failures are the same as on one
machine. Shortly before its time is over, or on `scancel --signal=USR2`, a task is told to save; it then asks to be
queued again and goes on. (The job is a shell script: nothing is handed over that would have to be unpickled.)
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbrl.files import read_plain, write_atomically

NOTICE_S = 120
"""Before the end of its time limit a task is told."""
LOGS, JOB = "slurm", "job"
"""The folder of the tasks' logs, and in it the number of the newest job."""


def script(to: Path, places: Sequence[int], *, slots: int, options: Sequence[str]) -> str:
    """The array job for the runs at these places of the plan, `slots` at once.

    Args:
        options: of sbatch, such as `--partition=gpu`; they come last, and so count.
    """
    array = f"--array={','.join(map(str, places))}%{slots}"
    own = ["--job-name=mbrl", array, "--requeue", f"--signal=B:USR2@{NOTICE_S}", "--open-mode=append"]
    lines = [f"#SBATCH {option}" for option in (*own, *options)]
    words = [sys.executable, "-m", "mbrl", "bench", f"to={to.absolute()}"]
    command = f"exec {' '.join(map(shlex.quote, words))} only=$SLURM_ARRAY_TASK_ID"  # exec: the signal reaches Python
    return "\n".join(["#!/bin/sh", *lines, command, ""])


def submit(to: Path, places: Sequence[int], *, slots: int, options: Sequence[str]) -> str:
    """Hands the job to SLURM; its number. Raises: ValueError where there is no SLURM, or it refuses."""
    (to / LOGS).mkdir(exist_ok=True)
    # as an argument: a directive in a script cannot hold every path
    line = ["sbatch", "--parsable", f"--output={(to / LOGS).absolute()}/%A-%a.log"]
    job = script(to, places, slots=slots, options=options)
    try:
        if (old := waiting(to)) is not None:
            raise ValueError(f"launcher=slurm: job {old} of this plan is in the queue; wait for it, or: scancel {old}")
        done = subprocess.run(line, input=job, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ValueError("launcher=slurm needs SLURM's sbatch, which is not found here; launcher=local") from error
    if done.returncode:
        raise ValueError(f"launcher=slurm: sbatch refuses: {' '.join(done.stderr.split())}")
    job_id = done.stdout.strip().partition(";")[0]
    write_atomically(to / LOGS / JOB, job_id.encode())
    return job_id


def waiting(to: Path) -> str | None:
    """The number of the plan's newest job while any task of it waits or runs."""
    if not (to / LOGS / JOB).exists():
        return None
    job_id = read_plain(to / LOGS / JOB).decode()
    found = subprocess.run(["squeue", "--noheader", f"--jobs={job_id}"], capture_output=True, text=True, check=False)
    return job_id if found.stdout.strip() else None  # SLURM knows a job for a few minutes behind its end


def requeue(environment: Mapping[str, str] = os.environ) -> bool:
    """Asks SLURM to start this task once more, as soon as it has ended; whether there is a SLURM to ask."""
    job, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if not job or not task:
        return False
    return not subprocess.run(["scontrol", "requeue", f"{job}_{task}"], check=False).returncode
