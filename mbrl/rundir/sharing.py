"""Whether the batches of a run can be cut into pieces, for several processes or one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from worldmodel.training.updater import UpdaterConfig


def pieces(name: str, groups: Mapping[str, Any], world: int) -> Iterator[str]:
    """Every disagreement: a batch must be shareable, and its pieces must add up to it.

    Args:
        name: the group that says what is trained.
    """
    config: UpdaterConfig = groups[name]
    for part, own in config.parts.items():
        if own.batch % (world * own.accumulate):
            yield (
                f"{name}.{part}.batch={own.batch} must be a multiple of {world} processes x accumulate="
                f"{own.accumulate}: all clips of an update together; for example {world * own.accumulate}"
            )
    tokenizer, losses = config.tokenizer, getattr(groups["worldmodel"], "losses", None)
    if tokenizer is None or losses is None:
        return
    for key, whole in (
        ("tokenizer.quantizer=fsq", groups["tokenizer"].quantizer == "fsq"),
        (f"worldmodel.losses.foreground_weight={losses.foreground_weight}", losses.foreground_weight > 0),
    ):
        if whole and tokenizer.accumulate > 1:
            yield (
                f"{name}.tokenizer.accumulate must be 1 with {key}, whose statistics are those of the whole batch "
                f"(got {tokenizer.accumulate}); lower {name}.tokenizer.batch, or use several processes"
            )
    if tokenizer.discriminator is not None and not losses.lpips:
        yield (
            "worldmodel.losses.lpips must be > 0 with a discriminator, which is weighed by its gradient (got 0.0); "
            "the published weight is 1"
        )
