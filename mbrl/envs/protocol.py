"""Experimental protocols: how a task is seen, stepped and scored. One YAML in `configs/protocol/` for each literature.

Knows numbers and names only. Scores of different protocols must never be averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Flip = Literal["none", "vertical", "rot180"]
Quality = Literal["fast", "full"]
Success = Literal["any", "last"]


@dataclass(frozen=True, kw_only=True)
class NamedCamera:
    """A camera that the simulator's own model defines."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"name must be the name of a camera of the model (got {self.name!r})")


@dataclass(frozen=True, kw_only=True)
class FreeCamera:
    """A camera of ours: it looks at a point (metres) from a distance (metres) under two angles (degrees)."""

    lookat: tuple[float, ...]
    distance: float
    azimuth: float
    elevation: float

    def __post_init__(self) -> None:
        if len(self.lookat) != 3:
            raise ValueError(f"lookat must be x, y, z (got {self.lookat})")
        if self.distance <= 0:
            raise ValueError(f"distance must be > 0 (got {self.distance})")
        if not -90 <= self.elevation <= 90:
            raise ValueError(f"elevation must be in -90..90 (got {self.elevation})")


@dataclass(frozen=True, kw_only=True)
class NumberedCamera:
    """A camera that the simulator's own model defines, by its number there.

    Attributes:
        by_domain: domains whose tasks are seen from another one.
    """

    number: int
    by_domain: Mapping[str, int]

    def __post_init__(self) -> None:
        for number in (self.number, *self.by_domain.values()):
            if number < 0:
                raise ValueError(f"number must be >= 0 (got {number})")


Camera = NamedCamera | NumberedCamera | FreeCamera | None


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Everything that must be equal for two scores to be comparable.

    Attributes:
        name: stored with every result.
        image: side of the square frames in pixels.
        camera: where the frame is taken from; None for worlds with one view of their own.
        flip: what is done to an upright-or-not raw frame: `vertical` reverses the rows (a mirror image for the inverted
            cameras of Meta-World, and what the literature does), `rot180` turns it (geometrically right for those).
        quality: `full`: lights, shadows, reflections and multisampling as the simulator's model asks for;
            `fast`: none of the last three.
        action_repeat: simulator steps per decision; their rewards are summed.
        decisions: decisions per episode; then it is truncated.
        success_bonus: added once to the reward of every decision with success.
        success: an episode counts as solved if `any` decision had success, or the `last` one. Of the simulator steps
            inside a decision likewise any, or the last.
        zero_action_first: one simulator step with a zero action before the first frame of an episode.
        deviations: what of the published protocol of this name is not reproduced here, in words.
    """

    name: str
    image: int
    camera: Camera
    flip: Flip
    quality: Quality
    action_repeat: int
    decisions: int
    success_bonus: float
    success: Success
    zero_action_first: bool
    deviations: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.image < 8 or self.image % 8:
            raise ValueError(f"image must be a multiple of 8 pixels, at least 8 (got {self.image})")
        for field, choices in (("flip", Flip), ("quality", Quality), ("success", Success)):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(
                    f"{field} must be one of {', '.join(get_args(choices))} (got {getattr(self, field)!r})"
                )
        for field in ("action_repeat", "decisions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be >= 1 (got {getattr(self, field)})")
        if self.success_bonus < 0:
            raise ValueError(f"success_bonus must be >= 0 (got {self.success_bonus})")
