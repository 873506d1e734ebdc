from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl.replay.clips import ClipReplay, ReplayConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec, ObsKey

LENGTHS = (3, 9, 1, 6)
"""Decisions of episodes 0 to 3."""


class FakeTokenizer:
    """Context code (2 per frame): frame index and 5; frame codes (3): number, frame index, version."""

    def __init__(self) -> None:
        self.current = 0
        self.calls: list[tuple[int, int]] = []

    def __call__(self, context_BtCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        assert context_BtCHW.dtype == frames_BTCHW.dtype == torch.uint8
        self.calls.append((frames_BTCHW.shape[0], frames_BTCHW.shape[1]))
        index_Bt = context_BtCHW[:, :, 1, 0, 0].long()
        context = torch.stack([index_Bt, torch.full_like(index_Bt, 5)], dim=-1).flatten(1)
        frames = frames_BTCHW[:, :, :2, 0, 0].long()
        return context, torch.cat([frames, torch.full_like(frames[..., :1], self.current)], dim=-1)

    def version(self) -> int:
        return self.current


@pytest.fixture
def build(tmp_path: Path, make_episode):
    def make(
        mode: str,
        *,
        lengths=LENGTHS,
        context_frames: int = 2,
        seed: int = 1,
        terminated=(1,),
        obs_keys: tuple[ObsKey, ...] = ("pixels",),
        **settings,
    ) -> ClipReplay:
        tokenizer = FakeTokenizer()
        replay = ReplayConfig(
            **(
                {
                    "capacity": 1000,
                    "recent_fraction": 0.0,
                    "recent_episodes": 2,
                    "return_prioritised_fraction": 0.0,
                    "on_damage": "stop",
                }
                | settings
            )
        ).build(
            folder=tmp_path / mode,
            spec=ModelSpec(
                image=5,
                context_frames=context_frames,
                action_dim=4,
                max_frames=9,
                context=mode,
                burn_in=1,  # type: ignore[arg-type]
                obs_keys=obs_keys,
            ),
            seeds=Seeds(seed),
            tokenize=tokenizer,
            version=tokenizer.version,
        )
        replay.tokenizer = tokenizer  # type: ignore[attr-defined]
        for number, length in enumerate(lengths):
            replay.append(make_episode(number, length, terminated=number in terminated))
        return replay

    return make


def _where(frames: Tensor) -> np.ndarray:
    """(number, frame index) [B, T, 2] of frames [B, T, 3, H, W]."""
    return frames[:, :, :2, 0, 0].numpy().astype(int)


@pytest.mark.parametrize("mode", ["sliding", "first_frame"])
def test_a_clip_has_the_names_dtypes_and_shapes_of_the_contract(build, mode: str) -> None:
    clip = build(mode).clips(11, 3, stream="fit", draw=0)
    assert clip.batch_size == torch.Size([11])
    assert {key: (value.dtype, tuple(value.shape)) for key, value in clip.items()} == {
        "context": (torch.uint8, (11, 2, 3, 5, 5)),
        "pixels": (torch.uint8, (11, 3, 3, 5, 5)),
        "action": (torch.float32, (11, 3, 4)),
        "reward": (torch.float32, (11, 3)),
        "continue": (torch.float32, (11, 3)),
        "reward_mask": (torch.bool, (11, 3)),
    }
    coded = build(mode, seed=2).clips(11, 3, stream="fit", draw=0, codes=True)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in coded.items() if "codes" in key} == {
        "context_codes": (torch.int64, (11, 4)),
        "codes": (torch.int64, (11, 3, 3)),
    }
    assert "pixels" not in coded and "context" not in coded


