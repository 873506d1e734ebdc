"""The published protocol on models whose futures are known, and the models that it is for behind the same door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

import worldmodel
from tests.worldmodel.test_ivideogpt import build
from worldmodel.evaluation.lpips import LPIPS
from worldmodel.evaluation.metrics import mse, psnr
from worldmodel.evaluation.predict import Judge, actions_shown, evaluate, goal_clips
from worldmodel.evaluation.predictors import Dreaming, Generating, Predictor
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import ModelSpec

C, T, A, SIDE, S = 5, 4, 2, 16, 3
SPEC = ModelSpec(image=SIDE, context_frames=2, action_dim=A, max_frames=T, context="sliding", burn_in=1)
SET_A = Path(__file__).resolve().parents[1] / "golden" / "data" / "set_a_ctx2"


class Gray(Predictor):
    """Codes are the mean grays of frames; the future is last gray + 10 x the action's first number + noise."""

    def __init__(self, spec: ModelSpec = SPEC, noise: int = 20) -> None:
        self.spec, self.noise = spec, noise
        self.asked: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def read(self, clip: TensorDict) -> TensorDict:
        grays = {"context_codes": clip["context"], "codes": clip["pixels"]}
        means = {name: frames.float().mean((2, 3, 4)).round() for name, frames in grays.items()}
        return TensorDict({**means, "action": clip["action"]}, batch_size=clip.batch_size)

    def dream(self, read: TensorDict, action_BTA: Tensor, seeds: Seeds | None, draw: int = 0) -> Tensor:
        self.asked.append(action_BTA)
        shown = self.spec.burn_in
        drawn = torch.zeros(len(read), action_BTA.shape[1] - shown)
        if seeds is not None:
            drawn = (torch.rand(drawn.shape, generator=seeds.torch("predict", draw)) - 0.5) * self.noise
        steps = 10 * action_BTA[:, shown:, 0] + drawn
        last = read["codes"][:, shown - 1 : shown] if shown else read["context_codes"][:, -1:]
        return torch.cat([read["codes"][:, :shown], last + steps.cumsum(1)], 1)

    def frames(self, read: TensorDict, codes_BTK: Tensor) -> Tensor:
        grays = torch.cat([read["context_codes"][:, : self._context], codes_BTK], 1)
        return (grays / 255).clamp(0, 1)[:, :, None, None, None].expand(-1, -1, 3, SIDE, SIDE)


def clips(frames: int = T, rows: int = C) -> TensorDict:
    """Flat gray frames that obey the actions exactly."""
    generator = torch.Generator().manual_seed(4)
    action = torch.rand(rows, frames, A, generator=generator) * 2 - 1
    start = 100 + 50 * torch.rand(rows, 1, generator=generator)
    grays = torch.cat([start, start, start + (10 * action[:, :, 0]).cumsum(1)], 1).round().to(torch.uint8)
    whole = grays[:, :, None, None, None].expand(-1, -1, 3, SIDE, SIDE).contiguous()
    return TensorDict({"context": whole[:, :2], "pixels": whole[:, 2:], "action": action}, batch_size=[rows])


def judged(predictor: Predictor, *, samples: int = S, rows: int = 7, seed: int = 1, **options: Any) -> Any:
    methods = options.pop("methods", ("model", "zero", "shuffled", "copy", "reconstruction"))
    metrics = options.pop("judge", Judge(("psnr", "mse")))
    return evaluate(
        predictor, options.pop("clips", clips()), metrics, methods=methods, samples=samples, rows=rows,
        seeds=Seeds(seed), **options,
    )  # fmt: skip


