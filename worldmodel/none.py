"""No world model (`worldmodel=none`), for agents that learn from replay alone: nothing is fitted, nothing imagined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, get_args

from torch import nn

from worldmodel.spec import EnvSpec, ModelSpec, ObsKey, Part


@dataclass(frozen=True, kw_only=True)
class NullModelConfig:
    """Attributes:
    obs_keys: what clips and real steps hold for the agent (`ModelSpec.obs_keys`).
    """

    obs_keys: tuple[ObsKey, ...]
    parts: ClassVar[tuple[Part, ...]] = ()

    def __post_init__(self) -> None:
        if not self.obs_keys or set(self.obs_keys) - set(get_args(ObsKey)):
            raise ValueError(f"obs_keys must be some of {', '.join(get_args(ObsKey))} (got {list(self.obs_keys)})")

    def build(self, *, env_spec: EnvSpec) -> NullModel:
        """What stands where a world model would."""
        return NullModel(self.obs_keys, env_spec)


class NullModel(nn.Module):
    """A WorldModel that only says what an agent is shown; its clips begin anywhere in an episode."""

    def __init__(self, obs_keys: tuple[ObsKey, ...], env_spec: EnvSpec) -> None:
        super().__init__()
        self.spec = ModelSpec(
            image=env_spec.image,
            context_frames=1,
            action_dim=env_spec.action_dim,
            max_frames=1,
            context="first_frame",
            burn_in=1,
            obs_keys=obs_keys,
        )
        self.version = 0

    def _nothing(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: TypeError."""
        raise TypeError("worldmodel=none imagines nothing and fits nothing; choose a world model")

    encode = imagine = observe = fork = depth = decode = prepare = losses = updated = _nothing

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        """None."""
        return {}