@pytest.mark.parametrize("mode", ["sliding", "first_frame"])
def test_clips_are_contiguous_in_one_episode_and_every_row_is_aligned(build, mode: str) -> None:
    clip = build(mode).clips(300, 4, stream="fit", draw=3)
    frames, context = _where(clip["pixels"]), _where(clip["context"])
    number, index = frames[:, :, 0], frames[:, :, 1]
    assert (number == number[:, :1]).all() and (np.diff(index, axis=1) == 1).all()
    lengths = np.array(LENGTHS)[number]
    assert (index <= lengths).all()
    assert (context[:, :, 0] == number[:, :1]).all()
    if mode == "sliding":
        assert (context[:, :, 1] == index[:, :1] + np.array([-2, -1])).all()
    else:
        assert (context[:, :, 1] == 0).all()

    first = index == 0
    np.testing.assert_array_equal(clip["reward_mask"].numpy(), ~first)
    assert first.any() == (mode == "first_frame")
    np.testing.assert_array_equal(clip["reward"].numpy(), np.where(first, 0, 100 * number + index - 1))
    wanted = np.stack([number, index - 1, -np.ones_like(index), np.ones_like(index)], axis=-1) / 64
    np.testing.assert_array_equal(clip["action"].numpy(), np.where(first[..., None], 0, wanted).astype(np.float32))
    np.testing.assert_array_equal(clip["continue"].numpy(), ~((number == 1) & (index == lengths)))
    assert (clip["continue"] == 0).any(), "episode 1 terminates and must be seen to"


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("mode", ["sliding", "first_frame"])
@pytest.mark.parametrize("obs_keys", [("pixels",), ("pixels", "proprio"), ("state", "snapshot")])
def test_a_clip_carries_what_the_model_reads_of_its_own_frames_and_nothing_else(
    build, obs_keys: tuple[ObsKey, ...], mode: str, codes: bool
) -> None:
    clip = build(mode, obs_keys=obs_keys).clips(40, 3, stream="fit", draw=1, codes=codes)
    frames = {False: {"context", "pixels"}, True: {"context_codes", "codes"}}[codes] if "pixels" in obs_keys else set()
    told = set(obs_keys) - {"pixels"}
    assert set(clip.keys()) == frames | told | {"action", "reward", "reward_mask", "continue"}
    widths = {"proprio": (2, torch.float32), "state": (5, torch.float32), "snapshot": (3, torch.float64)}
    for key in told:
        assert (clip[key].shape, clip[key].dtype) == (torch.Size([40, 3, widths[key][0]]), widths[key][1])
        number, index = clip[key][..., 0].numpy(), clip[key][..., 1].numpy()
        assert (np.diff(index, axis=1) == 1).all() and (number == number[:, :1]).all()
        np.testing.assert_array_equal(clip["reward_mask"].numpy(), index > 0)
        np.testing.assert_array_equal(clip["reward"].numpy(), np.where(index == 0, 0, 100 * number + index - 1))
        if frames:
            seen = clip["codes"][..., :2].numpy() if codes else _where(clip["pixels"])
            np.testing.assert_array_equal(seen, np.stack([number, index], -1))


def test_a_model_that_never_looks_makes_no_codes(build) -> None:
    replay = build("first_frame", obs_keys=("state", "snapshot"))
    replay.clips(20, 2, stream="fit", draw=0, codes=True)
    assert replay.tokenizer.calls == []


def test_an_episode_without_what_the_model_reads_is_refused(build, make_episode) -> None:
    episode = make_episode(9, 4)
    blind = replace(episode, snapshot=episode.snapshot[:, :0], state=episode.state[:, :0])
    with pytest.raises(ValueError, match=r"episode 9 has no state and no snapshot, which the world model reads"):
        build("first_frame", obs_keys=("state", "snapshot")).append(blind)
    build("first_frame", seed=2, lengths=(), obs_keys=("pixels", "proprio")).append(blind)


