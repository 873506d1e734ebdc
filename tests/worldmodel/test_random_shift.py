"""Random shifts: against padding and cutting written out, and in the updates of a world model."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.nn.functional import pad

from worldmodel.augment import shifted
from worldmodel.optim import OptimConfig
from worldmodel.processes import Processes
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec
from worldmodel.training.updater import PartConfig, UpdaterConfig

ROWS, CONTEXT, LENGTH, SIDE = 5, 1, 3, 8


def clip() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (ROWS, CONTEXT + LENGTH, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    known = {"context": frames[:, :CONTEXT], "pixels": frames[:, CONTEXT:], "reward": torch.rand(ROWS, LENGTH)}
    return TensorDict(known, batch_size=[ROWS])


@given(seed=st.integers(0, 2**31), most=st.integers(1, SIDE))
def test_each_row_is_padded_with_its_edge_and_cut_out_at_one_place(seed: int, most: int) -> None:
    whole = clip()
    moved = shifted(whole, most, torch.Generator().manual_seed(seed))
    places = [(y, x) for y in range(2 * most + 1) for x in range(2 * most + 1)]
    for row in range(ROWS):
        frames = torch.cat([whole["context"][row], whole["pixels"][row]])
        wide = pad(frames.float(), (most,) * 4, mode="replicate").byte()
        seen = torch.cat([moved["context"][row], moved["pixels"][row]])
        assert any(torch.equal(seen, wide[..., y : y + SIDE, x : x + SIDE]) for y, x in places)
    assert torch.equal(moved["reward"], whole["reward"])
    assert torch.equal(whole["pixels"], clip()["pixels"]), "what was drawn stays as it was"


def test_rows_move_differently_and_every_shift_occurs() -> None:
    rows = 400
    frames = torch.arange(SIDE * SIDE, dtype=torch.uint8).reshape(1, 1, 1, SIDE, SIDE).expand(rows, 1, 3, SIDE, SIDE)
    whole = TensorDict({"context": frames, "pixels": frames}, batch_size=[rows])
    moved = shifted(whole, 1, torch.Generator().manual_seed(0))
    middles = moved["pixels"][:, 0, 0, 4, 4]
    expected = {(4 + dy) * SIDE + 4 + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert set(middles.tolist()) == expected


class Seen:
    """A world model that keeps the clips it is shown; and the replay that they come from."""

    spec = ModelSpec(
        image=SIDE,
        context_frames=1,
        action_dim=1,
        max_frames=LENGTH,
        context="first_frame",
        burn_in=1,
        parts=("dynamics",),
    )

    def __init__(self) -> None:
        self.shown: list[TensorDict] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def clips(self, n: int, length: int, *, stream: str, draw: int, codes: bool = False) -> TensorDict:
        assert not codes, "what is moved has no codes yet"
        return clip()

    def parameters_of(self, part: str) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight} if part == "dynamics" else {}

    def losses(
        self, seen: TensorDict, part: str, *, step: int, generator: torch.Generator, **more: Any
    ) -> dict[str, torch.Tensor]:
        self.shown.append(seen)
        return {"loss": self.weight.square().sum()}

    def named_buffers(self) -> list[tuple[str, torch.Tensor]]:
        return []

    def prepare(self, part: str) -> None:
        pass

    updated = prepare


def test_every_update_is_shown_pixels_moved_by_its_own_draw() -> None:
    optim = OptimConfig(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0)
    part = PartConfig(batch=ROWS, accumulate=1, length=LENGTH, optim=optim)
    config = UpdaterConfig(tokenizer=None, dynamics=part, random_shift=2, precision="float32")
    model = Seen()
    alone = Processes(rank=0, world=1, device=torch.device("cpu"))
    updater = config.build(model=model, seeds=Seeds(0), processes=alone, sources={"dynamics": model})  # type: ignore[arg-type]
    for number in (0, 1, 0):
        updater.update("dynamics", number)
    first, second, again = (shown["pixels"] for shown in model.shown)
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first, clip()["pixels"])
