"""`agents.api.build`: a config gets what its `build` names, and says in one line what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from agents.api import asked, build

RUNTIME = {"spec": "the spec", "seeds": "the seeds"}


@dataclass(frozen=True)
class Plain:
    def build(self, *, seeds: str, width: int = 3) -> tuple[str, int]:
        return seeds, width


@dataclass(frozen=True)
class Dreaming:
    def build(self, *, dream: str, spec: str, expert: str) -> str:
        return dream + spec + expert


@dataclass(frozen=True)
class Holding:
    inner: Any
    more: tuple[Any, ...] = ()

    def build(self, *, spec: str, runtime: Mapping[str, Any]) -> tuple[Any, ...]:
        return spec, *(build(one, runtime) for one in (self.inner, *self.more))


def test_a_config_gets_what_its_build_names_and_keeps_its_own_defaults() -> None:
    assert build(Plain(), RUNTIME) == ("the seeds", 3)


def test_one_that_names_the_runtime_builds_others_of_it_at_any_depth() -> None:
    held = build(Holding(Holding(Plain()), (Plain(),)), RUNTIME)
    assert held == ("the spec", ("the spec", ("the seeds", 3)), ("the seeds", 3))


@pytest.mark.parametrize("config", [Dreaming(), Holding(Dreaming())])
def test_what_is_not_there_is_named_in_one_line(config: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^Dreaming\.build asks for dream, expert, which .* there are spec, seeds, ru"
    ):
        build(config, RUNTIME)


def test_what_is_asked_for_is_known_before_anything_is_built_at_any_depth() -> None:
    assert asked(Plain()) == {"seeds", "width"}
    assert asked(Holding(Plain(), (Holding(Dreaming()),))) == {
        "seeds", "width", "spec", "runtime", "dream", "expert",
    }  # fmt: skip
