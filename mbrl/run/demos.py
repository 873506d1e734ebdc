"""Demonstrations: whole episodes of the world's scripted expert, or recorded ones, which open the replay.

As experience they are like any other: same protocol, same files, numbers from the run's one counter (which alone makes
an episode's name unique; their row is 0, as it is for a row of training). What sets them apart: they come first, they
cost no env steps (as on the axis of the paper's curves), and the training episodes' running means leave them out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from mbrl.data.dataset import DataSet
from mbrl.envs.rows import RowsEnv
from mbrl.replay.clips import ClipReplay
from mbrl.replay.cut import KEPT, episode_of
from mbrl.replay.episode import Episode
from mbrl.run.clock import Clock
from mbrl.run.rehearsal import fitting
from mbrl.rundir.stop import Stop

log = logging.getLogger("mbrl")

DONE = "demos"
"""Their name among the clock's counters."""


def check_demos(demos: Any) -> int:
    """How many are asked for. Raises: ValueError for anything but a whole number >= 0."""
    if isinstance(demos, bool) or not isinstance(demos, int) or demos < 0:
        raise ValueError(f"demos must be a whole number >= 0 (got {demos}); for example demos=5")
    return demos


class Teacher(Protocol):
    """Whose episodes demonstrate."""

    def episode(self, number: int, stop: Stop) -> Episode | None:
        """The demonstration of this number; None if a stop came first. Raises: ValueError if it fits no run."""
        ...

    def tell(self, made: list[Episode]) -> None:
        """Says how good they are."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class Demos:
    """Puts `episodes` demonstrations into replay, each once in the life of a run, however often it is interrupted.

    Replay keeps them for ever, on top of its capacity (`EpisodeStore.protected`): the paper's buffer never drops them.
    """

    def __init__(self, episodes: int, teacher: Teacher, *, replay: ClipReplay, clock: Clock) -> None:
        self.episodes = episodes
        self.teacher = teacher
        self.replay = replay
        self.clock = clock

    @property
    def made(self) -> int:
        """How many there are already."""
        return self.clock.done.get(DONE, 0)

    def collect(self, stop: Stop) -> None:
        """Takes those that are missing. After a stop, which may come in the middle of one, the next call goes on."""
        while self.made < self.episodes:
            episode = self.teacher.episode(self.made, stop)
            if episode is None:
                return
            self.replay.append(replace(episode, env=0, number=self.clock.episodes))
            self.clock.episodes += 1
            self.clock.done[DONE] = self.made + 1
            if self.made == self.episodes:
                stored = (stored.episode for stored in self.replay.store.stored)
                self.teacher.tell([episode for episode in stored if episode.number < self.episodes])
        self.teacher.close()


class Scripted:
    """The scripted expert of a world.

    After its success an expert goes on to the end of the episode, as an agent does. An episode in which it fails is
    kept too, since another start and goal would be a choice; how many there are is said aloud.
    """

    def __init__(self, env: RowsEnv) -> None:
        """`env`: one row of a world with an expert, with a stream of seeds of its own. Demo k is its episode k."""
        assert env.batch_size == (1,) and env.facts.expert, env.task
        self.env = env

    def episode(self, number: int, stop: Stop) -> Episode | None:
        """See `Teacher`; half a demonstration is forgotten, not saved."""
        self.env.episodes = [number]
        now, steps = self.env.reset(), []
        while not stop:
            stepped, now = self.env.step_and_maybe_reset(now.set("action", self.env.expert_actions()))
            steps.append(stepped[0].select(*KEPT, strict=False).clone())
            if bool(stepped["next", "done"][0]):
                return episode_of(steps, env=0, number=number)
        return None

    def tell(self, made: list[Episode]) -> None:
        """Loudly if the expert failed."""
        last = self.env.protocol.success == "last"
        solved = sum(bool(episode.success[-1] if last else episode.success.any()) for episode in made)
        knows = self.env.facts.success
        succeeded = f"{solved} of {len(made)} demonstrations succeeded" if knows else f"{len(made)} demonstrations"
        message = f"{succeeded}, mean return {mean_return(made):.1f}"
        if knows and solved < len(made):
            log.warning("WARNING: only %s; the expert of %s fails, and replay holds that too", message, self.env.task)
        else:
            log.info("%s; they count as no env steps", message)

    def close(self) -> None:
        """See `Teacher`."""
        self.env.close()


class Recorded:
    """The first episodes of a data set, which is only read; once they are stored, a run goes on without it."""

    def __init__(self, find: Callable[[], DataSet], env: RowsEnv, obs_keys: tuple[str, ...]) -> None:
        """`find`: opens the set when it is needed; `env`: a world whose actions and observations they must have."""
        self._find, self.env, self.obs_keys = find, env, obs_keys

    @cached_property
    def data(self) -> DataSet:
        """The set. Raises: ValueError where it is gone or does not fit."""
        return self._find()

    def episode(self, number: int, stop: Stop) -> Episode | None:
        """See `Teacher`."""
        return None if stop else fitting(self.data, number, self.env, self.obs_keys, key="demos_from")

    def tell(self, made: list[Episode]) -> None:
        """See `Teacher`."""
        if self.data.card.protocol is None:
            log.warning(
                "WARNING: how %s was recorded is not known; it must look and pay like this run", self.data.folder
            )
        log.info(
            "%d demonstrations of %s, mean return %.1f; they count as no env steps",
            len(made),
            self.data.folder,
            mean_return(made),
        )

    def close(self) -> None:
        """See `Teacher`: the world is the run's."""


def mean_return(made: list[Episode]) -> float:
    """Of whole episodes."""
    return sum(float(episode.reward.sum()) for episode in made) / max(1, len(made))
