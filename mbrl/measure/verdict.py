"""What an audit found, as numbers, and what follows: red, yellow or green by thresholds that stand here with reasons.

Pure functions of `Rows` and `Rest` (audit.py). Frames are compared by their mean squared error over all rows, told in
dB: a mean of decibels would be ruled by the rows in which nothing moves, where the last frame again is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from mbrl.measure.audit import KINDS, Rest, Rows, ranking
from mbrl.measure.instruments import r_squared
from mbrl.rundir.schema import check_schema
from worldmodel.evaluation.metrics import decibels

Colour = Literal["green", "yellow", "red"]
Part = Literal["frames", "rewards"]
COLOURS: tuple[Colour, ...] = ("green", "yellow", "red")
"""From best to worst."""
PARTS: tuple[Part, ...] = ("frames", "rewards")
"""Each has a verdict of its own: an agent may learn from good rewards in dreams whose frames nobody should look at."""

LEAVES = 0.5
"""A dream has left the world at the first imagined frame whose squared error is more than this share of what the world
itself changes within the horizon (mean over all rows): then more than half of what happens there is wrong."""
STILL = 0.1
"""A world rests under zero actions if its frames change by no more than this share of what they change under others."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to a world model.

    Attributes:
        name: of the check.
        part: which part of the dream it asks about.
        what: what its number is.
        red: from here on it is red; None: never.
        green: from here on it is green; between the two yellow.
        why: the reason of both.
    """

    name: str
    part: Part
    what: str
    red: float | None
    green: float
    why: str

    def colour(self, value: float) -> Colour:
        """What a value means."""
        larger_is_better = self.red is None or self.green > self.red
        if value >= self.green if larger_is_better else value <= self.green:
            return "green"
        if self.red is None:
            return "yellow"
        return "red" if (value <= self.red if larger_is_better else value >= self.red) else "yellow"


FRAMES = Check(
    name="frames",
    part="frames",
    what="dB by which imagined frames (their changes, on the last real frame) beat the last real frame repeated",
    red=0.0,
    green=1.0,
    why="at 0 or below predicting nothing is as good: the model is broken; 1 dB takes a fifth off the squared error",
)
PICTURES = Check(
    name="pictures",
    part="frames",
    what="dB by which the frames as the model draws them beat the last real frame repeated",
    red=None,
    green=0.0,
    why=(
        "below 0 its tokenizer loses more than the world moves: these frames are not for a policy that reads pixels; "
        "never red, since a policy that reads the latent does not see them"
    ),
)
ACTIONS = Check(
    name="actions",
    part="frames",
    what="squared error of imagined frames with the true actions / with another sequence's",
    red=0.95,
    green=0.8,
    why="1 is a model that never asks what was done; at 0.8 the actions are worth 1 dB, as above",
)
RETURN = Check(
    name="return",
    part="rewards",
    what="R2 of imagined returns over the horizon, over all starts and sequences",
    red=0.0,
    green=0.5,
    why="0 is what telling the same mean return everywhere gets; at 0.5 half of the variance is known",
)
RANKING = Check(
    name="ranking",
    part="rewards",
    what="correlation of imagined and true returns within a start",
    red=0.15,
    green=0.5,
    why=(
        "of two sequences the better one is told right with probability 1/2 + asin(r)/pi: in 55 of 100 pairs at 0.15 "
        "(about two standard errors of a model that knows nothing, 24 starts of 12), in two of three at 0.5"
    ),
)
REST = Check(
    name="rest",
    part="frames",
    what="squared change of imagined frames under zero actions at rest / of the world's under the other actions",
    red=1.0,
    green=0.5,
    why="at 1 a dream in which nothing is done moves as much as the world when something is; 0.5 as for leaving",
)
LEAVING = Check(
    name="leaving",
    part="frames",
    what="share of the horizon for which the median dream stays in the world",
    red=0.5,
    green=1.0,
    why=f"below 1 most dreams end elsewhere, at 0.5 most of them are elsewhere half of the time (threshold {LEAVES:g})",
)
CHECKS = (FRAMES, PICTURES, ACTIONS, REST, LEAVING, RETURN, RANKING)

NUMBER = (None, float)
CURVE = [NUMBER]
PART = {"starts": int, "sequences": int, "return_true": NUMBER, "return_bias": NUMBER, "return_rmse": NUMBER}
PART |= {"within": NUMBER}
FOUND: Mapping[str, Any] = {
    "rewards": {"rmse": CURVE, "bias": CURVE, "r2": CURVE},
    "returns": {"rmse": CURVE, "bias": CURVE, "r2": CURVE, "true_std": CURVE},
    "ranking": (None, {"within": NUMBER, "within_error": NUMBER, "across": NUMBER, "gain": NUMBER}),
    "by_start": {"*": PART},
    "by_sequence": {"*": PART},
    "frames": {
        **{"psnr": CURVE, "psnr_repeated": CURVE, "psnr_shuffled": CURVE, "psnr_picture": CURVE},
        **{"gain": NUMBER, "gain_picture": NUMBER},
    },
    "actions": {"frames": NUMBER, "rewards": NUMBER},
    "leaving": {"psnr": NUMBER, "left": CURVE, "median": (None, int), "stays": NUMBER},
    "rest": (
        None,
        {
            **{"moved": CURVE, "imagined_moved": CURVE, "codes": (None, CURVE), "reward_moved": CURVE},
            **{"imagined_reward_moved": CURVE, "reward_rmse": CURVE, "still": NUMBER, "drift": NUMBER},
        },
    ),
}
"""Numbers by imagined frame are lists; null where there is nothing to measure.