@pytest.mark.parametrize(("mode", "length", "count"), [("sliding", 3, 5 + 6 - 3), ("first_frame", 3, 2 + 8 + 5)])
def test_every_valid_start_is_reached_equally_often(build, mode: str, length: int, count: int) -> None:
    rows = 200 * count
    starts = _where(build(mode).clips(rows, length, stream="fit", draw=0)["pixels"])[:, 0]
    _, seen = np.unique(starts, axis=0, return_counts=True)
    expected = sum(max(0, decisions + 2 - length - (2 if mode == "sliding" else 0)) for decisions in LENGTHS)
    assert len(seen) == expected
    chi_square = ((seen - rows / expected) ** 2 / (rows / expected)).sum()
    assert chi_square < expected - 1 + 4 * np.sqrt(2 * (expected - 1))


def test_draws_are_numbered_and_named(build) -> None:
    replay, twin = build("sliding"), build("sliding")
    a = replay.clips(9, 2, stream="fit", draw=5)
    replay.clips(9, 2, stream="fit", draw=6)
    b = twin.clips(9, 2, stream="fit", draw=5)
    assert all((a[key] == b[key]).all() for key in a.keys())  # noqa: SIM118 - a TensorDict iterates over its batch
    assert not (a["pixels"] == replay.clips(9, 2, stream="fit", draw=6)["pixels"]).all()
    assert not (a["pixels"] == replay.clips(9, 2, stream="dream", draw=5)["pixels"]).all()
    assert not (a["pixels"] == build("first_frame", seed=2).clips(9, 2, stream="fit", draw=5)["pixels"]).all()


def test_asking_for_codes_gives_the_same_rows_as_asking_for_pixels(build) -> None:
    for mode in ("sliding", "first_frame"):
        replay = build(mode)
        pixels = replay.clips(13, 4, stream="fit", draw=2)
        codes = replay.clips(13, 4, stream="fit", draw=2, codes=True)
        np.testing.assert_array_equal(codes["codes"][..., :2].numpy(), _where(pixels["pixels"]))
        np.testing.assert_array_equal(codes["context_codes"][:, ::2].numpy(), _where(pixels["context"])[..., 1])
        assert (codes["reward"] == pixels["reward"]).all()


def test_codes_of_an_episode_are_made_once_whole_and_again_when_the_tokenizer_moves(build) -> None:
    replay = build("first_frame")
    tokenizer = replay.tokenizer
    assert (replay.clips(50, 2, stream="fit", draw=0, codes=True)["codes"][..., 2] == 0).all()
    assert sorted(tokenizer.calls) == [(1, 2), (1, 4), (1, 7), (1, 10)], "each episode alone, all its frames"
    replay.clips(50, 2, stream="fit", draw=1, codes=True)
    assert len(tokenizer.calls) == 4
    tokenizer.current = 7
    assert (replay.clips(50, 2, stream="fit", draw=2, codes=True)["codes"][..., 2] == 7).all()
    assert len(tokenizer.calls) == 8


def test_long_episodes_are_encoded_in_fixed_pieces(build) -> None:
    replay = build("first_frame", lengths=(200,))
    codes = replay.clips(40, 5, stream="fit", draw=0, codes=True)["codes"]
    assert replay.tokenizer.calls == [(1, 128), (1, 73)]
    assert (np.diff(codes[..., 1].numpy(), axis=1) == 1).all()


def test_codes_leave_memory_with_their_episode(build, make_episode) -> None:
    replay = build("first_frame", capacity=12)
    for number in range(4, 20):
        replay.clips(20, 2, stream="fit", draw=number, codes=True)
        replay.append(make_episode(number, 4))
    assert len(replay._codes) <= len(replay.store.stored) == 3


def test_a_clip_of_no_frames_is_a_bare_context(build) -> None:
    clip = build("sliding").clips(7, 0, stream="dream", draw=0)
    assert (clip["pixels"].shape, clip["action"].shape) == ((7, 0, 3, 5, 5), (7, 0, 4))
    with pytest.raises(ValueError, match="length >= 1"):
        build("first_frame").clips(7, 0, stream="dream", draw=0)


