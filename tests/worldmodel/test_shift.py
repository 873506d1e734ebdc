"""Random shifts: against padding and cutting written out, and in an update of the world model."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.nn.functional import pad

from worldmodel.training.shift import shifted

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
