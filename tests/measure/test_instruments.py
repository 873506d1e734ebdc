"""What is measured while a run learns: the numbers mean what they are called, and measuring changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.api import ModelBasedAgent
from mbrl.cli.compose import compose
from mbrl.cli.train import as_plain
from mbrl.io.checkpoint import read_newest
from mbrl.measure.instruments import COUNTED, Instruments, compared, gated, r_squared
from mbrl.measure.probe import probe
from mbrl.replay.clips import ClipReplay
from mbrl.replay.cut import clips_of, longest_horizon, windows
from mbrl.replay.episode import Episode
from mbrl.run.assemble import Configs, assemble
from mbrl.run.run import Run
from mbrl.run.train import train
from mbrl.run.validate import check_recorded
from mbrl.rundir.folder import run_info
from mbrl.rundir.stop import Stop
from tests.children import laid
from tests.run.test_resume import leaves, rows
from worldmodel.spec import ModelSpec
from worldmodel.training.updater import Updater

IMAGE = 8


def assembled(folder: Path, *words: str) -> Run:
    plain = as_plain(compose("train", laid("experiment=debug", f"run_dir={folder}", *words)))
    return assemble(Configs.of(plain, trusted=True), folder, info=run_info(plain, argv=[]), stop=Stop())


def played(run: Run) -> Episode:
    """The first episode that ends from now on."""
    run.collector.step(run.agent)
    while not run.collector.finished:
        run.collector.step(run.agent)
    return run.collector.finished[0]


def numbered(decisions: int = 11, *, terminated: bool = False) -> Episode:
    """An episode in which frame k shows k, and decision k is k + 1 and earns 10 (k + 1)."""
    steps = np.arange(1, decisions + 1, dtype=np.float32)
    frames = np.arange(decisions + 1)
    last = np.arange(decisions) == decisions - 1
    return Episode(
        pixels=np.broadcast_to(frames[:, None, None, None], (decisions + 1, 3, IMAGE, IMAGE)).astype(np.uint8),
        proprio=frames[:, None].astype(np.float32),
        state=frames[:, None].astype(np.float32),
        snapshot=np.zeros((decisions + 1, 0)),
        action=np.stack([steps, -steps], 1),
        reward=10 * steps,
        terminated=last & terminated,
        truncated=last & (not terminated),
        success=np.zeros(decisions, bool),
        env=0,
        number=5,
    )


def spec(**changes: Any) -> ModelSpec:
    given: dict[str, Any] = {"image": IMAGE, "context_frames": 2, "action_dim": 2, "max_frames": 5}
    return ModelSpec(**{**given, "context": "first_frame", "burn_in": 2, "obs_keys": ("pixels", "proprio"), **changes})


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_of_an_episode_anchored_model_begins_with_its_first_frame_and_knows_what_led_where() -> None:
    found = windows(numbered(), spec(), horizon=3, stride=4)
    assert found.clip["context"][:, :, 0, 0, 0].tolist() == [[0, 0], [0, 0]]
    assert found.clip["pixels"][:, :, 0, 0, 0].tolist() == [[0, 1], [4, 5]]
    assert found.clip["proprio"][..., 0].tolist() == [[0, 1], [4, 5]]
    assert found.clip["action"][..., 0].tolist() == [[0, 1], [4, 5]], "nothing led into the frame that opens"
    assert found.clip["reward_mask"].tolist() == [[False, True], [True, True]]
    assert found.newest.tolist() == [1, 5]
    assert found.action[:, :, 1].tolist() == [[-2, -3, -4], [-6, -7, -8]]
    assert found.reward.tolist() == [[20, 30, 40], [60, 70, 80]]
    assert found.truth[:, :, 0, 0, 0].tolist() == [[2, 3, 4], [6, 7, 8]]


def test_a_window_of_a_segment_anchored_model_has_the_frames_before_it_as_context() -> None:
    found = windows(numbered(), spec(context="sliding", burn_in=0), horizon=3, stride=4)
    assert found.clip["context"][:, :, 0, 0, 0].tolist() == [[0, 1], [4, 5]]
    assert found.clip["pixels"].shape == (2, 0, 3, IMAGE, IMAGE) and found.clip["action"].shape == (2, 0, 2)
    assert found.newest.tolist() == [1, 5] and found.reward[:, 0].tolist() == [20, 60]


def test_the_last_window_ends_with_the_episode_and_none_goes_beyond() -> None:
    found = windows(numbered(), spec(), horizon=3, stride=1)
    assert found.reward[-1].tolist() == [90, 100, 110] and len(found.reward) == 8
    with pytest.raises(ValueError, match="12 frames has no window of 2 real and 11"):
        windows(numbered(), spec(max_frames=20), horizon=11, stride=1)
    assert longest_horizon(spec(max_frames=20), numbered()) == 10
    assert longest_horizon(spec(), numbered()) == 3
    assert longest_horizon(spec(context="sliding", burn_in=0), numbered(1)) == 0


def test_codes_stand_in_a_clip_where_pixels_would() -> None:
    codes = (torch.arange(7), torch.arange(12)[:, None].expand(-1, 4))
    clip = clips_of(numbered(), spec(), np.array([0, 3, 8]), length=4, codes=codes)
    assert clip["codes"][:, :, 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [8, 9, 10, 11]]
    assert clip["context_codes"].shape == (3, 7) and "pixels" not in clip.keys()  # noqa: SIM118
    assert clip["continue"].tolist() == [[1] * 4] * 3
    ending = clips_of(numbered(terminated=True), spec(), np.array([8]), length=4, codes=codes)
    assert ending["continue"].tolist() == [[1, 1, 1, 0]]


# -- held-out episodes -------------------------------------------------------------------------------------------------


def test_r_squared_is_one_for_a_perfect_prediction_and_nothing_for_the_mean() -> None:
    reward = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    variance = float(reward.var(unbiased=False))
    assert r_squared(reward, reward, variance) == 1.0
    assert r_squared(reward, reward.mean().expand_as(reward), variance) == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(r_squared(reward, reward, 0.0))


def test_the_reward_is_compared_after_one_five_and_ten_frames_or_the_last() -> None:
    assert compared(spec(max_frames=12)) == compared(spec(max_frames=30)) == (1, 5, 10)
    assert compared(spec(max_frames=9)) == (1, 5, 7) and compared(spec(max_frames=5)) == (1, 3)
    assert gated(spec(max_frames=9)) == "heldout/reward_r2_5" and gated(spec(max_frames=5)) == "heldout/reward_r2_3"


class Repeating:
    """An agent whose dreams repeat what was really done; it expects 7 everywhere."""

    gamma = 0.5

    def __init__(self, action_WHA: Tensor) -> None:
        self.actions = list(action_WHA.unbind(1))

    def dream_policy(self, generator: torch.Generator) -> Callable[..., Any]:
        return lambda td, memory: (self.actions.pop(0), memory)

    def value(self, latent_BD: Tensor) -> Tensor:
        return torch.full((len(latent_BD),), 7.0)


def test_in_the_simulator_itself_every_prediction_is_right(tmp_path: Path) -> None:
    nothing = [f"schedule.{part}.{key}=0" for part in ("tokenizer", "dynamics") for key in ("initial", "updates")]
    run = assembled(tmp_path / "run", "worldmodel=oracle", *nothing)
    episode, tools, model = played(run), run.instruments, run.model.spec
    real = windows(episode, model, horizon=10, stride=10)
    tools.agent = Repeating(real.action)  # type: ignore[assignment]
    assert isinstance(tools.agent, ModelBasedAgent)
    found = tools.heldout(episode, own=True)
    assert [found[f"heldout/reward_r2_{frame}"] for frame in (1, 5, 10)] == pytest.approx([1.0] * 3, abs=1e-6)
    assert found["heldout/return_imagined"] == pytest.approx(found["heldout/return_real"], rel=1e-5)
    weights = 0.5 ** np.arange(10)
    assert found["heldout/return_real"] == pytest.approx(float((real.reward.numpy() * weights).sum(1).mean()), rel=1e-5)
    to_go = [sum(r * 0.5**i for i, r in enumerate(episode.reward[n:])) for n in real.newest]
    assert found["heldout/value"] == 7.0
    assert found["heldout/return_to_go"] == pytest.approx(np.mean(to_go), rel=1e-5)
    assert found["heldout/reward_rmse_10"] == pytest.approx(0, abs=1e-6)
    of_rewards = {f"heldout/reward_{kind}_{frame}" for kind in ("r2", "rmse") for frame in (1, 5, 10)}
    assert set(tools.heldout(episode, own=False)) == of_rewards
    assert tools.codes_alive(0) is None and tools.probed() == {}
    run.logger.close()


@pytest.mark.parametrize("context", ["first_frame", "sliding"])
def test_a_video_model_is_measured_the_same_way_twice_and_touches_no_global_generator(
    tmp_path: Path, context: str
) -> None:
    segment = ("worldmodel.context=sliding", "worldmodel.burn_in=0") if context == "sliding" else ()
    run = assembled(tmp_path / "run", *segment)
    episode, tools = played(run), run.instruments
    before = torch.get_rng_state()
    found = tools.heldout(episode, own=True)
    assert tools.heldout(episode, own=True) == found and torch.equal(torch.get_rng_state(), before)
    last = 8 if context == "first_frame" else 10
    names = {f"reward_{kind}_{frame}" for kind in ("r2", "rmse") for frame in (1, 5, last)}
    names |= {"codes", "reward", "return_imagined", "return_real"}
    assert set(found) == {f"heldout/{name}" for name in names}, "25 decisions at gamma 0.96 are too few for the value"
    assert found["heldout/codes"] > 0
    while len(run.replay.store.stored) < 4:
        played(run)
    assert set(tools.probed()) == {f"probe/{part}_{kind}" for part in ("dot", "goal") for kind in ("r2", "rmse")}
    assert 1 <= tools.codes_alive(0) <= 256
    run.logger.close()


def test_the_robot_in_a_dream_is_compared_with_the_real_one(tmp_path: Path) -> None:
    run = assembled(tmp_path / "run", "worldmodel.proprio=true")
    episode, spec = played(run), run.model.spec
    found = run.instruments.heldout(episode, own=True)
    real = windows(episode, spec, horizon=spec.max_frames - spec.burn_in, stride=spec.max_frames - spec.burn_in)
    now_WQ, before_WQ = (torch.from_numpy(episode.proprio[real.newest - back]) for back in (0, 1))
    for frame in (1, 5, 8):  # nothing was learned yet: a robot keeps moving as it moved
        error_WQ = now_WQ + frame * (now_WQ - before_WQ) - real.proprio[:, frame - 1]
        assert found[f"heldout/proprio_rmse_{frame}"] == pytest.approx(float(error_WQ.square().mean().sqrt()), rel=1e-4)
    run.logger.close()


def test_a_replay_of_a_task_that_told_other_numbers_is_refused(tmp_path: Path) -> None:
    run = assembled(tmp_path / "run")
    played(run)
    widths = run.collector.env.widths
    check_recorded(run.replay.store.stored, widths)
    wanted = rf"holds {widths['state']} numbers of state, the task now tells {widths['state'] + 3}: continue"
    with pytest.raises(ValueError, match=wanted):
        check_recorded(run.replay.store.stored, {**widths, "state": widths["state"] + 3})
    run.logger.close()


def test_after_a_move_of_the_tokenizer_the_newest_episodes_alone_are_encoded_to_count_their_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = assembled(tmp_path / "run")
    while len(run.replay.store.stored) < COUNTED + 3:
        played(run)
    encoded: list[int] = []
    real = run.replay.episode_codes
    monkeypatch.setattr(run.replay, "episode_codes", lambda index: encoded.append(index) or real(index))
    run.model.updated("tokenizer")
    counted = run.instruments.codes_alive(0)
    stored = len(run.replay.store.stored)
    assert encoded == list(range(stored - COUNTED, stored))
    assert counted == len(torch.cat([real(index).frames.flatten() for index in encoded]).unique())
    run.logger.close()


def test_codes_alive_are_those_of_the_tokenizer_as_it_is(tmp_path: Path) -> None:
    run = assembled(tmp_path / "run")
    played(run)
    seen = set()
    for stored in run.replay.store.stored:
        pixels = torch.from_numpy(stored.episode.pixels.copy())[None]
        context = pixels[:, :1].expand(-1, run.model.spec.context_frames, -1, -1, -1)
        seen |= set(run.model.tokenize(context, pixels)[1].flatten().tolist())
    assert len(run.replay.store.stored) == 2 and run.instruments.codes_alive(0) == len(seen)
    run.logger.close()


# -- in the loop -------------------------------------------------------------------------------------------------------


def test_an_episode_is_measured_before_it_is_fitted_and_only_once_there_was_a_first_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    append = ClipReplay.append

    def watched_append(self: ClipReplay, episode: Episode) -> str:
        events.append(("ends", episode.number))
        return append(self, episode)

    def watched_update(self: Updater, part: str, number: int) -> dict[str, float]:
        events.append(("fit", len(run.replay.store.stored)))
        return {}

    def watched_heldout(self: Instruments, episode: Episode, *, own: bool) -> dict[str, float]:
        events.append(("measured" if own else "measured, prefiller's", episode.number))
        return {}

    monkeypatch.setattr(ClipReplay, "append", watched_append)
    monkeypatch.setattr(Updater, "update", watched_update)
    monkeypatch.setattr(Instruments, "heldout", watched_heldout)
    run = assembled(tmp_path / "run", "schedule.total=200", "schedule.evaluate.every=0", "schedule.learn.initial=0")
    with run.logger:
        train(run)
    fits = [event for event in events if event[0] == "fit"]
    measured = [number for name, number in events if name == "measured"]
    assert measured == [4, 5, 6, 7] and ("measured, prefiller's", 3) not in events
    for number in measured:
        between = events[events.index(("ends", number)) : events.index(("measured", number))]
        assert not [event for event in between if event[0] == "fit"]
    assert fits[0] == ("fit", 4) and fits[-1] == ("fit", 8)


def test_measuring_fills_its_columns_and_changes_nothing_of_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("schedule.total=200", "schedule.tokenizer.initial=2", "schedule.dynamics.initial=2", "agent.gamma=0.8")
    for name in ("measured", "unmeasured"):
        if name == "unmeasured":
            monkeypatch.setattr(Instruments, "heldout", lambda self, episode, *, own: {})
            monkeypatch.setattr(Instruments, "codes_alive", lambda self, draw: None)
            monkeypatch.setattr(Instruments, "probed", lambda self: {})
        run = assembled(tmp_path / name, *words)
        with run.logger:
            train(run)
    parts = ("model", "updater", "agent", "collector", "replay")
    one, other = (
        leaves({part: read_newest(tmp_path / name / "checkpoints").states[part] for part in parts})
        for name in ("measured", "unmeasured")
    )
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key], key
    instruments = ("heldout/", "probe/", "replay/")
    seen, unseen = rows(tmp_path / "measured" / "metrics.csv"), rows(tmp_path / "unmeasured" / "metrics.csv")
    filled = {key for row in seen for key, cell in row.items() if cell}
    heldout = ("reward_r2_1", "reward_r2_5", "codes", "return_imagined", "return_real", "value", "return_to_go")
    assert {*(f"heldout/{name}" for name in heldout), "replay/codes_alive", "probe/dot_r2", "probe/goal_rmse"} <= filled
    assert not any(key.startswith(instruments) for key in unseen[-1]), "the other was not measured"
    assert [{key: cell for key, cell in row.items() if not key.startswith(instruments)} for row in seen] == unseen


# -- the probe ---------------------------------------------------------------------------------------------------------


def episodes(count: int = 12, frames: int = 40) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Features of frames [N, 7], of their episodes' contexts [N, 5], whose frame each is [N], and more numbers."""
    generator = torch.Generator().manual_seed(3)
    frame_NE = torch.randn(count * frames, 7, generator=generator)
    context_NC = torch.randn(count, 5, generator=generator).repeat_interleave(frames, 0)
    return frame_NE, context_NC, torch.arange(count).repeat_interleave(frames), generator


