"""What the configs of a run must agree on: one pure rule each, checked before anything heavy is built.

Ranges of single values live beside the values (each dataclass's `__post_init__`); here stand the inequalities between two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SUITES = {"toy": "toy", "metaworld": "metaworld"}


def check_together(groups: Mapping[str, Any]) -> None:
    """Raises: ValueError with the first disagreement: the key, its value, what it is up against, and a mend."""
    for complaint in complaints(groups):
        raise ValueError(complaint)


def complaints(groups: Mapping[str, Any]) -> Iterator[str]:
    """Every disagreement, most basic first."""
    yield from _images(groups)
    yield from _lengths(groups)
    yield from _amounts(groups)


def _images(groups: Mapping[str, Any]) -> Iterator[str]:
    image, tokenizer = groups["protocol"].image, groups["tokenizer"]
    if tokenizer.image != image:
        yield f"tokenizer.image={tokenizer.image} must equal protocol.image={image}: frames are tokenized as they are drawn"


def _lengths(groups: Mapping[str, Any]) -> Iterator[str]:
    model, layout, agent = groups["worldmodel"], groups["tokenizer"].layout, groups["agent"]
    needed, positions = layout.length(model.segment), groups["transformer"].positions
    if needed > positions:
        yield (
            f"worldmodel.segment={model.segment} needs {needed} token positions, transformer.positions={positions}; "
            f"lower worldmodel.segment to {layout_frames(layout, positions)} or raise transformer.positions"
        )
    horizon = getattr(agent, "horizon", 0)
    if model.observed + horizon > model.segment:
        yield (
            f"agent.horizon={horizon} is beyond what the world model is trained on: worldmodel.observed={model.observed} + "
            f"horizon must be <= worldmodel.segment={model.segment}; lower agent.horizon to {model.segment - model.observed}"
        )
    length = groups["fit"].dynamics.length
    if length > model.segment:
        yield f"fit.dynamics.length={length} must be <= worldmodel.segment={model.segment}"
    longest = groups["protocol"].decisions + 1 - (layout.context if model.anchor == "segment" else 0)
    for part in ("tokenizer", "dynamics"):
        length = getattr(groups["fit"], part).length
        if length > longest:
            yield f"fit.{part}.length={length} must be <= {longest}, the frames of an episode of protocol.decisions={groups['protocol'].decisions}"
    if groups["fit"].tokenizer.length < 2:
        yield f"fit.tokenizer.length={groups['fit'].tokenizer.length} must be >= 2"


def layout_frames(layout: Any, positions: int) -> int:
    """Future frames that fit into `positions`."""
    return max(0, (positions - layout.prelude) // layout.stride)


def _amounts(groups: Mapping[str, Any]) -> Iterator[str]:
    protocol, schedule, rows = groups["protocol"], groups["schedule"], groups["compute"].rows
    episode = protocol.decisions * protocol.action_repeat * rows
    if schedule.prefill < episode:
        yield (
            f"schedule.prefill={schedule.prefill} must be >= {episode} env steps, one whole episode "
            f"({protocol.decisions} decisions x {protocol.action_repeat} x {rows} rows): only finished episodes are learned from"
        )
    if groups["replay"].capacity < protocol.decisions:
        yield f"replay.capacity={groups['replay'].capacity} must be >= protocol.decisions={protocol.decisions}, one episode"