frames: PSNR of imagined frames, as `mbrl.measure.audit.on_real` takes them and, `picture`, as the model draws them.
rewards.r2 is against the variance of all true rewards, returns.r2 (sums up to a frame) against that of true returns.
by_start, by_sequence: starts in episodes of the `trained` agent and of `random` actions, sequences of either; biases
are imagined minus true. leaving: the PSNR below which a dream has left the world, the share that has by each frame, the
frame at which the median dream leaves (null if it stays). rest: `moved` are mean squared changes since the last real
frame, of pixels in [0, 1], `reward_moved` root mean square changes since the first imagined frame; `still` and `drift`
are what the world and the dream move, as shares of what the world moves under the other actions.
"""
SCHEMA: Mapping[str, Any] = {
    "schema": 1,
    "task": str,
    "protocol": {"name": str, "sha256": str},
    "run_seed": int,
    "agent": str,
    "model": str,
    "env_steps": int,
    "weights": str,
    "weights_step": int,
    "seed": int,
    "starts": int,
    "sequences": int,
    "horizon": int,
    "restores": bool,
    "verdict": str,
    "parts": {"frames": (None, str), "rewards": (None, str)},
    "broken": bool,
    "checks": [
        {
            **{"name": str, "part": str, "what": str, "value": NUMBER, "verdict": (None, str)},
            **{"red": NUMBER, "green": float, "why": str},
        }
    ],
    "left_out": {"*": str},
    **FOUND,
    "device": str,
    "threads": int,
    "matmul": str,
    "versions": {"*": str},
    "commit": str,
}
"""Of audit.json (`mbrl.rundir.schema`).