def test_the_best_sample_is_taken_for_each_metric_and_clip_and_then_clips_are_averaged() -> None:
    predictor, data = Gray(), clips()
    found = judged(predictor, clips=data).scores["model"]
    truth, read = predictor.truth(data), predictor.read(data)
    assert found.frames["psnr"].shape == (C, S, 2 + T)
    for first in range(0, C, 7 // S):  # groups of two clips, three futures of each drawn at once
        group = read[first : first + 2]
        many = group.apply(lambda value: value.repeat_interleave(S, 0), batch_size=[len(group) * S])
        codes = predictor.dream(many, many["action"], Seeds(1), first * S)
        frames = predictor.frames(many, codes).unflatten(0, (len(group), S))
        for place in range(len(group)):
            by_hand = [psnr(truth[first + place], frames[place, s]) for s in range(S)]
            assert found.best("psnr", "all")[first + place] == pytest.approx(max(float(v.mean()) for v in by_hand))
            assert found.best("psnr", "predicted")[first + place] == pytest.approx(
                max(float(v[3:].mean()) for v in by_hand)
            )
            worst = [mse(truth[first + place], frames[place, s])[3:].mean() for s in range(S)]
            assert found.best("mse", "predicted")[first + place] == pytest.approx(float(min(worst)))
    numbers: Any = found.numbers()
    assert numbers["psnr"]["all"]["best"] == pytest.approx(float(found.best("psnr", "all").mean()))
    assert numbers["psnr"]["predicted"]["mean"] < numbers["psnr"]["predicted"]["best"]
    assert len(numbers["mse"]["predicted"]["best_per_clip"]) == C
    assert len(numbers["mse"]["by_frame"]) == 2 + T


def test_a_model_that_obeys_actions_beats_all_that_know_less_and_not_the_true_codes() -> None:
    scores = judged(Gray(noise=2)).scores
    found = {method: float(value.best("mse", "predicted").mean()) for method, value in scores.items()}
    assert found["reconstruction"] <= found["model"] < found["zero"]
    assert found["model"] < found["shuffled"]
    assert found["model"] < found["copy"]
    assert scores["copy"].frames["mse"].shape == (C, 1, 2 + T)


def test_copy_is_the_last_frame_shown_and_counts_as_seen_through_the_tokenizer_before_it() -> None:
    data = clips()
    found = judged(Gray(), clips=data, methods=("copy",)).scores["copy"].frames["mse"][:, 0]
    truth = Gray().truth(data)
    for frame in range(3, 2 + T):
        torch.testing.assert_close(found[:, frame], mse(truth[:, frame], truth[:, 2]))
    assert (found[:, :3] < 1e-5).all()


def test_shuffled_actions_are_those_of_another_clip_for_everybody_and_only_behind_what_is_shown() -> None:
    action = clips()["action"]
    shuffled = actions_shown(Gray(), action, "shuffled", Seeds(3))
    assert torch.equal(shuffled[:, :1], action[:, :1])
    owners = [[bool(torch.equal(row[1:], other[1:])) for other in action].index(True) for row in shuffled]
    assert sorted(owners) == list(range(C))
    assert all(owner != place for place, owner in enumerate(owners))
    zero = actions_shown(Gray(), action, "zero", Seeds(3))
    assert torch.equal(zero[:, :1], action[:, :1])
    assert not zero[:, 1:].any()


def test_results_repeat_and_change_with_the_seed() -> None:
    one, same, other = (judged(Gray(), seed=seed).scores["model"].frames["mse"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_more_samples_than_rows_are_drawn_in_turns() -> None:
    predictor = Gray()
    found = judged(predictor, samples=8, rows=3, methods=("model",)).scores["model"].frames["mse"]
    assert found.shape == (C, 8, 2 + T)
    assert {len(action) for action in predictor.asked} == {3, 2}
    assert all(len(row.mean(1).unique()) == 8 for row in found)


def test_without_sampling_one_future_is_all_there_is() -> None:
    scores = judged(Gray(), samples=1, sampled=False).scores
    assert float(scores["model"].best("mse", "predicted").max()) < 1e-4
    with pytest.raises(ValueError, match="1 where the most likely codes"):
        judged(Gray(), samples=2, sampled=False)


def test_videos_are_of_the_first_clips_and_samples_as_they_came() -> None:
    videos = judged(Gray(), videos=4).videos
    truth = Gray().truth(clips())
    assert len(videos) == 4
    for place, video in enumerate(videos):
        assert torch.equal(video.truth, (truth[place] * 255).round().to(torch.uint8))
        assert video.methods["model"].shape == (2, 2 + T, 3, SIDE, SIDE)
        assert video.methods["copy"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"clips": clips(frames=5)}, r"horizon must be in 1\.\.3"),
        ({"clips": clips(frames=1)}, "horizon must be in"),
        ({"clips": clips(rows=1)}, "at least 2 clips"),
        ({"methods": ("model", "guess")}, "methods must be some of"),
        ({"samples": 0}, "n must be >= 1"),
    ],
)
def test_what_cannot_be_predicted_is_refused(options: dict[str, Any], say: str) -> None:
    with pytest.raises(ValueError, match=say):
        judged(Gray(), **options)


def test_actions_of_another_width_are_refused() -> None:
    wrong = clips()
    wrong["action"] = wrong["action"][..., :1]
    with pytest.raises(ValueError, match="actions must have 2 numbers"):
        judged(Gray(), clips=wrong)


