from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mbrl.cli.compose import packaged_configs
from mbrl.data.mixture import PartConfig, split_of, survey
from mbrl.data.prefetch import Prefetcher
from mbrl.data.segments import frame_step
from mbrl.data.source import ClipSource, DataConfig
from mbrl.replay.clips import ReplayConfig
from mbrl.rundir.build import make
from tests.data.numbered import numbered
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

SPEC = ModelSpec(
    image=8,
    context_frames=2,
    action_dim=3,
    max_frames=20,
    context="sliding",
    burn_in=0,
    obs_keys=("pixels",),
)
EPISODIC = replace(SPEC, context="first_frame", burn_in=1)

Config = Callable[..., DataConfig]


@pytest.fixture
def config() -> Config:
    """The packaged `folder` configuration with other values."""

    def of(*folders: Path, **values: object) -> DataConfig:
        plain = OmegaConf.to_container(OmegaConf.load(packaged_configs() / "data" / "folder.yaml"))
        assert isinstance(plain, dict)
        found = make({**plain, "folders": [str(path) for path in folders], **values}, "data", trusted=False)
        assert isinstance(found, DataConfig)
        return found

    return of


def built(config: DataConfig, spec: ModelSpec = SPEC, seed: int = 1, **how) -> ClipSource:
    return config.build(spec=spec, seeds=Seeds(seed), **{"split": "all", **how})


def test_a_clip_has_the_keys_dtypes_and_shapes_of_replay(make_set, config, tmp_path: Path) -> None:
    source = built(config(make_set("a", [9, 12])), EPISODIC)
    settings = ReplayConfig(
        capacity=100, recent_fraction=0.0, recent_episodes=1, return_prioritised_fraction=0.0, on_damage="stop"
    )
    replay = settings.build(folder=tmp_path / "r", spec=EPISODIC, seeds=Seeds(1))
    replay.append(numbered(0, 9))
    ours = source.clips(3, 5, stream="x", draw=0)
    theirs = replay.clips(3, 5, stream="x", draw=0)
    assert {key: (value.dtype, value.shape) for key, value in ours.items()} == {
        key: (value.dtype, value.shape) for key, value in theirs.items()
    }


@pytest.mark.parametrize("spec", [SPEC, EPISODIC])
def test_every_number_of_a_clip_belongs_to_its_frame(make_set, config, spec: ModelSpec) -> None:
    source = built(config(make_set("a", [9, 12, 30], terminated=True)), spec)
    clip = source.clips(60, 5, stream="x", draw=0)
    number = clip["pixels"][:, :, 0, 0, 0].float()
    frame = clip["pixels"][:, :, 1, 0, 0].float()
    assert (number == number[:, :1]).all() and (frame.diff(dim=1) == 1).all()
    context = clip["context"][:, :, 1, 0, 0].float()
    if spec is SPEC:
        assert torch.equal(context, frame[:, :1] + torch.tensor([[-2.0, -1.0]]))
    else:
        assert (context == 0).all() and (clip["context"][:, :, 0, 0, 0] == number[:, :2]).all()
    into = frame - 1  # the step that led into it
    opens = frame == 0
    assert torch.equal(clip["reward_mask"], ~opens)
    assert torch.equal(clip["action"][..., 1], torch.where(opens, 0, into / 64))
    assert torch.equal(clip["reward"], torch.where(opens, 0, 100 * number + into))
    last = torch.tensor([9.0, 12.0, 30.0])[number.long()]
    assert torch.equal(clip["continue"] == 0, frame == last)
    assert opens.any() == (spec is EPISODIC) and (frame == last).any()


def test_with_a_frame_step_actions_are_strided_and_rewards_summed(make_set, config) -> None:
    source = built(config(make_set("a", [40], card={"rate": 9.0})))
    clip = source.clips(20, 6, stream="x", draw=0)
    frame = clip["pixels"][:, :, 1, 0, 0].float()
    assert (frame.diff(dim=1) == 3).all()
    assert torch.equal(clip["context"][:, :, 1, 0, 0].float(), frame[:, :1] - torch.tensor([[6.0, 3.0]]))
    assert torch.equal(clip["action"][..., 1], (frame - 3) / 64)
    assert torch.equal(clip["reward"], 3 * frame - 6)  # steps frame-3, frame-2, frame-1


def test_a_short_episode_repeats_its_last_frame_and_action_and_knows_no_reward_there(make_set, config) -> None:
    clip = built(config(make_set("a", [4]))).clips(2, 6, stream="x", draw=0)
    assert clip["pixels"][0, :, 1, 0, 0].tolist() == [2, 3, 4, 4, 4, 4]
    assert (clip["action"][0, :, 1] * 64).tolist() == [1, 2, 3, 3, 3, 3]
    assert clip["reward"][0].tolist() == [1, 2, 3, 0, 0, 0]
    assert clip["reward_mask"][0].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("spec", [SPEC, EPISODIC])
