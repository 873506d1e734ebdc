"""The published protocol of video prediction (spec 10.7): n futures of a clip, and for every metric the best of them.

Knows predictors, clips and metrics; nothing of files, data sets or configurations. Beside the model it judges what one
must beat: the last frame again and again, and the same model without its actions or with those of another clip.
"""

# C clips, S samples, G frames shown, H frames predicted, A action

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.evaluation.fvd import FeatureStats, FeatureSums, frechet
from worldmodel.evaluation.i3d import I3D, LEAST_FRAMES
from worldmodel.evaluation.lpips import LPIPS
from worldmodel.evaluation.metrics import BETTER, mse, psnr, ssim
from worldmodel.evaluation.predictors import Predictor
from worldmodel.seeds import Seeds

Method = Literal["model", "zero", "shuffled", "copy", "reconstruction"]
"""How the future comes about: predicted; with actions of zero; with those of another clip; the last frame given, again
and again; the true future seen through the tokenizer, which no prediction of codes can beat by much."""
Scope = Literal["all", "predicted"]
"""Which frames a number is of: all of a clip, reconstructions of those shown included (published), or the others."""
FRAME_METRICS = {"mse": mse, "psnr": psnr, "ssim": ssim}
VIDEOS = 4
DRAWN = 2
"""Samples of a clip that are kept to be drawn."""


class Judge:
    """Compares frames with the truth.

    Args:
        metrics: some of `mse`, `psnr`, `ssim`, `lpips`, `fvd`.
        lpips, i3d: the networks of the last two, on the frames' device; None where they are not asked for.
    """

    def __init__(self, metrics: Sequence[str], *, lpips: LPIPS | None = None, i3d: I3D | None = None) -> None:
        unknown = [name for name in metrics if name not in BETTER]
        if unknown or not metrics:
            raise ValueError(f"metrics must be some of {', '.join(BETTER)} (got {list(metrics)})")
        assert (lpips is not None, i3d is not None) == ("lpips" in metrics, "fvd" in metrics)
        self.metrics = tuple(name for name in metrics if name != "fvd")
        self.lpips, self.i3d = lpips, i3d

    @torch.no_grad()
    def scores(self, truth_FCHW: Tensor, frames_SFCHW: Tensor) -> dict[str, Tensor]:
        """Every metric of S versions of one clip, f32 [S, F] on the CPU; frames [F, 3, h, w] and [S, F, 3, h, w]."""
        truth = truth_FCHW.expand_as(frames_SFCHW).flatten(0, 1)
        flat, shape = frames_SFCHW.flatten(0, 1), frames_SFCHW.shape[:2]
        found = {name: FRAME_METRICS[name](truth, flat) for name in self.metrics if name != "lpips"}
        if self.lpips is not None:
            seen = self.lpips.features(truth_FCHW)  # once for all samples
            each = [self.lpips.between(seen, self.lpips.features(version)) for version in frames_SFCHW]
            found["lpips"] = torch.cat(each)
        return {name: values.unflatten(0, shape).cpu() for name, values in found.items()}

    def features(self, videos_NFCHW: Tensor) -> Tensor | None:
        """What FVD compares, [N, 400]; None where it is not asked for."""
        if self.i3d is None:
            return None
        return torch.cat([self.i3d(part) for part in videos_NFCHW.split(VIDEOS)])


@dataclass(kw_only=True)
class Scores:
    """One way's numbers.

    Attributes:
        frames: metric -> f32 [C, S, G + H].
        given: G.
        fvd: None where it is not asked for.
    """

    frames: dict[str, Tensor]
    num_observed: int
    fvd: float | None = None

    def per_sample(self, metric: str, scope: Scope) -> Tensor:
        """Mean over the frames of `scope`, [C, S]."""
        return self.frames[metric][:, :, 0 if scope == "all" else self.num_observed :].mean(2)

    def best(self, metric: str, scope: Scope) -> Tensor:
        """The best sample of each clip, [C]; another metric may choose another sample (published)."""
        values_CS = self.per_sample(metric, scope)
        return values_CS.amax(1) if BETTER[metric] is max else values_CS.amin(1)

    def numbers(self) -> dict[str, object]:
        """Plain numbers: best of S and mean over S, for both scopes, per clip and over clips; and frame by frame."""
        found: dict[str, object] = {}
        for metric, values_CSF in self.frames.items():
            entry: dict[str, object] = {}
            for scope in get_args(Scope):
                each = {"best": self.best(metric, scope), "mean": self.per_sample(metric, scope).mean(1)}
                entry[scope] = {
                    **{name: float(values.mean()) for name, values in each.items()},
                    **{f"{name}_per_clip": [float(value) for value in values] for name, values in each.items()},
                }
            entry["by_frame"] = [float(value) for value in values_CSF.mean((0, 1))]
            found[metric] = entry
        return found | ({} if self.fvd is None else {"fvd": self.fvd})