def test_lpips_and_fvd_see_what_the_others_see() -> None:
    class Features:
        """A stand-in of I3D: mean gray per channel, and its square."""

        def __call__(self, videos: Tensor) -> Tensor:
            means = videos.mean((1, 3, 4))
            return torch.cat([means, means**2], 1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        lpips = LPIPS("vgg")
    spec = ModelSpec(image=SIDE, context_frames=2, action_dim=A, max_frames=8, context="sliding", burn_in=1)
    judge = Judge(("lpips", "fvd"), lpips=lpips, i3d=Features())  # type: ignore[arg-type]
    found = judged(Gray(spec, noise=2), clips=clips(frames=8), judge=judge, samples=2).scores
    values = {method: scores.fvd for method, scores in found.items()}
    assert values["reconstruction"] is not None
    assert values["copy"] is not None
    assert values["reconstruction"] < values["copy"]
    truth = Gray().truth(clips(frames=8))
    copied = found["copy"].frames["lpips"][0, 0, 5]
    torch.testing.assert_close(copied, lpips(truth[:1, 5], truth[:1, 2])[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="fvd needs at least 2 clips of 9 frames"):
        judged(Gray(), judge=judge)


def test_goals_stand_in_front_and_stay_at_the_end() -> None:
    whole = clips()
    whole["action"] = whole["action"][..., :0]
    goal = goal_clips(whole, 2)
    frames = torch.cat([whole["context"], whole["pixels"]], 1)
    assert torch.equal(goal["context"], torch.stack([frames[:, -1], frames[:, 0]], 1))
    assert torch.equal(goal["pixels"], frames[:, 1:])
    with pytest.raises(ValueError, match="a model without actions"):
        goal_clips(clips(), 2)


EPISODE, SLIDING = (), ("worldmodel.context=sliding", "worldmodel.burn_in=1", "tokenizer.context=2")


@pytest.mark.parametrize("words", [EPISODE, SLIDING], ids=["first_frame", "sliding"])
def test_a_world_model_predicts_as_it_imagines(words: tuple[str, ...]) -> None:
    model = build(*words)
    generator = torch.Generator().manual_seed(2)
    data = TensorDict(
        {
            name: torch.randint(256, (3, frames, 3, 32, 32), generator=generator, dtype=torch.uint8)
            for name, frames in (("context", model.spec.context_frames), ("pixels", 6))
        }
        | {"action": torch.rand(3, 6, 2, generator=generator) * 2 - 1},
        batch_size=[3],
    )
    predictor = Dreaming(model)
    read = predictor.read(data)
    codes = predictor.dream(read, data["action"], None)
    seen = model.spec.burn_in
    start = TensorDict(
        {"context": data["context"], "pixels": data["pixels"][:, :seen], "action": data["action"][:, :seen]}, [3]
    )
    state = model.encode(start)
    for frame in range(seen, 6):
        state = model.imagine(state, data["action"][:, frame], None)
    assert torch.equal(codes, state["wm", "codes"][:, :6])
    assert torch.equal(codes[:, :seen], read["codes"][:, :seen])
    frames = predictor.frames(read, codes)
    assert frames.shape[1] == predictor.num_observed + 6 - seen == predictor.truth(data).shape[1]
    torch.testing.assert_close(frames[:, -1] * 255, model.decode(state).float(), rtol=0, atol=0.51)
    many = {n: evaluate(
        predictor, data, Judge(("mse",)), methods=("model",), samples=2, rows=n, seeds=Seeds(0)
    ).scores["model"].frames["mse"] for n in (4, 5)}  # fmt: skip
    assert many[4].shape == (3, 2, predictor.num_observed + 6 - seen)
    torch.testing.assert_close(many[4], many[5])  # the same groups, so the same draws


@pytest.mark.parametrize("name", ["transformer", "transformer_action"])
def test_a_published_model_predicts_as_it_generates(name: str) -> None:
    model = worldmodel.load(SET_A, transformer=name)
    generator = torch.Generator().manual_seed(2)
    side, frames = model.tokenizer.config.image, 3
    pixels = torch.randint(256, (2, 2 + frames, 3, side, side), generator=generator, dtype=torch.uint8)
    action = torch.rand(2, frames, model.action_dim, generator=generator)
    data = TensorDict({"context": pixels[:, :2], "pixels": pixels[:, 2:], "action": action}, batch_size=[2])
    rule = SamplingConfig(temperature=1.0, top_k=100, codes_only=False)
    predictor = Generating(model, rule=rule, horizon=frames)
    read = predictor.read(data)
    rows = torch.cat([action.new_zeros(2, 1, model.action_dim), action], 1) if model.action_dim else None
    for sampling, seed in (("argmax", None), ("published", 3)):
        seeds = None if seed is None else Seeds(seed)
        made = predictor.frames(read, predictor.dream(read, action, seeds, 5))
        options: dict[str, Any] = {
            "frames": frames,
            "action": rows,
            "sampling": sampling,
            "generator": seeds and seeds.torch("predict", 5),
        }
        direct = model.predict(pixels[:, :2].float() / 255, **options).clamp(0, 1)
        torch.testing.assert_close(made, direct, rtol=0, atol=1e-5)
