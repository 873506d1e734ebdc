"""One rule of cutting: what acts in the world remembers the very clips that replay cuts from its episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from agents.memory import LatentFilter
from mbrl.replay.cut import clips_of, led_into
from worldmodel.spec import ContextMode, ModelSpec


@dataclass
class Named:
    """All of a dream that a filter asks for before it encodes."""

    spec: ModelSpec


@pytest.mark.parametrize("mode", ["sliding", "first_frame"])
@pytest.mark.parametrize("burn_in", [1, 3])
def test_an_agent_remembers_the_clips_that_replay_cuts(make_episode: Any, mode: ContextMode, burn_in: int) -> None:
    spec = ModelSpec(
        image=5,
        context_frames=2,
        action_dim=4,
        max_frames=9,
        context=mode,
        burn_in=burn_in,
        obs_keys=("pixels", "proprio"),
    )
    episode, memory = make_episode(3, 8), None
    seeing = LatentFilter(Named(spec))  # type: ignore[arg-type]
    lead = spec.context_frames if mode == "sliding" else 0
    for frame in range(9):
        now = {key: torch.from_numpy(getattr(episode, key)[frame : frame + 1].copy()) for key in spec.obs_keys}
        memory = seeing.see(TensorDict({**now, "is_init": torch.tensor([[frame == 0]])}, batch_size=[1]), memory)
        first = max(frame + 1 - burn_in, 0)
        if first >= lead:
            cut = clips_of(episode, spec, np.array([first]), length=frame + 1 - first)
            remembered = seeing.clip(memory)
            assert set(remembered.keys()) == set(cut.keys()) - {"reward", "reward_mask", "continue"}
            for key, value in remembered.items():
                assert torch.equal(value, cut[key]), (frame, key)
        if frame < 8:
            memory["action"] = torch.from_numpy(episode.action[frame : frame + 1].copy())


def test_one_episode_for_all_rows_is_as_good_as_one_for_each(make_episode: Any) -> None:
    episode, generator = make_episode(1, 6, terminated=1), np.random.default_rng(0)
    before, frame = generator.integers(-1, 7, (9, 4)), generator.integers(0, 7, (9, 4))
    together, apart = (led_into(rows, before, frame, action_dim=4) for rows in (episode, [episode] * 9))
    assert all(np.array_equal(together[key], apart[key]) for key in together)


def test_what_led_where_in_all_cases(make_episode: Any) -> None:
    episode = make_episode(1, 4, terminated=1)  # decision i: action (1, i) / 64, reward 100 + i
    before, frame = np.array([[-1, 0, 1, 1, 3, 4, 3, 0]]), np.array([[0, 1, 3, 4, 4, 4, 2, 4]])
    led = led_into(episode, before, frame, action_dim=4)
    assert (led["action"][0, :, 1] * 64).tolist() == [0, 0, 1, 1, 3, 3, 0, 0]
    assert (led["action"][0, :, 0] * 64).tolist() == [0, 1, 1, 1, 1, 1, 0, 1]
    assert led["reward"].tolist() == [[0, 100, 203, 306, 103, 0, 0, 406]]
    assert led["reward_mask"].tolist() == [[False, True, True, True, True, False, False, True]]
    assert led["continue"].tolist() == [[1, 1, 1, 0, 0, 0, 1, 0]]