def test_the_probe_finds_a_linear_quantity_in_the_features_in_its_own_unit() -> None:
    frame_NE, context_NC, episode_N, generator = episodes()
    target_NP = 0.1 * frame_NE @ torch.randn(7, 3, generator=generator) + 5
    found = probe(frame_NE, context_NC, target_NP, episode_N)
    assert found.r2 is not None and found.r2 > 0.99 and found.rmse < 0.05


def test_the_probe_finds_what_only_the_context_tells_where_there_are_episodes_enough() -> None:
    frame_NE, context_NC, episode_N, generator = episodes(count=60, frames=10)
    found = probe(frame_NE, context_NC, context_NC @ torch.randn(5, 2, generator=generator), episode_N)
    assert found.r2 is not None and found.r2 > 0.9


def test_the_probe_finds_nothing_in_noise_and_learns_no_episode_by_heart() -> None:
    frame_NE, context_NC, episode_N, generator = episodes()
    noise_NP = torch.randn(len(frame_NE), 3, generator=generator)
    found = probe(frame_NE, context_NC, noise_NP, episode_N)
    assert found.r2 is not None and abs(found.r2) < 0.1
    assert found.rmse == pytest.approx(3**0.5, rel=0.1), "distance in three dimensions"


def test_a_quantity_that_never_moves_has_no_r_squared() -> None:
    frame_NE, context_NC, episode_N, _ = episodes()
    assert probe(frame_NE, context_NC, torch.full((len(frame_NE), 2), 3.0), episode_N).r2 is None


def test_too_few_episodes_are_refused() -> None:
    frame_NE, context_NC, episode_N, _ = episodes(count=3)
    with pytest.raises(ValueError, match="at least 4 episodes"):
        probe(frame_NE, context_NC, frame_NE[:, :3], episode_N)


def test_demonstrations_do_not_make_an_error_look_small(tmp_path: Path) -> None:
    run = assembled(tmp_path / "run")
    played(run), played(run)  # two rows: four episodes
    rewards = [stored.episode.reward for stored in run.replay.store.stored]
    assert len(rewards) == 4
    everything = run.instruments._reward_variance()
    run.instruments.demos = 2
    assert run.instruments._reward_variance() == pytest.approx(float(np.concatenate(rewards[2:]).var())) != everything
    run.logger.close()
