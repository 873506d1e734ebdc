"""The page of an audit: the verdict with its checks, curves by imagined frame, and truth | imagined | difference.

Knows the fields of audit.json (mbrl/measure/verdict.py) and rollouts to be looked at; opens no run.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from mbrl.io.video import GAP, difference, strip
from mbrl.measure.audit import Paths, Rows
from mbrl.report.page import ALARM, DPI, LEFT, STYLE, WIDTH
from mbrl.report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE
from mbrl.report.record import target_name

SIGNAL = {"green": GREEN, "yellow": ORANGE, "red": ALARM, None: GREY}
HEAD, CHECK, PLOTS, FILMS, MARGIN = 1.35, 0.46, 7.4, 0.75, 0.3
"""Inches of the title, of a check, of the two rows of plots, of a row of videos beside its pictures, at the end."""
FILM = 0.44
"""Share of the width that a video takes; two stand side by side."""
WHY = 118
"""Letters of a reason on one line."""


def videos(shown: Sequence[Paths]) -> dict[str, dict[str, Tensor]]:
    """What is looked at of these rollouts: of each start one sequence, the first and the last by turns.

    Returns: by name `truth`, `imagined`, `difference` u8 [1 + H, 3, X, X], which begin with the last real frame, and
    `reward`, `imagined_reward` f32 [1 + H].
    """
    found: dict[str, dict[str, Tensor]] = {}
    for number, paths in enumerate(shown):
        row = -1 if number % 2 else 0
        sides = {}
        for name, path in (("truth", paths.true), ("imagined", paths.imagined)):
            one = path[row]
            sides[name] = torch.cat([one["pixels"][:1], one["next", "pixels"]])
            sides["reward" if name == "truth" else "imagined_reward"] = torch.cat(
                [torch.zeros(1), one["next", "reward"][:, 0]]
            )
        sides["difference"] = difference(sides["truth"], sides["imagined"])
        found[f"{number + 1}: start of the {paths.kind} policy, {'last' if row else 'first'} sequence"] = sides
    return found


def moving(shown: Mapping[str, Mapping[str, Tensor]]) -> NDArray[np.uint8]:
    """All videos under each other with their rewards, u8 [1 + H, height, width, 3]."""
    strips = [
        strip(
            {name: video[name] for name in ("truth", "imagined", "difference")},
            rewards={"true reward": video["reward"], "imagined reward": video["imagined_reward"]},
        )
        for video in shown.values()
    ]
    return np.concatenate([np.pad(one, ((0, 0), (0, 2 * GAP), (0, 0), (0, 0))) for one in strips], axis=1)


def page(
    audit: Mapping[str, Any], rows: Rows, kinds: Sequence[str], shown: Mapping[str, Mapping[str, Tensor]]
) -> bytes:
    """`draw` as a PNG."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(audit, rows, kinds, shown).savefig(stream, format="png")
    return stream.getvalue()


