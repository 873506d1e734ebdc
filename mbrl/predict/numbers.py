"""An evaluation as numbers: the JSON that holds the protocol too, and the table that is read on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mbrl.predict.clips import Clips
from mbrl.predict.configs import PredictConfig
from mbrl.predict.models import Loaded
from worldmodel.evaluation.metrics import BETTER
from worldmodel.evaluation.predict import Evaluation, Scores

DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "mse": 5, "fvd": 1}
LABELS = {
    "model": "model",
    "zero": "actions of zero",
    "shuffled": "others' actions",
    "copy": "last frame again",
    "reconstruction": "true codes",
}


def as_json(
    config: PredictConfig,
    loaded: Loaded,
    clips: Clips,
    evaluation: Evaluation,
    *,
    data: Mapping[str, Any],
    missing: Mapping[str, str],
    seen: int | None,
) -> dict[str, Any]:
    """Everything that one must know to compare these numbers with others, and the numbers.

    Args:
        data: what the data were, as composed.
        missing: metrics that were asked for and why they are not here.
        seen: episodes that the model learned from; None: nobody can tell.
    """
    spec, num_observed = loaded.predictor.spec, loaded.predictor.num_observed
    samples = {
        method: scores.frames[next(iter(scores.frames))].shape[1] for method, scores in evaluation.scores.items()
    }
    return {
        "protocol": {
            "clips": len(clips.clips),
            "start": config.start,
            "mode": clips.mode,
            "frames_shown": num_observed,
            "frames_predicted": clips.horizon,
            "context_frames": spec.context_frames,
            "context": spec.context,
            "samples": samples,
            "temperature": loaded.rule.temperature,
            "top_k": loaded.rule.top_k,
            "codes_only": loaded.rule.codes_only,
            "scopes": {
                "all": "all frames of a clip, reconstructions of the shown ones included (published)",
                "predicted": "predicted frames alone",
            },
            "best": "per clip and metric the best of the samples, each a mean over frames; then the mean over clips",
            "mean": "mean over samples and clips",
            "fvd": "I3D (Kinetics-400) logits of whole clips; real: one per clip, predicted: every sample",
            "precision": "float32",
            "published": "100 samples, temperature 1, top_k 100, clips of 16 frames from the first frame on",
            "seed": config.seed,
            "rows": config.rows,
            "split": config.split,
            "episodes_too_short": clips.left_out,
            "episodes": len(clips.files),
            "episodes_learned_from": seen,
        },
        "model": {"init": config.init, "kind": loaded.kind, "weights": loaded.weights, "image": spec.image},
        "data": dict(data),
        "missing": dict(missing),
        "clips": clips.names,
        "ways": {method: scores.numbers() for method, scores in evaluation.scores.items()},
    }


def table(evaluation: Evaluation, metrics: Sequence[str], *, samples: int) -> list[str]:
    """Predicted frames by the best and the mean sample, and all frames as published."""
    names = [name for name in BETTER if name in metrics and name != "fvd"]
    fvd = any(scores.fvd is not None for scores in evaluation.scores.values())
    best = f"best of {samples}" if samples > 1 else "sample"
    blocks = [
        ("predicted", "best", f"predicted, {best}"),
        ("predicted", "mean", "predicted, mean"),
        ("all", "best", f"all, {best}"),
    ]
    if samples == 1:
        blocks = [blocks[0], blocks[2]]
    width = 9 * len(names)
    head = [f"{'':17}" + "".join(f" |{title:>{width}}" for _, _, title in blocks)]
    head += [
        f"{'':17}"
        + "".join(" |" + "".join(f"{name:>9}" for name in names) for _ in blocks)
        + ("      fvd" if fvd else "")
    ]
    return head + [
        f"{LABELS[method]:17}"
        + "".join(" |" + "".join(_cell(scores, name, scope, how) for name in names) for scope, how, _ in blocks)
        + (f"{scores.fvd:9.1f}" if scores.fvd is not None else "")
        for method, scores in evaluation.scores.items()
    ]


def _cell(scores: Scores, metric: str, scope: Any, how: str) -> str:
    values = scores.best(metric, scope) if how == "best" else scores.per_sample(metric, scope)
    return f"{float(values.mean()):9.{DIGITS[metric]}f}"
