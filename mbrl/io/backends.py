"""Logging services that may fail without harm: each works in a thread behind a bounded queue, and costs one warning.

Knows nothing of what is logged. The CSV files of mbrl/io/logger.py are the record; these are windows on it.
"""

from __future__ import annotations

import logging
import os
import queue
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

QUEUE_ROWS = 1000
"""Rows that wait for a slow service; further ones are dropped and counted."""


class Sink(Protocol):
    """A logging service, opened. Every method may raise; the thread around it takes care."""

    def write(self, values: Mapping[str, float], x: Mapping[str, float]) -> None:
        """One row."""
        ...

    def video(self, name: str, path: Path, x: Mapping[str, float]) -> None:
        """A picture or GIF that lies on disk."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class Background:
    """Feeds a sink from a thread. Never raises, never waits longer than `patience_s`, and that only in `close`.

    Args:
        name: of the service, for the one warning line.
        open_sink: imports the library and opens the service; called in the thread, on the first row.
        patience_s: how long `close` waits for the service to take the rest.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], *, patience_s: float) -> None:
        self._name = name
        self._open = open_sink
        self._patience_s = patience_s
        self._jobs: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(QUEUE_ROWS)
        self._thread: threading.Thread | None = None
        self._failed = threading.Event()
        self._dropped = 0

    def write(self, values: Mapping[str, float], x: Mapping[str, float]) -> None:
        """Hands one row over."""
        row, at = dict(values), dict(x)
        self._put(lambda sink: sink.write(row, at))

    def video(self, name: str, path: Path, x: Mapping[str, float]) -> None:
        """Hands a picture or GIF over by its path."""
        at = dict(x)
        self._put(lambda sink: sink.video(name, path, at))

    def close(self) -> None:
        """Lets the thread finish, for `patience_s` at most."""
        if self._thread is None or self._failed.is_set():
            return
        thread, self._thread = self._thread, None
        try:
            self._jobs.put(None, timeout=self._patience_s)
        except queue.Full:
            self._dropped += 1
        thread.join(self._patience_s)
        if thread.is_alive():
            log.warning("%s did not finish within %.0f s; the CSV files are complete", self._name, self._patience_s)
        elif self._dropped:
            log.warning("%s was too slow for %d rows; the CSV files are complete", self._name, self._dropped)

    def _put(self, job: Callable[[Sink], None]) -> None:
        if self._failed.is_set():
            return
        if self._thread is None:
            # a daemon: a service that hangs must not keep the process alive
            self._thread = threading.Thread(target=self._work, name=f"log-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        try:
            sink = self._open()
            while (job := self._jobs.get()) is not None:
                job(sink)
            sink.close()
        except BaseException as error:  # libraries raise anything, even SystemExit; nobody is above to hear it
            reason = str(error).strip().splitlines() or [""]
            log.warning(
                "%s is off (%s: %s); the run goes on and the CSV files are complete",
                self._name,
                type(error).__name__,
                reason[0],
            )
            self._failed.set()  # after the warning: who sees the flag may count on the line being there


class TensorBoardSink:
    """Event files in `folder`; rows from `purge` env steps on, left by an interrupted run, are hidden."""

    def __init__(self, folder: Path, *, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=10)

    def write(self, values: Mapping[str, float], x: Mapping[str, float]) -> None:
        """Scalars over env steps."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, int(x["env_step"]))

    def video(self, name: str, path: Path, x: Mapping[str, float]) -> None:
        """The path only: TensorBoard takes raw frames, not files."""
        self._writer.add_text(name, str(path), int(x["env_step"]))

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run; offline where the server does not answer within `timeout_s`.

    WANDB_MODE in the environment wins over `mode`. A run that is offline cannot be continued: every start of it is a
    part with an id of its own, and all parts are of one group.
    """

    def __init__(self, *, mode: str, timeout_s: float, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._folder = Path(settings["dir"])
        limits = wandb.Settings(init_timeout=timeout_s, login_timeout=int(timeout_s) or 1, console="off", silent=True)
        mode = os.environ.get("WANDB_MODE", "").strip() or mode
        if mode != "offline":
            try:
                self._run = wandb.init(mode=mode, settings=limits, **settings)  # type: ignore[arg-type]
            except Exception as error:
                log.warning("wandb cannot be reached (%s); logging offline", type(error).__name__)
                mode = "offline"
        self._offline = mode == "offline"
        if self._offline:
            part = len(list(self._folder.glob(f"wandb/offline-run-*-{settings['id']}-*")))
            own = {"id": f"{settings['id']}-{part}", "group": settings["group"] or settings["id"]}
            self._run = wandb.init(mode="offline", settings=limits, **{**settings, **own})
        self._run.define_metric("*", step_metric="env_step")

    def write(self, values: Mapping[str, float], x: Mapping[str, float]) -> None:
        """One row; its x columns are logged with it, so that resumed curves fit."""
        self._run.log({**values, **x})

    def video(self, name: str, path: Path, x: Mapping[str, float]) -> None:
        """Uploads the file."""
        picture = self._wandb.Video if path.suffix == ".gif" else self._wandb.Image
        self._run.log({name: picture(str(path)), **x})

    def close(self) -> None:
        """Waits for the upload."""
        self._run.finish()
        if self._offline:
            parts = shlex.quote(str(self._folder / "wandb"))
            log.info(
                "wandb logged offline, one part for each start; all are uploaded by: wandb sync %s/offline-run-*", parts
            )