restores: whether the world can go back to a moment. verdict: the worst of `parts`, each of which is the worst of its
checks. broken: whether imagined frames do not beat the last real one. `value` and `verdict` of a check are null where
it was left out, and `left_out` says why.
"""


def audited(info: Mapping[str, Any], found: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """An audit by the schema.

    Args:
        info: the fields about the run and how it was audited.
        found: `findings`.
        left_out: checks that could not be made, and why.
    Raises: ValueError if it is none by the schema.
    """
    rows, reasons = [], dict(left_out)
    if found["rest"] and (found["rest"]["still"] or 0) > STILL:
        reasons["rest"] = (
            f"the world itself does not rest under zero actions: its frames change by {found['rest']['still']:.2f} of "
            f"what they change under others (at most {STILL:g} is rest)"
        )
    for check in CHECKS:
        value = None if check.name in reasons else value_of(check, found)
        if value is None:
            reasons.setdefault(check.name, "nothing moved or no reward differed, so there is nothing to compare")
        colour = None if value is None else check.colour(value)
        rows.append({**asdict(check), "value": value, "verdict": colour})
    parts = {part: worst(row["verdict"] for row in rows if row["part"] == part) for part in PARTS}
    made = {
        "schema": SCHEMA["schema"],
        "verdict": worst(parts.values()) or "yellow",  # nobody could look: not green
        "parts": parts,
        "broken": any(row["name"] == FRAMES.name and row["verdict"] == "red" for row in rows),
        "checks": rows,
        "left_out": reasons,
        **info,
        **found,
    }
    ordered = {name: made[name] for name in SCHEMA}
    check_schema(ordered, SCHEMA)
    return ordered


def worst(colours: Iterable[Colour | None]) -> Colour | None:
    """Of those that there are."""
    return max((colour for colour in colours if colour is not None), key=COLOURS.index, default=None)


def value_of(check: Check, found: Mapping[str, Any]) -> float | None:
    """The number that a check asks for; None where there is none."""
    value: float | None = {
        FRAMES: found["frames"]["gain"],
        PICTURES: found["frames"]["gain_picture"],
        ACTIONS: found["actions"]["frames"],
        RETURN: found["returns"]["r2"][-1],
        RANKING: found["ranking"] and found["ranking"]["within"],
        REST: found["rest"] and found["rest"]["drift"],
        LEAVING: found["leaving"]["stays"],
    }[check]
    return value


def findings(rows: Rows, rest: Rest | None, *, kinds: Sequence[str], own: int) -> dict[str, Any]:
    """The fields `FOUND` of an audit.

    Args:
        rest: None where nothing rests.
        kinds: whose episode each start is a moment of.
        own: how many of the sequences, the first ones, are the agent's.
    """
    several = rows.reward.shape[1] > 1
    of_kind = {kind: [place for place, one in enumerate(kinds) if one == kind] for kind in KINDS}
    sequences = {"trained": slice(0, own), "random": slice(own, None)} if own else {}
    return {
        "rewards": errors(rows.reward, rows.imagined_reward, variance=float(rows.reward.var(correction=0))),
        "returns": {
            **errors(rows.reward.cumsum(2), rows.imagined_reward.cumsum(2), variance=None),
            "true_std": curve(rows.reward.cumsum(2).flatten(0, 1).std(0, correction=0)),
        },
        "ranking": numbers(asdict(ranking(rows.reward, rows.imagined_reward))) if several else None,
        "by_start": {kind: part(rows.of(places)) for kind, places in of_kind.items() if places},
        "by_sequence": {kind: part(rows.of(slice(None), places)) for kind, places in sequences.items()},
        "frames": frames(rows),
        "actions": {
            "frames": ratio(mean(rows.error, rows), mean(rows.shuffled, rows)),
            "rewards": ratio(
                (rows.reward - rows.imagined_reward).square().mean(),
                (rows.reward - rows.shuffled_reward).square().mean(),
            ),
        },
        "leaving": leaving(rows),
        "rest": None if rest is None else at_rest(rest, motion(rows)),
    }


def finite(value: float | Tensor) -> float | None:
    """A number of JSON; None for nan and infinities."""
    number = float(value)
    return number if math.isfinite(number) else None


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """They as JSON has them."""
    return {name: finite(value) for name, value in values.items()}


def curve(value_H: Tensor) -> list[float | None]:
    """One number for each imagined frame."""
    return [finite(value) for value in value_H.unbind()]


def ratio(numerator: Tensor, denominator: Tensor) -> float | None:
    """None where there is nothing to divide by."""
    return finite(numerator / denominator) if float(denominator) > 0 else None


def mean(value_MSH: Tensor, rows: Rows) -> Tensor:
    """Over all frames that the world had not ended before."""
    return (value_MSH * rows.alive).sum() / rows.alive.sum()


def by_frame(value_MSH: Tensor, rows: Rows) -> Tensor:
    """The same, frame by frame, f32 [H]."""
    return (value_MSH * rows.alive).sum((0, 1)) / rows.alive.sum((0, 1))


def motion(rows: Rows) -> Tensor:
    """Mean squared change of the world's frames within the horizon."""
    return by_frame(rows.repeated, rows)[-1]


