"""Everything that is wrong with a data set, found in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbrl.data.convert.run import MARK
from mbrl.data.dataset import CARD, Card, DamagedSet, read_card, unlike
from mbrl.data.reach import Reach
from mbrl.files import TEMPORARY, DamagedFile
from mbrl.replay.episode import NAME, Episode, OtherFormat, read_episode


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        card: None where it cannot be read (or, for a replay, is not there).
        episodes, frames, bytes: of the readable files.
        problems: (file, what is wrong).
        reach: of the actions in the readable files. Outside [-1, 1] they are no damage, but no run takes them.
    """

    card: Card | None
    episodes: int
    frames: int
    bytes: int
    problems: list[tuple[str, str]]
    reach: Reach


def check(folder: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Reads every byte of one data set.

    Args:
        on_progress: called with (done, total) files.
    """
    card, problems = None, []
    try:
        card = read_card(folder) if (folder / CARD).exists() or not any(folder.glob("ep-*.npz")) else None
    except (DamagedSet, OtherFormat) as error:
        problems.append((CARD, str(error)))
    if (folder / MARK).exists():
        problems.append((MARK, "a conversion was not finished: start it again"))
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        problems.append((".", "there is no episode"))
    seen: Counter[tuple[str, str]] = Counter()
    reach = Reach()
    episodes = frames = size = 0
    for place, path in enumerate(paths):
        on_progress(place, len(paths))
        match = NAME.fullmatch(path.name)
        if match is None:
            problems.append((path.name, "the name is none that an episode has (ep-<number>-e<row>-<length>-<hash>)"))
            continue
        try:
            episode = read_episode(path)
        except (DamagedFile, OtherFormat) as error:
            problems.append((path.name, str(error).removeprefix(f"{path}: ")))
            continue
        seen[match[1], match[2]] += 1
        if seen[match[1], match[2]] > 1:
            problems.append((path.name, f"there is more than one episode {int(match[1])} of row {int(match[2])}"))
        problems += [(path.name, what) for what in faults(card, episode)]
        reach.add(episode.action)
        episodes, frames, size = episodes + 1, frames + len(episode.pixels), size + path.stat().st_size
    problems += [(path.name, "an unfinished file: it may be deleted") for path in folder.glob(f"{TEMPORARY}*")]
    on_progress(len(paths), len(paths))
    return Report(card=card, episodes=episodes, frames=frames, bytes=size, problems=problems, reach=reach)


def faults(card: Card | None, episode: Episode) -> list[str]:
    """What does not fit in an episode that can be read."""
    if card is None:
        return []
    found = [wrong] if (wrong := unlike(card, episode)) else []
    if card.policies and episode.env >= len(card.policies):
        found.append(f"it is of policy {episode.env}, {CARD} names {len(card.policies)}")
    if card.protocol is not None and episode.action.size and np.abs(episode.action).max() > 1:
        found.append(f"an action is {np.abs(episode.action).max():.3g}, which is not in [-1, 1]: it was not executed")
    return found
