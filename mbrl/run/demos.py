"""Demonstrations: whole episodes of the world's scripted expert, which open the replay before anything else happens.

As experience they are like any other: same protocol, same files, numbers from the run's one counter (which alone makes
an episode's name unique; their row is 0, as it is for a row of training). What sets them apart: they come first, they
cost no env steps (as on the axis of the paper's curves), and the training episodes' running means leave them out.
"""

from __future__ import annotations

import logging
from typing import Any

from mbrl.envs.rows import RowsEnv
from mbrl.replay.clips import ClipReplay
from mbrl.replay.cut import KEPT, episode_of
from mbrl.replay.episode import Episode
from mbrl.run.clock import Clock
from mbrl.rundir.stop import Stop

log = logging.getLogger("mbrl")

DONE = "demos"
"""Their name among the clock's counters."""


def check_demos(demos: Any) -> int:
    """How many are asked for. Raises: ValueError for anything but a whole number >= 0."""
    if isinstance(demos, bool) or not isinstance(demos, int) or demos < 0:
        raise ValueError(f"demos must be a whole number >= 0 (got {demos}); for example demos=5")
    return demos


class Demos:
    """Plays `episodes` episodes of the expert, each once in the life of a run, however often it is interrupted.

    Replay keeps them for ever, on top of its capacity (`EpisodeStore.protected`): the paper's buffer never drops them.
    After its success an expert goes on to the end of the episode, as an agent does. An episode in which it fails is
    kept too, since another start and goal would be a choice; how many there are is said aloud.
    """

    def __init__(self, episodes: int, env: RowsEnv, *, replay: ClipReplay, clock: Clock) -> None:
        """`env`: one row of a world with an expert, with a stream of seeds of its own. Demo k is its episode k."""
        assert env.batch_size == (1,) and env.facts.expert, env.task
        self.episodes = episodes
        self.env = env
        self.replay = replay
        self.clock = clock

    @property
    def made(self) -> int:
        """How many there are already."""
        return self.clock.done.get(DONE, 0)

    def collect(self, stop: Stop) -> None:
        """Plays those that are missing. After a stop, which may come in the middle of one, the next call goes on."""
        while self.made < self.episodes:
            episode = self._play(self.made, stop)
            if episode is None:
                return
            self.replay.append(episode)
            self.clock.episodes += 1
            self.clock.done[DONE] = self.made + 1
            if self.made == self.episodes:
                self._tell()
        self.env.close()

    def _play(self, number: int, stop: Stop) -> Episode | None:
        """The expert's episode `number`; None if a stop came: half a demonstration is forgotten, not saved."""
        self.env.episodes = [number]
        now, steps = self.env.reset(), []
        while not stop:
            stepped, now = self.env.step_and_maybe_reset(now.set("action", self.env.expert_actions()))
            steps.append(stepped[0].select(*KEPT, strict=False).clone())
            if bool(stepped["next", "done"][0]):
                return episode_of(steps, env=0, number=self.clock.episodes)
        return None

    def _tell(self) -> None:
        """How good they are; loudly if the expert failed."""
        made = [stored.episode for stored in self.replay.store.stored if stored.episode.number < self.episodes]
        last = self.env.protocol.success == "last"
        solved = sum(bool(episode.success[-1] if last else episode.success.any()) for episode in made)
        knows = self.env.facts.success
        returns = sum(float(episode.reward.sum()) for episode in made) / max(1, len(made))
        succeeded = f"{solved} of {self.episodes} demonstrations succeeded" if knows else f"{len(made)} demonstrations"
        message = f"{succeeded}, mean return {returns:.1f}"
        if knows and solved < self.episodes:
            log.warning("WARNING: only %s; the expert of %s fails, and replay holds that too", message, self.env.task)
        else:
            log.info("%s; they count as no env steps", message)
