"""A suite: tasks that are reported together. Every task is learned by a run of its own, from nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One file of configs/suite.

    Attributes:
        task: the variant of the group `task`, which is the world.
        tasks: names in it, for `task.name`.
        words: of `mbrl train`, for every run of the suite; a word of the command line with the same key replaces one.
    """

    task: str
    tasks: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be one or more, each named once (got {', '.join(self.tasks) or 'none'})")