@dataclass(kw_only=True)
class ClipSample:
    """One clip to look at, u8 [G + H, 3, S, S] each."""

    truth: Tensor
    methods: dict[str, Tensor] = field(default_factory=dict)
    """Samples [up to 2, G + H, 3, S, S] of each way."""


@dataclass(kw_only=True)
class Evaluation:
    """Numbers by way, and the first clips to look at."""

    scores: dict[Method, Scores]
    videos: list[ClipSample]


@dataclass(kw_only=True)
class _MethodScores:
    """What has come together of one way."""

    frames: dict[str, list[Tensor]] = field(default_factory=dict)
    moments: FeatureSums = field(default_factory=FeatureSums)

    def scores(self, num_observed: int, real: FeatureStats | None) -> Scores:
        fvd = None if real is None else frechet(real, self.moments.stats())
        return Scores(
            frames={name: torch.stack(each) for name, each in self.frames.items()}, num_observed=num_observed, fvd=fvd
        )


@torch.no_grad()
def evaluate(
    predictor: Predictor,
    clips: TensorDict,
    judge: Judge,
    *,
    methods: Sequence[Method],
    samples: int,
    rows: int,
    seeds: Seeds,
    sampled: bool = True,
    videos: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Evaluation:
    """Predicts every clip in every way and judges it.

    All ways draw the same random numbers, so that they differ by what they know alone.

    Args:
        clips: batch [C]; keys as in worldmodel.spec, of `spec.burn_in` + H frames.
        samples: futures of each clip.
        rows: futures that are predicted at once; like the seed it is part of what makes a result repeatable.
        sampled: False takes the most likely codes (one future is all there is then).
        videos: how many clips are kept to be drawn.
        on_progress: called with the clips done and all of them.
    Raises: ValueError where the clips cannot be predicted so.
    """
    check(predictor, clips, judge, methods=methods, samples=samples, sampled=sampled)
    actions = {method: actions_shown(predictor, clips["action"], method, seeds) for method in methods}
    real, found = FeatureSums(), {method: _MethodScores() for method in methods}
    kept: list[ClipSample] = []
    for first in range(0, len(clips), max(1, rows // samples)):
        group = clips[first : first + max(1, rows // samples)]
        truth, read = predictor.truth(group), predictor.read(group)
        _add(real, judge.features(truth))
        kept += [ClipSample(truth=_bytes(clip)) for clip in truth[: max(0, videos - len(kept))]]
        for method in methods:
            action = actions[method][first : first + len(group)].to(predictor.device)
            made = versions(
                predictor, read, action, truth, method=method, samples=samples, rows=rows, seeds=seeds, first=first,
                sampled=sampled,
            )  # fmt: skip
            for place, frames_SFCHW in enumerate(made):
                for name, values in judge.scores(truth[place], frames_SFCHW).items():
                    found[method].frames.setdefault(name, []).append(values)
                _add(found[method].moments, judge.features(frames_SFCHW))
                if first + place < len(kept):
                    kept[first + place].methods[method] = _bytes(frames_SFCHW[:DRAWN])
        on_progress(first + len(group), len(clips))
    stats = None if judge.i3d is None else real.stats()
    return Evaluation(
        scores={method: held.scores(predictor.num_observed, stats) for method, held in found.items()}, videos=kept
    )


def _horizon(predictor: Predictor, clips: TensorDict) -> int:
    return clips["pixels"].shape[1] - predictor.spec.burn_in


def check(
    predictor: Predictor, clips: TensorDict, judge: Judge, *, methods: Sequence[Method], samples: int, sampled: bool
) -> None:
    """Whether `evaluate` can do this. Raises: ValueError with one line."""
    spec, frames = predictor.spec, clips["pixels"].shape[1]
    if not spec.burn_in < frames <= spec.max_frames:
        raise ValueError(
            f"horizon must be in 1..{spec.max_frames - spec.burn_in} for this model (got {frames - spec.burn_in})"
        )
    if samples < 1 or (samples > 1 and not sampled):
        raise ValueError(f"n must be >= 1, and 1 where the most likely codes are taken (got {samples})")
    if clips["action"].shape[2] != spec.action_dim:
        raise ValueError(f"actions must have {spec.action_dim} numbers for this model (got {clips['action'].shape[2]})")
    if unknown := [method for method in methods if method not in get_args(Method)]:
        raise ValueError(f"methods must be some of {', '.join(get_args(Method))} (got {unknown[0]})")
    if not spec.action_dim and (needs_actions := {"zero", "shuffled"} & set(methods)):
        raise ValueError(f"the model knows no actions, so there is no method {sorted(needs_actions)[0]}; leave it out")
    if "shuffled" in methods and len(clips) < 2:
        raise ValueError(f"shuffled actions need at least 2 clips (got {len(clips)})")
    if judge.i3d is not None and (len(clips) < 2 or predictor.num_observed + _horizon(predictor, clips) < LEAST_FRAMES):
        raise ValueError(f"fvd needs at least 2 clips of {LEAST_FRAMES} frames, those that are shown included")


def actions_shown(predictor: Predictor, action_CTA: Tensor, method: Method, seeds: Seeds) -> Tensor:
    """The actions that the model is told, f32 [C, T, A]; those into frames that it is shown are the true ones."""
    if method not in ("zero", "shuffled"):
        return action_CTA
    other_CTA = torch.zeros_like(action_CTA)
    if method == "shuffled":  # one ring through all clips in random order: nobody keeps their own
        ring_C = torch.randperm(len(action_CTA), generator=seeds.torch("predict/shuffle"))
        other_CTA[ring_C] = action_CTA[ring_C.roll(1)]
    shown = predictor.spec.burn_in
    return torch.cat([action_CTA[:, :shown], other_CTA[:, shown:]], 1)


def versions(
    predictor: Predictor,
    read: TensorDict,
    action_CTA: Tensor,
    truth_CFCHW: Tensor,
    *,
    method: Method,
    samples: int,
    rows: int,
    seeds: Seeds,
    first: int,
    sampled: bool,
) -> Iterator[Tensor]:
    """For each clip of a group its versions of one way, f32 [S, G + H, 3, h, w] in [0, 1]."""
    if method in ("copy", "reconstruction"):
        seen = predictor.frames(read, read["codes"])
        if method == "copy":  # what is shown is seen through the tokenizer, as in a prediction
            shown = predictor.num_observed
            last = truth_CFCHW[:, shown - 1, None].expand_as(seen[:, shown:])
            seen = torch.cat([seen[:, :shown], last], 1)
        yield from seen[:, None]
        return
    parts = []
    for drawn in range(0, samples, rows):
        copies = min(rows, samples - drawn)
        many = read.apply(lambda value: value.repeat_interleave(copies, 0), batch_size=[len(read) * copies])  # noqa: B023
        draw = first * samples + drawn
        codes = predictor.dream(many, action_CTA.repeat_interleave(copies, 0), seeds if sampled else None, draw)
        parts.append(predictor.frames(many, codes).unflatten(0, (len(read), copies)))
    yield from torch.cat(parts, 1)


def _add(moments: FeatureSums, features: Tensor | None) -> None:
    if features is not None:
        moments.add(features)


def _bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round().to(torch.uint8).cpu()


def goal_clips(whole: TensorDict, context: int) -> TensorDict:
    """Clips for a goal-conditioned model (spec 9.3): the last frame stands first in the context, and stays last, too.

    Args:
        whole: clips without actions of a model with context `sliding`; t context and T frames in time.
        context: t, at least 2: the goal and the first t - 1 frames.
    Returns: clips of t context frames and T + 1 others.
    """
    if context < 2 or whole["action"].shape[2]:
        raise ValueError(
            "mode=goal needs a model without actions whose context holds the goal and a frame or more "
            f"(got context={context}, {whole['action'].shape[2]} numbers of action)"
        )
    frames = torch.cat([whole["context"], whole["pixels"]], 1)
    pixels = frames[:, context - 1 :]
    return TensorDict(
        {
            "context": torch.cat([frames[:, -1:], frames[:, : context - 1]], 1),
            "pixels": pixels,
            "action": whole["action"].new_zeros(len(frames), pixels.shape[1], 0),
        },
        batch_size=whole.batch_size,
    )