def test_selected_frames_know_all_rewards_between_them(make_set, config, spec: ModelSpec) -> None:
    source = built(config(make_set("a", [40]), horizon=16), spec, sampling="select")
    clip = source.clips(40, 6, stream="x", draw=0)
    frame = clip["pixels"][:, :, 1, 0, 0]
    assert (frame.int().diff(dim=1) > 0).all() and (frame.int().diff(dim=1) > 1).any()
    for row in range(40):
        for place in range(1, 6):
            before, now = int(frame[row, place - 1]), int(frame[row, place])
            assert clip["reward"][row, place] == sum(range(before, now))
            assert clip["action"][row, place, 1] == before / 64


def test_a_goal_stands_in_front_of_the_context_and_what_led_to_shuffled_frames_is_unknown(make_set, config) -> None:
    folder = make_set("a", [40])
    goals = built(config(folder), sampling="goal").clips(9, 5, stream="x", draw=0)
    frame = goals["pixels"][:, :, 1, 0, 0]
    assert torch.equal(goals["context"][:, 0, 1, 0, 0], frame[:, -1])
    assert torch.equal(goals["context"][:, 1, 1, 0, 0] + 1, frame[:, 0])
    assert goals["reward_mask"].all()
    shuffled = built(config(folder), sampling="shuffle").clips(30, 5, stream="x", draw=0)
    frame = shuffled["pixels"][:, :, 1, 0, 0].int()
    backwards = frame.diff(dim=1) < 0
    assert backwards.any() and torch.equal(backwards, ~shuffled["reward_mask"][:, 1:])
    assert (shuffled["action"][:, 1:][backwards] == 0).all()
    with pytest.raises(ValueError, match="context=sliding"):
        built(config(folder), EPISODIC, sampling="goal")


def test_draws_are_numbered_and_ranks_share_the_global_batch(make_set, config) -> None:
    data = config(make_set("a", [20, 30, 25]), augment="weak")
    whole = built(data, split="train").clips(6, 5, stream="x", draw=3)
    again = built(data, split="train").clips(6, 5, stream="x", draw=3)
    assert all(torch.equal(whole[key], again[key]) for key in dict(whole.items()))
    parts = [built(data, split="train", rank=rank, world=3).clips(6, 5, stream="x", draw=3) for rank in range(3)]
    joined = torch.cat(parts)
    assert parts[0].batch_size == torch.Size([2])
    assert all(torch.equal(whole[key], joined[key]) for key in dict(whole.items()))
    for other in ({"stream": "y", "draw": 3}, {"stream": "x", "draw": 4}):
        assert not torch.equal(whole["pixels"], built(data, split="train").clips(6, 5, **other)["pixels"])
    assert not torch.equal(
        whole["pixels"], built(data, split="train", seed=2).clips(6, 5, stream="x", draw=3)["pixels"]
    )
    with pytest.raises(ValueError, match="n must be a multiple of 3 rows"):
        built(data, rank=1, world=3).clips(7, 5, stream="x", draw=0)


def test_a_draw_does_not_depend_on_the_size_of_the_cache(make_set, config) -> None:
    folder = make_set("a", [20, 30, 25])
    small, large = (built(config(folder, cache=cache)).clips(12, 5, stream="x", draw=0) for cache in (0, 64))
    assert torch.equal(small["pixels"], large["pixels"])


def test_sets_are_drawn_by_weight_and_episodes_alike_within_a_set(make_set, config) -> None:
    folders = make_set("a", [9] * 3), make_set("b", [9, 80], first=10)
    clip = built(config(*folders, weights=[1.0, 3.0])).clips(800, 3, stream="x", draw=0)
    counts = np.bincount(clip["pixels"][:, 0, 0, 0, 0].numpy(), minlength=12)
    assert abs(counts[:3].sum() - 200) < 4 * np.sqrt(150)
    assert abs(counts[10] - 300) < 60 and abs(counts[11] - 300) < 60
    clip = built(config(*folders)).clips(800, 3, stream="x", draw=0)
    counts = np.bincount(clip["pixels"][:, 0, 0, 0, 0].numpy(), minlength=12)
    assert all(abs(counts[number] - 160) < 50 for number in (0, 1, 2, 10, 11))


