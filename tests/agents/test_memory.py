from __future__ import annotations

import pytest
import torch
from point_world import IMAGE, PointDream, draw, spec, states
from tensordict import TensorDict
from torch import Tensor

from agents.memory import LatentFilter
from worldmodel.spec import Anchor

T, W = 2, 3  # context frames, window


class Walk:
    """Frames of E rows, fed to a filter one by one."""

    def __init__(self, anchor: Anchor, rows: int = 5, observed: int = W) -> None:
        self.dream = PointDream(spec(anchor=anchor, context=T, observed=observed))
        self.filter = LatentFilter(self.dream)
        self.rows, self.memory, self.frames, self.actions = rows, None, [], []
        self.generator = torch.Generator().manual_seed(8)

    def step(self, *begins: int) -> None:
        """The next frame; the rows `begins` start an episode with it."""
        is_init = torch.zeros(self.rows, 1, dtype=torch.bool)
        is_init[list(begins)] = True
        self.frames.append(draw(states(self.rows, self.generator)))
        td = TensorDict({"pixels": self.frames[-1], "is_init": is_init}, batch_size=[self.rows])
        self.memory = self.filter.see(td, self.memory)
        self.actions.append(torch.rand(self.rows, 2, generator=self.generator))
        self.now = self.memory.clone()
        self.memory["action"] = self.actions[-1]

    def frame(self, row: int, *numbers: int) -> Tensor:
        return torch.stack([self.frames[n][row] for n in numbers])


@pytest.mark.parametrize("anchor", ["segment", "episode"])
def test_at_first_context_and_window_are_the_first_frame(anchor: Anchor) -> None:
    walk = Walk(anchor)
    walk.step(0, 1, 2, 3, 4)
    assert torch.equal(walk.now["context"][3], walk.frame(3, 0, 0))
    assert torch.equal(walk.now["frames"][3], walk.frame(3, 0, 0, 0))
    assert walk.now["filled"].tolist() == [[1]] * 5
    assert not walk.now["actions"].any()


def test_anchor_episode_keeps_the_first_frame_as_context_for_ever() -> None:
    walk = Walk("episode")
    for number in range(6):
        walk.step(*(range(5) if number == 0 else ()))
    assert torch.equal(walk.now["context"][2], walk.frame(2, 0, 0))
    assert torch.equal(walk.now["frames"][2], walk.frame(2, 3, 4, 5))
    assert torch.equal(walk.now["actions"][2], torch.stack([walk.actions[n][2] for n in (2, 3, 4)]))
    assert walk.now["filled"].tolist() == [[W]] * 5


def test_anchor_segment_moves_what_leaves_the_window_into_the_context() -> None:
    walk = Walk("segment")
    expected = {0: (0, 0), 1: (0, 0), 2: (0, 0), 3: (0, 0), 4: (0, 1), 5: (1, 2)}  # frame -> context behind it
    for number in range(6):
        walk.step(*(range(5) if number == 0 else ()))
        assert torch.equal(walk.now["context"][4], walk.frame(4, *expected[number])), number
    assert torch.equal(walk.now["frames"][4], walk.frame(4, 3, 4, 5))


@pytest.mark.parametrize("anchor", ["segment", "episode"])
def test_a_partial_reset_restarts_its_rows_and_no_others(anchor: Anchor) -> None:
    walk, straight = Walk(anchor), Walk(anchor)
    for number in range(5):
        walk.step(*({0: range(5), 3: (1, 4)}.get(number, ())))
        straight.step(*(range(5) if number == 0 else ()))
    assert walk.now["filled"][:, 0].tolist() == [3, 2, 3, 3, 2]
    assert torch.equal(walk.now["context"][4], walk.frame(4, 3, 3))
    assert torch.equal(walk.now["frames"][4], walk.frame(4, 3, 3, 4))
    assert torch.equal(walk.now["actions"][4, -1], walk.actions[3][4])
    assert not walk.now["actions"][4, :-1].any()
    others = torch.tensor([0, 2, 3])
    assert (walk.now[others] == straight.now[others]).all()


def test_rows_of_different_fill_are_encoded_by_length_and_come_back_in_order() -> None:
    walk = Walk("episode")
    for number in range(5):
        walk.step(*({0: range(5), 3: (1,), 4: (4,)}.get(number, ())))
    walk.dream.clips.clear()
    latent_ED = walk.filter.latent(walk.now, device=torch.device("cpu"))
    lengths = {clip["pixels"].shape[1]: len(clip) for clip in walk.dream.clips}
    assert lengths == {1: 1, 2: 1, 3: 3}
    for clip in walk.dream.clips:
        assert clip["action"].shape[1] == clip["pixels"].shape[1]
        assert clip["context"].shape[1:] == (T, 3, IMAGE, IMAGE)
    for row in range(5):
        alone = walk.filter.latent(walk.now[row : row + 1], device=torch.device("cpu"))
        assert torch.equal(latent_ED[row], alone[0])


def test_without_observed_frames_the_context_ends_with_the_newest() -> None:
    walk = Walk("segment", observed=0)
    for number in range(4):
        walk.step(*(range(5) if number == 0 else ()))
    assert torch.equal(walk.now["context"][1], walk.frame(1, 2, 3))
    walk.filter.latent(walk.now, device=torch.device("cpu"))
    assert walk.dream.clips[-1]["pixels"].shape[:2] == (5, 0)


def test_wrong_pixels_rows_and_specs_are_named() -> None:
    walk = Walk("episode")
    walk.step(0, 1, 2, 3, 4)
    init = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"5 of memory, 3 of pixels"):
        walk.filter.see(TensorDict({"pixels": walk.frames[0][:3], "is_init": init}, batch_size=[3]), walk.memory)
    with pytest.raises(ValueError, match=r"pixels must be uint8 .*float32"):
        walk.filter.see(TensorDict({"pixels": walk.frames[0][:3].float(), "is_init": init}, batch_size=[3]), None)
    with pytest.raises(ValueError, match=r"observed must be >= 1"):
        LatentFilter(PointDream(spec(anchor="episode", observed=0)))
