from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from point_world import IMAGE, PointDream, draw, spec, states
from tensordict import TensorDict
from torch import Tensor

from agents.memory import LatentFilter
from worldmodel.spec import ContextMode, ObsKey

T, W = 2, 3  # context frames, window


class Walk:
    """Frames of E rows, fed to a filter one by one."""

    def __init__(self, context: ContextMode, rows: int = 5, burn_in: int = W) -> None:
        self.dream = PointDream(spec(context=context, context_frames=T, burn_in=burn_in))
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


@pytest.mark.parametrize("context", ["sliding", "first_frame"])
def test_at_first_context_and_window_are_the_first_frame(context: ContextMode) -> None:
    walk = Walk(context)
    walk.step(0, 1, 2, 3, 4)
    assert torch.equal(walk.now["context"][3], walk.frame(3, 0, 0))
    assert torch.equal(walk.now["pixels"][3], walk.frame(3, 0, 0, 0))
    assert walk.now["filled"].tolist() == [[1]] * 5
    assert not walk.now["actions"].any()


def test_anchor_episode_keeps_the_first_frame_as_context_for_ever() -> None:
    walk = Walk("first_frame")
    for number in range(6):
        walk.step(*(range(5) if number == 0 else ()))
    assert torch.equal(walk.now["context"][2], walk.frame(2, 0, 0))
    assert torch.equal(walk.now["pixels"][2], walk.frame(2, 3, 4, 5))
    assert torch.equal(walk.now["actions"][2], torch.stack([walk.actions[n][2] for n in (2, 3, 4)]))
    assert walk.now["filled"].tolist() == [[W]] * 5


def test_anchor_segment_moves_what_leaves_the_window_into_the_context() -> None:
    walk = Walk("sliding")
    expected = {0: (0, 0), 1: (0, 0), 2: (0, 0), 3: (0, 0), 4: (0, 1), 5: (1, 2)}  # frame -> context behind it
    for number in range(6):
        walk.step(*(range(5) if number == 0 else ()))
        assert torch.equal(walk.now["context"][4], walk.frame(4, *expected[number])), number
    assert torch.equal(walk.now["pixels"][4], walk.frame(4, 3, 4, 5))


@pytest.mark.parametrize("context", ["sliding", "first_frame"])
def test_a_partial_reset_restarts_its_rows_and_no_others(context: ContextMode) -> None:
    walk, straight = Walk(context), Walk(context)
    for number in range(5):
        walk.step(*({0: range(5), 3: (1, 4)}.get(number, ())))
        straight.step(*(range(5) if number == 0 else ()))
    assert walk.now["filled"][:, 0].tolist() == [3, 2, 3, 3, 2]
    assert torch.equal(walk.now["context"][4], walk.frame(4, 3, 3))
    assert torch.equal(walk.now["pixels"][4], walk.frame(4, 3, 3, 4))
    assert torch.equal(walk.now["actions"][4, -1], walk.actions[3][4])
    assert not walk.now["actions"][4, :-1].any()
    others = torch.tensor([0, 2, 3])
    assert (walk.now[others] == straight.now[others]).all()


def test_rows_of_different_fill_are_encoded_by_length_and_come_back_in_order() -> None:
    walk = Walk("first_frame")
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
    walk = Walk("sliding", burn_in=0)
    for number in range(4):
        walk.step(*(range(5) if number == 0 else ()))
    assert torch.equal(walk.now["context"][1], walk.frame(1, 2, 3))
    walk.filter.latent(walk.now, device=torch.device("cpu"))
    assert walk.dream.clips[-1]["pixels"].shape[:2] == (5, 0)


def test_wrong_pixels_rows_and_specs_are_named() -> None:
    walk = Walk("first_frame")
    walk.step(0, 1, 2, 3, 4)
    init = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"5 of memory, 3 of what is seen"):
        walk.filter.see(TensorDict({"pixels": walk.frames[0][:3], "is_init": init}, batch_size=[3]), walk.memory)
    with pytest.raises(ValueError, match=r"pixels must be uint8 .*float32"):
        walk.filter.see(TensorDict({"pixels": walk.frames[0][:3].float(), "is_init": init}, batch_size=[3]), None)
    with pytest.raises(ValueError, match=r"burn_in must be >= 1"):
        LatentFilter(PointDream(spec(context="first_frame", burn_in=0)))


class Told:
    """A dream of a model that reads `obs_keys`; its latent is the newest first number of the last of them."""

    def __init__(self, *obs_keys: ObsKey) -> None:
        self.spec = replace(spec(burn_in=W), obs_keys=obs_keys)
        self.clips: list[TensorDict] = []

    def encode(self, clip: TensorDict) -> TensorDict:
        self.clips.append(clip)
        return TensorDict({"latent": clip[self.spec.obs_keys[-1]][:, -1, :1].float()}, batch_size=clip.batch_size)


def told(step: int, *begins: int) -> TensorDict:
    """A real step of 5 rows in which every known number is 10 * row + step."""
    number = 10 * torch.arange(5)[:, None] + step
    is_init = torch.zeros(5, 1, dtype=torch.bool)
    is_init[list(begins)] = True
    td = {"pixels": torch.full((5, 3, IMAGE, IMAGE), step, dtype=torch.uint8), "proprio": number.float().expand(-1, 2)}
    td |= {"state": number.float().expand(-1, 6), "snapshot": number.double().expand(-1, 7), "is_init": is_init}
    return TensorDict(td, batch_size=[5])


@pytest.mark.parametrize("obs_keys", [("state", "snapshot"), ("pixels", "proprio")])
def test_the_memory_holds_what_the_model_reads_of_the_last_steps_and_nothing_else(obs_keys: tuple[ObsKey, ...]) -> None:
    dream = Told(*obs_keys)
    own, memory = LatentFilter(dream), None
    for step in range(5):
        memory = own.see(told(step, *{0: range(5), 3: (1,)}.get(step, ())), memory)
        memory["action"] = torch.full((5, 2), float(step))
    context = {"context"} if "pixels" in obs_keys else set()
    assert set(memory.keys()) == {*obs_keys, *context, "actions", "action", "filled"}
    assert memory[obs_keys[1]].dtype == told(0)[obs_keys[1]].dtype
    assert memory[obs_keys[1]][:, :, 0].tolist() == [
        [2, 3, 4], [13, 13, 14], [22, 23, 24], [32, 33, 34], [42, 43, 44]  # row 1 began anew with step 3
    ]  # fmt: skip
    assert memory["actions"][0, :, 0].tolist() == [1, 2, 3]

    latent_ED = own.latent(memory, device=torch.device("cpu"))
    assert latent_ED[:, 0].tolist() == [4, 14, 24, 34, 44]
    assert {len(clip): clip[obs_keys[1]].shape[1] for clip in dream.clips} == {1: 2, 4: 3}
    assert all(set(clip.keys()) == {*obs_keys, *context, "action"} for clip in dream.clips)