def test_the_split_takes_every_nth_file_by_name_and_never_trains_on_it(make_set, config) -> None:
    assert split_of([f"{i:03}" for i in range(250)], "validation", every=100) == [0, 100, 200]
    folder = make_set("a", [9] * 10)
    data = config(folder, validation_every=4)
    held = built(data, split="validation")
    assert [index for _, index in held.episodes] == [0, 4, 8]
    clip = built(data, split="train").clips(300, 3, stream="x", draw=0)
    assert set(clip["pixels"][:, 0, 0, 0, 0].tolist()) == {1, 2, 3, 5, 6, 7, 9}
    with pytest.raises(ValueError, match="no episode is left for split validation"):
        built(config(folder, validation_every=0), split="validation")


def test_few_shot_takes_so_many_training_episodes_without_replacement(make_set, config) -> None:
    data = config(make_set("a", [9] * 30), episodes=5, validation_every=10)
    chosen = [[index for _, index in built(data, split="train", seed=seed).episodes] for seed in range(4)]
    assert all(len(set(few)) == 5 and not set(few) & {0, 10, 20} for few in chosen)
    assert chosen[0] == [index for _, index in built(data, split="train", seed=0).episodes]
    assert len({tuple(few) for few in chosen}) == 4
    assert len(built(data, split="validation").episodes) == 3
    with pytest.raises(ValueError, match="episodes must be <= 27"):
        built(replace(data, episodes=28), split="train")


def test_held_out_tasks_are_left_out(make_set, config, tmp_path: Path) -> None:
    make_set("one", [9], card={"tasks": ("door-close-v3",)})
    make_set("two", [9, 9], first=5, card={"tasks": ("reach-v3",)})
    source = built(config(tmp_path, holdout=["door-close-v3"]))
    assert [part.data.card.tasks for part in source.parts] == [("reach-v3",)]
    with pytest.raises(ValueError, match="holdout must be tasks of these data sets: door-close-v3, reach-v3"):
        built(config(tmp_path, holdout=["door-open-v3"]))
    with pytest.raises(ValueError, match="leaves no data set"):
        built(config(tmp_path, holdout=["door-close-v3", "reach-v3"]))
    with pytest.raises(ValueError, match="twice"):
        built(config(tmp_path, tmp_path / "one"))


def test_frames_of_any_size_become_those_of_the_model(make_set, config) -> None:
    clip = built(config(make_set("a", [9], side=20))).clips(2, 3, stream="x", draw=0)
    assert clip["pixels"].shape == (2, 3, 3, 8, 8) and clip["context"].shape == (2, 2, 3, 8, 8)
    assert (clip["pixels"][..., 2, :, :] == 7).all()


def test_one_draw_of_crop_and_colour_serves_a_whole_clip_in_training_only(make_set, config) -> None:
    data = config(make_set("a", [9] * 3), augment="strong", validation_every=2)
    train = built(data, split="train").clips(8, 3, stream="x", draw=0)
    blue = torch.cat([train["context"], train["pixels"]], dim=1)[:, :, 2, 4, 4].int()
    assert len(set(blue[:, 0].tolist())) > 1  # another look for each clip
    assert (blue - blue[:, :1]).abs().max() <= 6  # one for its frames (their own green differs by up to 5)
    held = built(data, split="validation").clips(8, 3, stream="x", draw=0)
    assert (held["pixels"][:, :, 2] == 7).all()


def test_the_opening_of_an_episode_is_its_first_frames(make_set, config) -> None:
    folder = make_set("a", [9, 12, 30])
    clip = built(config(folder)).opening(1, 2, 4)
    assert clip["context"][:, :, 1, 0, 0].tolist() == [[0, 1]] * 2
    assert clip["pixels"][:, :, 1, 0, 0].tolist() == [[2, 3, 4, 5]] * 2
    assert clip["pixels"][:, 0, 0, 0, 0].tolist() == [1, 2]
    episodic = built(config(folder), EPISODIC).opening(0, 3, 4)
    assert episodic["pixels"][:, :, 1, 0, 0].tolist() == [[0, 1, 2, 3]] * 3 and not episodic["reward_mask"][:, 0].any()
    with pytest.raises(ValueError, match=r"episodes must be within 0\.\.2"):
        built(config(folder)).opening(2, 2, 4)


def test_a_video_serves_a_model_without_actions_and_no_other(make_set, config) -> None:
    data = config(make_set("a", [9, 9], actions=0, rewarded=False))
    clip = built(data, replace(SPEC, action_dim=0)).clips(2, 3, stream="x", draw=0)
    assert clip["action"].shape == (2, 3, 0) and not clip["reward_mask"].any() and not clip["reward"].any()
    with pytest.raises(ValueError, match="a has 0 actions, the model wants 3"):
        built(data)


