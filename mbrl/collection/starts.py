"""Episodes that are played to be audited (mbrl/measure/audit.py): starts in them, and rest; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping

from mbrl.collection.collect import episode
from mbrl.collection.policies import Acting, Still
from mbrl.envs.rows import RowsEnv
from mbrl.measure.audit import Rest, SideBySide, Start, at_rest, starts_in
from mbrl.replay.cut import real_frames

REST_EPISODES = 8
"""How many dreams are at rest."""


def gathered(env: RowsEnv, policies: Mapping[str, Acting], sides: SideBySide, *, count: int) -> list[Start]:
    """`count` starts, half of them in episodes of each policy; fewer where episodes are too short for any.

    Raises: ValueError where all are.
    """
    left, starts = 1 if sides.simulator else sides.horizon, []
    for place, (kind, policy) in enumerate(policies.items()):
        found: list[Start] = []
        wanted = (count + 1 - place) // 2
        for number in range(place * count, place * count + wanted):
            if len(found) < wanted:
                generator, played = (
                    sides.seeds.numpy("audit/starts", number),
                    episode(env, policy, number=number, row=0),
                )
                found += starts_in(played, sides.dream.spec, kind=kind, left=left, generator=generator)
        starts += found[:wanted]
    if not starts:
        raise ValueError(
            f"no episode has a start: {real_frames(sides.dream.spec)} real frames and {left} decisions behind them"
        )
    return starts


def rested(env: RowsEnv, sides: SideBySide, *, first: int) -> tuple[Rest | None, str]:
    """What dreams do at rest, or why that cannot be asked; `first`: number of the first episode."""
    if env.env_spec.discrete:
        return None, "none of its discrete actions is known to do nothing"
    numbers, still = range(first, first + REST_EPISODES), Still(env)
    played = [episode(env, still, number=number, row=0) for number in numbers]
    long = [one for one in played if len(one) + 1 >= real_frames(sides.dream.spec) + sides.horizon]
    if not long:
        return None, f"no episode without actions goes on for {sides.horizon} decisions behind a start"
    return at_rest(sides.dream, long, horizon=sides.horizon), ""