def errors(true_MSH: Tensor, imagined_MSH: Tensor, *, variance: float | None) -> dict[str, list[float | None]]:
    """Root mean square error, mean error and R2 by frame; `variance` None: each frame's own."""
    pairs = list(zip(true_MSH.unbind(2), imagined_MSH.unbind(2), strict=True))
    off_MSH = imagined_MSH - true_MSH
    return {
        "rmse": curve(off_MSH.square().mean((0, 1)).sqrt()),
        "bias": curve(off_MSH.mean((0, 1))),
        "r2": [
            finite(r_squared(true, imagined, float(true.var(correction=0)) if variance is None else variance))
            for true, imagined in pairs
        ],
    }


def part(rows: Rows) -> dict[str, Any]:
    """Returns over the whole horizon of some of the rows."""
    true_MS, imagined_MS = rows.reward.sum(2), rows.imagined_reward.sum(2)
    starts, sequences = true_MS.shape
    return {
        "starts": starts,
        "sequences": sequences,
        "return_true": finite(true_MS.mean()),
        "return_bias": finite((imagined_MS - true_MS).mean()),
        "return_rmse": finite((imagined_MS - true_MS).square().mean().sqrt()),
        "within": finite(ranking(rows.reward, rows.imagined_reward).within) if sequences > 1 else None,
    }


def frames(rows: Rows) -> dict[str, Any]:
    """PSNR of the mean squared error by frame, and over all frames by how much it is better than repeating."""
    columns = {"psnr": rows.error, "psnr_repeated": rows.repeated, "psnr_shuffled": rows.shuffled}
    columns |= {"psnr_picture": rows.picture}
    found: dict[str, Any] = {name: curve(decibels(by_frame(value, rows))) for name, value in columns.items()}
    moved = float(mean(rows.repeated, rows)) > 0
    for name, value in (("gain", rows.error), ("gain_picture", rows.picture)):
        gain = decibels(mean(value, rows)) - decibels(mean(rows.repeated, rows))
        found[name] = finite(gain) if moved else None
    return found


def leaving(rows: Rows) -> dict[str, Any]:
    """Where dreams leave the world (`LEAVES`)."""
    horizon, threshold = rows.error.shape[2], LEAVES * motion(rows)
    left_MSH = ((rows.error * rows.alive) > threshold).cummax(2).values
    first_MS = horizon + 1 - left_MSH.sum(2)  # the first frame beyond the threshold, counted from 1
    median = int(first_MS.flatten().median())
    moved = bool(threshold > 0)
    return {
        "psnr": finite(decibels(threshold)) if moved else None,
        "left": curve(left_MSH.float().mean((0, 1))) if moved else [None] * horizon,
        "median": median if moved and median <= horizon else None,
        "stays": (median - 1) / horizon if moved else None,
    }


def at_rest(rest: Rest, moved: Tensor) -> dict[str, Any]:
    """How far dreams drift where nothing is done, and the world; `moved` is what the world moves otherwise."""
    since = {"reward_moved": rest.reward, "imagined_reward_moved": rest.imagined_reward}
    return {
        "moved": curve(rest.moved.mean(0)),
        "imagined_moved": curve(rest.imagined_moved.mean(0)),
        "codes": None if rest.codes is None else curve(rest.codes.mean(0)),
        **{name: curve((reward - reward[:, :1]).square().mean(0).sqrt()) for name, reward in since.items()},
        "reward_rmse": curve((rest.imagined_reward - rest.reward).square().mean(0).sqrt()),
        "still": ratio(rest.moved[:, -1].mean(), moved),
        "drift": ratio(rest.imagined_moved[:, -1].mean(), moved),
    }
