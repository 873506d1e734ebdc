"""What a report shows, panel by panel: which column of a run's files answers which question."""

from __future__ import annotations

from mbrl.report.plots import Line, Lines, Panel, Scores, Times

PANELS: tuple[Panel, ...] = (
    Scores(title="1  Success", unit="share of episodes", column="success", training="train/episode/success"),
    Scores(title="2  Return", unit="return of an episode", column="return", training="train/episode/return"),
    Lines(
        title="3  World model: cross-entropy",
        unit="nats",
        lines=(
            Line(column="dynamics/codes", label="code"),
            Line(column="dynamics/reward", label="reward"),
            Line(column="heldout/codes", label="held-out code"),
            Line(column="heldout/reward", label="held-out reward"),
        ),
    ),
    Lines(
        title="4  World model: held-out reward",
        unit="R², by imagined frames",
        gate="reward_r2",
        floor=-1.0,
        ceiling=1.05,
        lines=(Line(column="heldout/reward_r2_*", label="after *"),),
    ),
    Lines(
        title="5  Codes alive",
        unit="codes",
        gate="codes_alive",
        floor=0.0,
        lines=(Line(column="replay/codes_alive", label="in the newest episodes"),),
    ),
    Lines(
        title="6  What the codes know (probe)",
        unit="R²",
        floor=-1.0,
        ceiling=1.05,
        lines=(Line(column="probe/*_r2", label="*", last=(("probe/*_rmse", "rmse {}"),)),),
    ),
    Lines(
        title="7  Imagined against real return",
        unit="return over the horizon",
        lines=(
            Line(column="heldout/return_imagined", label="imagined"),
            Line(column="heldout/return_real", label="real, same policy and starts"),
        ),
    ),
    Lines(
        title="8  Value against return",
        unit="discounted return",
        lines=(
            Line(column="heldout/value", label="the critic's value"),
            Line(column="heldout/return_to_go", label="real return to go"),
        ),
    ),
    Lines(
        title="9  Policy: spread and saturation",
        unit="of an action in [-1, 1]",
        floor=0.0,
        right_unit="nats",
        lines=(
            Line(column="agent/std", label="std"),
            Line(column="agent/saturation", label="saturation"),
            Line(column="agent/entropy", label="entropy (right)", right=True),
        ),
    ),
    Lines(
        title="10  Actor and critic, in imagination",
        unit="return",
        lines=(
            Line(column="agent/return_mean", label="return"),
            Line(column="agent/value_mean", label="value"),
            Line(column="agent/advantage_std", label="std of the advantage"),
        ),
    ),
    Lines(
        title="11  Tokenizer: losses",
        unit="weighted loss",
        floor=0.0,
        lines=(
            Line(column="tokenizer/*_l1", label="* L1"),
            Line(column="tokenizer/auxiliary", label="auxiliary"),
        ),
    ),
    Times(title="12  Where the time went", unit="% of the time"),
)
"""The panels of the page, in reading order."""
