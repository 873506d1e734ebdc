"""The rollout engine: imagines token frames against a static key/value cache."""

from worldmodel.rollout.engine import Frame, TokenEngine
from worldmodel.rollout.sampling import SamplingConfig

__all__ = ["Frame", "SamplingConfig", "TokenEngine"]