def test_a_share_of_the_rows_comes_from_the_newest_episodes(build) -> None:
    def share(**settings: float) -> float:
        replay = build("first_frame", lengths=(20, 20, 20, 20), **settings)
        return float((_where(replay.clips(3000, 2, stream="fit", draw=0)["pixels"])[:, 0, 0] >= 3).mean())

    assert abs(share() - 1 / 4) < 0.03
    assert abs(share(recent_fraction=0.4, recent_episodes=1) - (0.4 + 0.6 / 4)) < 0.03
    assert share(recent_fraction=1.0, recent_episodes=1) == 1


@pytest.mark.parametrize("mode", ["sliding", "first_frame"])
def test_a_share_of_the_rows_is_the_best_of_several_by_the_rewards_that_the_clip_shows(build, mode: str) -> None:
    def rewards(fraction: float) -> np.ndarray:
        clip = build(mode, lengths=(20, 20), return_prioritised_fraction=fraction).clips(2000, 3, stream="fit", draw=0)
        return clip["reward"].sum(1).numpy()

    plain, half, best = (rewards(fraction) for fraction in (0.0, 0.5, 1.0))
    top = np.quantile(plain, 0.9)
    share, contested = (plain > top).mean(), 1 - (plain <= top).mean() ** 8
    assert abs((half > top).mean() - (share + contested) / 2) < 0.05
    assert abs((best > top).mean() - contested) < 0.05
    assert (np.isin(best, plain)).all(), "they are clips like all others"


def test_newest_episodes_that_are_too_short_give_way_to_the_others(build) -> None:
    replay = build("first_frame", lengths=(9, 1), recent_fraction=1.0, recent_episodes=1)
    assert (_where(replay.clips(8, 5, stream="fit", draw=0)["pixels"])[:, 0, 0] == 0).all()


def test_empty_or_too_short_says_what_is_there_and_what_is_needed(build) -> None:
    with pytest.raises(ValueError, match="has the 5 frames that a clip of 3 needs: there are 0 finished episodes"):
        build("sliding", lengths=()).clips(2, 3, stream="fit", draw=0)
    with pytest.raises(ValueError, match=r"12 frames .* 4 finished episodes, the longest of 10 frames"):
        build("sliding").clips(2, 10, stream="fit", draw=0)


def test_episodes_of_another_shape_than_the_model_are_refused(build, make_episode) -> None:
    with pytest.raises(ValueError, match=r"frames \[3, 6, 6\].*the model wants \[3, 5, 5\]"):
        build("sliding").append(make_episode(9, 4, side=6))


def test_a_restored_replay_draws_what_the_first_one_drew(build) -> None:
    first = build("first_frame")
    wanted = first.clips(17, 3, stream="fit", draw=4, codes=True)
    second = build("first_frame", lengths=())
    second.load_state_dict(first.state_dict())
    found = second.clips(17, 3, stream="fit", draw=4, codes=True)
    assert len(second) == len(first) == sum(LENGTHS)
    assert all((wanted[key] == found[key]).all() for key in wanted.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", 0),
        ("recent_fraction", 1.5),
        ("recent_episodes", 0),
        ("return_prioritised_fraction", -1),
        ("on_damage", "ignore"),
    ],
)
def test_config_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    good = {
        "capacity": 10,
        "recent_fraction": 0.5,
        "recent_episodes": 2,
        "return_prioritised_fraction": 0.0,
        "on_damage": "stop",
    }
    with pytest.raises(ValueError, match=f"{field} must be"):
        ReplayConfig(**(good | {field: value}))  # type: ignore[arg-type]


def test_an_episode_whose_rewards_nobody_knows_is_refused(build, make_episode) -> None:
    unknown = replace(make_episode(9, 3), reward=np.full(3, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"episode 9 has no rewards \(NaN\).*keep it in a data set"):
        build("first_frame").append(unknown)


def test_a_video_without_actions_is_refused(build, make_episode) -> None:
    with pytest.raises(ValueError, match="and 0 actions, the model wants"):
        build("first_frame").append(replace(make_episode(9, 3), action=np.zeros((3, 0), np.float32)))