def draw(
    audit: Mapping[str, Any], rows: Rows, kinds: Sequence[str], shown: Mapping[str, Mapping[str, Tensor]]
) -> Figure:
    """The page: `audit` as in audit.json, its rows, whose episode each start is of, and `videos`."""
    above = HEAD + CHECK * len(audit["checks"]) + 0.35
    tall = WIDTH * FILM * 3 / (audit["horizon"] + 1) + FILMS  # three square pictures under each other
    height = above + PLOTS + FILMS + tall * math.ceil(len(shown) / 2) + MARGIN
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        write_head(figure, audit)
        edges = {"left": 0.06, "right": 0.98, "top": 1 - (above + 0.3) / height, "bottom": 1 - (above + PLOTS) / height}
        axes = figure.subplots(2, 3, gridspec_kw={**edges, "wspace": 0.22, "hspace": 0.42}).flat
        draw_rewards(next(axes), audit)
        draw_returns(next(axes), audit)
        draw_scatter(next(axes), rows, kinds)
        draw_frames(next(axes), audit)
        draw_leaving(next(axes), audit)
        draw_rest(next(axes), audit)
        for number, (name, video) in enumerate(shown.items()):
            left, bottom = 0.06 + 0.48 * (number % 2), height - above - PLOTS - FILMS - tall * (number // 2 + 1)
            place = (left, (bottom + FILMS) / height, FILM, (tall - FILMS) / height)
            draw_video(figure.add_axes(place), name, video)
    return figure


def write_head(figure: Figure, audit: Mapping[str, Any]) -> None:
    """What was audited, the verdict in its colour, and every check with its number, its thresholds and their reason."""
    height = figure.get_figheight()

    def bar(left: float, top: float, width: float, tall: float, colour: str) -> None:
        place = (left, 1 - (top + tall) / height)
        figure.patches.append(Rectangle(place, width, tall / height, transform=figure.transFigure, color=colour))

    def write(left: float, top: float, text: str, **how: Any) -> None:
        figure.text(left, 1 - top / height, text, va="center", **how)

    bar(0, 0, 1, 0.55, SIGNAL[audit["verdict"]])
    write(LEFT, 0.28, verdict(audit), color="white", weight="bold", size=19)
    task = f"world model of {audit['task']}, protocol {audit['protocol']['name']}"
    write(1 - LEFT, 0.28, task, color="white", size=16, ha="right")
    model, agent = (target_name({"_target_": audit[name]}) for name in ("model", "agent"))
    write(
        LEFT,
        0.82,
        f"{model}, agent {agent}, run seed {audit['run_seed']}, weights of env step {audit['weights_step']}; "
        f"audit seed {audit['seed']}: {audit['starts']} starts, {audit['sequences']} sequences of actions from each, "
        f"{audit['horizon']} imagined frames",
        size=12.5,
    )
    for number, check in enumerate(audit["checks"]):
        top = HEAD - 0.2 + CHECK * number + CHECK / 2
        bar(LEFT, top - 0.16, 0.05, 0.32, SIGNAL[check["verdict"]])
        write(LEFT + 0.025, top, check["verdict"] or "left out", color="white", ha="center", size=11, weight="bold")
        value = "" if check["value"] is None else f"{check['value']:.2f}"
        write(0.08, top, check["name"], weight="bold", size=13)
        write(0.155, top, value, size=13)
        write(0.2, top, thresholds(check), size=11, color=GREY)
        why = audit["left_out"].get(check["name"]) or f"{check['what']}. {check['why']}"
        write(0.355, top, "\n".join(textwrap.wrap(why, WHY)), size=9.5)


def verdict(audit: Mapping[str, Any]) -> str:
    """`red: frames red (broken), rewards yellow`."""
    parts = {part: colour or "left out" for part, colour in audit["parts"].items()}
    parts["frames"] += " (broken)" * audit["broken"]
    return f"{audit['verdict']}: " + ", ".join(f"{part} {colour}" for part, colour in parts.items())


def thresholds(check: Mapping[str, Any]) -> str:
    """`green from 1, red from 0`."""
    return f"green from {check['green']:g}, " + ("never red" if check["red"] is None else f"red from {check['red']:g}")


def frames_of(audit: Mapping[str, Any]) -> range:
    """1, 2, ... the imagined frames."""
    return range(1, audit["horizon"] + 1)


def draw_curves(axis: Any, audit: Mapping[str, Any], title: str, unit: str, lines: Mapping[str, tuple]) -> None:
    """Numbers by imagined frame: of each label the numbers, the colour and the stroke."""
    axis.set_title(title, loc="left")
    axis.set(xlabel="imagined frames", ylabel=unit)
    for label, (values, colour, stroke) in lines.items():
        drawn = [np.nan if value is None else value for value in values]
        axis.plot(frames_of(audit), drawn, color=colour, ls=stroke, marker=".", label=label)
    axis.legend(frameon=False, fontsize=10)


def draw_rewards(axis: Any, audit: Mapping[str, Any]) -> None:
    """Errors of the reward."""
    found = audit["rewards"]
    lines = {"error (rms)": (found["rmse"], BLUE, "-"), "imagined - true": (found["bias"], ORANGE, "--")}
    draw_curves(axis, audit, "Reward of a frame", "reward", lines)


def draw_returns(axis: Any, audit: Mapping[str, Any]) -> None:
    """Errors of the return, and how much returns differ."""
    found = audit["returns"]
    lines = {
        "error (rms)": (found["rmse"], BLUE, "-"),
        "imagined - true": (found["bias"], ORANGE, "--"),
        "true returns deviate by": (found["true_std"], GREY, ":"),
    }
    draw_curves(axis, audit, "Return up to a frame", "return", lines)


def draw_scatter(axis: Any, rows: Rows, kinds: Sequence[str]) -> None:
    """Every sequence: its imagined return over its true one."""
    true_MS, imagined_MS = rows.reward.sum(2), rows.imagined_reward.sum(2)
    for kind, colour in (("trained", PURPLE), ("random", GREEN)):
        places = [place for place, one in enumerate(kinds) if one == kind]
        if places:
            axis.scatter(true_MS[places], imagined_MS[places], s=9, color=colour, alpha=0.5, label=f"starts: {kind}")
    ends = [float(true_MS.min()), float(true_MS.max())]
    axis.plot(ends, ends, color=BLACK, lw=1)
    axis.set_title("Returns of all sequences", loc="left")
    axis.set(xlabel="true", ylabel="imagined")
    axis.legend(frameon=False, fontsize=10)


def draw_frames(axis: Any, audit: Mapping[str, Any]) -> None:
    """PSNR against its two rivals."""
    found = audit["frames"]
    lines = {
        "imagined": (found["psnr"], BLUE, "-"),
        "last real frame repeated": (found["psnr_repeated"], GREY, ":"),
        "imagined with others' actions": (found["psnr_shuffled"], ORANGE, "--"),
        "imagined, as the model draws it": (found["psnr_picture"], BLUE, ":"),
    }
    draw_curves(axis, audit, "Frames against the truth", "PSNR in dB", lines)


def draw_leaving(axis: Any, audit: Mapping[str, Any]) -> None:
    """How many dreams have left the world."""
    found = audit["leaving"]
    said = "" if found["psnr"] is None else f" (below {found['psnr']:.1f} dB)"
    draw_curves(axis, audit, "Dreams that have left the world", "share", {f"left{said}": (found["left"], BLUE, "-")})
    axis.set_ylim(-0.03, 1.03)


def draw_rest(axis: Any, audit: Mapping[str, Any]) -> None:
    """What moves where nothing is done."""
    found = audit["rest"]
    if found is None:
        axis.set_title("At rest: left out", loc="left")
        axis.set(xticks=[], yticks=[])
        return
    lines = {
        "dream, pixels": (rms(found["imagined_moved"]), BLUE, "-"),
        "world, pixels": (rms(found["moved"]), GREY, ":"),
        **({"dream, share of codes": (found["codes"], ORANGE, "--")} if found["codes"] else {}),
    }
    draw_curves(axis, audit, "At rest: change under zero actions", "rms of pixels in [0, 1]; share", lines)


def rms(squares: Sequence[float | None]) -> list[float | None]:
    """Roots."""
    return [None if square is None else square**0.5 for square in squares]


def draw_video(axis: Any, name: str, video: Mapping[str, Tensor]) -> None:
    """Truth, imagination and difference under each other, frame by frame, with both rewards below."""
    sides = ("truth", "imagined", "difference")
    picture = torch.cat([torch.cat(list(video[side]), 2) for side in sides], 1)  # [3, 3 * X, (1 + H) * X]
    frames, _, _, side = video["truth"].shape
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axis.set_title(name, loc="left", fontsize=11)
    axis.set_yticks([side * (row + 0.5) for row in range(len(sides))], sides)
    texts = [
        f"{true:.2f}\n{imagined:.2f}" for true, imagined in zip(video["reward"], video["imagined_reward"], strict=True)
    ]
    texts[0] = "reward: true\nimagined"
    axis.set_xticks([side * (frame + 0.5) for frame in range(frames)], texts)
    axis.grid(visible=False)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)
