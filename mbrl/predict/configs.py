"""What `mbrl predict` is asked to do, checked before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mbrl.rundir.machine import check_device
from worldmodel.evaluation.metrics import BETTER
from worldmodel.evaluation.predict import Method

Mode = Literal["auto", "free", "action", "goal"]
Start = Literal["first", "random"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of one evaluation.

    Attributes:
        init: a folder in the published layout, or one of `mbrl pretrain` or `mbrl train`.
        to: the folder of what is written.
        seed: of the draws.
        split: of the data: `train`, `validation` or `all`.
        clips: at most so many.
        start: clips are the first frames of each episode (published), or begin anywhere.
        horizon: frames that are predicted; 0: as many as the model can.
        n: futures of each clip.
        mode: `free`, `action`, `goal`; `auto`: `action` for a model that knows actions, else `free`.
        temperature, top_k: how codes are drawn; None: as the model does (published: 1 and 100). Temperature 0 takes the
            most likely codes.
        metrics: some of mse, psnr, ssim, lpips, fvd.
        baselines: what is judged beside the model, some of zero, shuffled, copy, reconstruction; None: all that apply.
        lpips, i3d: files of the networks; None: the user's cache.
        rows: futures that are predicted at once.
        videos: clips that are drawn.
        fps: of the GIF.
        device, threads: where it runs.
    """

    init: str
    to: str
    seed: int
    split: Literal["train", "validation", "all"]
    clips: int
    start: Start
    horizon: int
    n: int
    mode: Mode
    temperature: float | None
    top_k: int | None
    metrics: tuple[str, ...]
    baselines: tuple[Method, ...] | None
    lpips: str | None
    i3d: str | None
    rows: int
    videos: int
    fps: float
    device: str
    threads: int

    def __post_init__(self) -> None:
        for name in ("clips", "n", "rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        for name in ("horizon", "videos", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")
        if self.fps <= 0:
            raise ValueError(f"fps must be > 0 (got {self.fps})")
        if self.temperature is not None and not 0 <= self.temperature < 100:
            raise ValueError(f"temperature must be >= 0, or null for the model's own (got {self.temperature})")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 keeps all), or null for the model's own (got {self.top_k})")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 with temperature=0: the most likely codes are one future (got {self.n})")
        choices = {"split": ("train", "validation", "all"), "start": get_args(Start), "mode": get_args(Mode)}
        for name, right in choices.items():
            if getattr(self, name) not in right:
                raise ValueError(f"{name} must be one of {', '.join(right)} (got {getattr(self, name)})")
        others = tuple(method for method in get_args(Method) if method != "model")
        for name, known in (("metrics", tuple(BETTER)), ("baselines", others)):
            self._check_list(name, known)
        if not self.metrics or self.metrics == ("fvd",):
            raise ValueError(
                f"metrics must hold at least one of frames: mse, psnr, ssim, lpips (got {list(self.metrics)})"
            )
        check_device(self.device)

    def _check_list(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value is None and name == "baselines":
            return
        wrong = [item for item in value if item not in known] if isinstance(value, list | tuple) else [value]
        if wrong or len(set(value)) != len(value):
            raise ValueError(f"{name} must be a list of some of {', '.join(known)} (got {value})")

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return Path(self.init).expanduser()
