"""Clips as several models predicted them, under each other: each keeps its own as a file, all are drawn from these."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mbrl.files import write_atomically
from mbrl.predict.draw import draw, framed
from worldmodel.evaluation.predict import ClipSample

CLIPS = "clips"
FPS = 5.0


def keep(folder: Path, name: str, videos: Sequence[ClipSample], *, num_observed: int) -> None:
    """Keeps what a model predicted of these clips as `clips/<name>.npz`.

    Args:
        given: frames that the model was shown.
    """
    path = folder / CLIPS / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = torch.stack([video.truth for video in videos]).numpy()
    model, copy = (torch.stack([video.methods[method][0] for video in videos]).numpy() for method in ("model", "copy"))
    stream = io.BytesIO()
    np.savez_compressed(stream, truth=truth, model=model, copy=copy, num_observed=np.array(num_observed))
    write_atomically(path, stream.getvalue())


def draw_kept(folder: Path, names: Sequence[str]) -> list[Path]:
    """clips.gif and clips.png in `folder`: of each clip the truth, what those of `names` made of it, and copying."""
    kept = {}
    for name in names:
        if (path := folder / CLIPS / f"{name}.npz").exists():
            with np.load(path, allow_pickle=False) as held:
                kept[name] = {method: torch.from_numpy(held[method]) for method in held.files}
    first = next(iter(kept.values()))
    num_observed = int(first["num_observed"])
    rows = []
    for place in range(min(len(clips["truth"]) for clips in kept.values())):
        made = {name: framed(clips["model"][place], num_observed) for name, clips in kept.items()}
        rows.append({"truth": first["truth"][place], **made, "copy": framed(first["copy"][place], num_observed)})
    return draw(rows, folder, fps=FPS)
