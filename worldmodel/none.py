"""No world model (`worldmodel=none`), for agents that learn from replay alone: nothing is fitted, nothing imagined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, get_args

from torch import nn

from worldmodel.spec import EnvSpec, ModelSpec, Part, Reads


@dataclass(frozen=True, kw_only=True)
class NullModelConfig:
    """Attributes:
    reads: what clips and real steps hold for the agent (`ModelSpec.reads`).
    """

    reads: tuple[Reads, ...]
    parts: ClassVar[tuple[Part, ...]] = ()

    def __post_init__(self) -> None:
        if not self.reads or set(self.reads) - set(get_args(Reads)):
            raise ValueError(f"reads must be some of {', '.join(get_args(Reads))} (got {list(self.reads)})")

    def build(self, *, env_spec: EnvSpec) -> NullModel:
        """What stands where a world model would."""
        return NullModel(self.reads, env_spec)


class NullModel(nn.Module):
    """A WorldModel that only says what an agent is shown; its clips begin anywhere in an episode."""

    def __init__(self, reads: tuple[Reads, ...], env_spec: EnvSpec) -> None:
        super().__init__()
        self.spec = ModelSpec(
            image=env_spec.image,
            context_frames=1,
            action_dim=env_spec.action_dim,
            max_frames=1,
            context="first_frame",
            burn_in=1,
            reads=reads,
        )
        self.version = 0

    def _nothing(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: TypeError."""
        raise TypeError("worldmodel=none imagines nothing and fits nothing; choose a world model")

    encode = imagine = observe = fork = depth = decode = prepare = losses = updated = _nothing

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        """None."""
        return {}