def test_what_a_model_reads_comes_along_or_is_refused(make_set, config) -> None:
    data = config(make_set("a", [9]))
    clip = built(data, replace(SPEC, obs_keys=("pixels", "proprio"))).clips(3, 4, stream="x", draw=0)
    assert torch.equal(clip["proprio"][..., 1], clip["pixels"][:, :, 1, 0, 0].float())
    with pytest.raises(ValueError, match="a has no state, which the model reads"):
        built(data, replace(SPEC, obs_keys=("pixels", "state")))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"folders": []}, "folders must name at least one data set"),
        ({"folders": 3}, "folders must be a list"),
        ({"weights": [1.0, 2.0]}, "weights must be one number > 0 for each of the 1 folders"),
        ({"missing": "ignore"}, "missing must be one of stop, skip"),
        ({"sampling": "dense"}, "sampling must be one of plain, select, shuffle, goal"),
        ({"augment": "mild"}, "augment must be one of none, weak, strong"),
        ({"validation_every": -1}, "validation_every must be >= 0"),
        ({"stepsize": 0.0}, "stepsize must be > 0"),
    ],
)
def test_bad_values_are_refused_by_name(config, tmp_path: Path, values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **values)


def mixture(root: Path, **values: object) -> DataConfig:
    plain = OmegaConf.to_container(OmegaConf.load(packaged_configs() / "data" / "oxe.yaml"))
    assert isinstance(plain, dict)
    found = make({**plain, "root": str(root), **values}, "data", trusted=False)
    assert isinstance(found, DataConfig)
    return found


def test_the_mixture_of_the_paper_has_its_sets_weights_and_steps(tmp_path: Path) -> None:
    parts = mixture(tmp_path).parts
    assert len(parts) == 38
    assert sum(part.weight for part in parts.values()) == pytest.approx(1, abs=1e-5)
    steps = {name: frame_step(part.rate, 1) for name, part in parts.items()}
    assert (
        steps["kuka"],
        steps["bridge"],
        steps["viola"],
        steps["toto"],
        steps["asu_table_top_converted_externally_to_rlds"],
    ) == (3, 2, 7, 10, 4)
    assert parts["language_table"].image_key == "rgb" and parts["uiuc_d3field3"].image_key == "image_3"


def test_missing_parts_are_named_or_skipped_aloud(make_set, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_set("kuka", [30], card={"rate": 1.0}, actions=0, rewarded=False)
    make_set("bridge", [30], first=50, actions=0, rewarded=False)
    (tmp_path / "bc_z").mkdir()
    (tmp_path / "bc_z" / "train_eps_00000000.npz").touch()
    states = {place.name: place.state for place in survey(mixture(tmp_path).parts, tmp_path)}
    assert states["kuka"] == "found" and states["bc_z"].startswith("published npz") and states["toto"] == "missing"
    video = replace(SPEC, action_dim=0)
    with pytest.raises(ValueError, match=r"36 of 38 data sets are not in root=.*toto \(missing\).*missing=skip .* 25%"):
        built(mixture(tmp_path), video)
    with caplog.at_level("WARNING", logger="mbrl"):
        source = built(mixture(tmp_path, missing="skip"), video)
    assert "36 of 38" in caplog.text
    assert [(part.data.card.name, round(part.weight, 3), part.step) for part in source.parts] == [
        ("kuka", 0.4, 3),
        ("bridge", 0.6, 2),
    ]
    clip = source.clips(4, 14, stream="x", draw=0)
    assert clip["pixels"].shape == (4, 14, 3, 8, 8)


def test_a_part_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="weight must be >= 0"):
        PartConfig(weight=-1.0, rate=1.0, image_key="image", augment=True)
    with pytest.raises(ValueError, match="rate must be > 0"):
        PartConfig(weight=1.0, rate=0.0, image_key="image", augment=True)


def test_draws_ahead_are_the_draws_in_any_order(make_set, config) -> None:
    source, asked = built(config(make_set("a", [9, 12])), EPISODIC), []

    class Counting:
        episodes = source.episodes

        def clips(self, n: int, length: int, *, stream: str, draw: int):
            asked.append(draw)
            if draw == 9:
                raise ValueError("draw 9 is damaged")
            return source.clips(n, length, stream=stream, draw=draw)

    prefetch = Prefetcher(Counting(), 2)  # type: ignore[arg-type]
    for draw in (0, 1, 2, 7, 3, 4):
        ours, theirs = (one.clips(3, 5, stream="x", draw=draw) for one in (prefetch, source))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs.keys())  # noqa: SIM118
    assert asked.count(1) == asked.count(2) == 1
    prefetch.clips(3, 5, stream="x", draw=8)  # what is wrong with 9 is not said before its turn
    with pytest.raises(ValueError, match="draw 9 is damaged"):
        prefetch.clips(3, 5, stream="x", draw=9)
    prefetch._threads.shutdown(wait=True)
    assert {10, 11} <= set(asked), "nobody has asked for them yet"
