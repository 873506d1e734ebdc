"""`worldmodel.load` on models with settings that no recorded set has, and what may be changed while loading."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from odd_models import Odd, make, write
from safetensors.torch import load_file
from torch import Tensor

import worldmodel
from worldmodel.published.folder import save_published
from worldmodel.published.model import VideoGPT, goal_first
from worldmodel.sequence import codes_of_ids
from worldmodel.weights.mismatch import Mismatch

B, F = 2, 2
SET_A = Path(__file__).parents[1] / "golden" / "data" / "set_a_ctx2"


@pytest.fixture(scope="module", params=["wide", "deep"])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Odd:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loaded(odd: Odd) -> VideoGPT:
    return worldmodel.load(odd.folder)


def clip(model: VideoGPT, *, clips: int = B) -> Tensor:
    side = model.tokenizer.config.image
    return torch.rand(clips, model.context + F, 3, side, side, generator=torch.Generator().manual_seed(5))


def test_everything_is_read_off_the_files(odd: Odd, loaded: VideoGPT) -> None:
    assert loaded.tokenizer.config == odd.model.tokenizer.config
    assert loaded.transformer.llm.config == odd.model.transformer.llm.config
    assert (loaded.action_dim, loaded.transformer.heads) == (odd.action_dim, odd.model.transformer.heads)
    assert not any(module.training for module in loaded.modules())
    state = loaded.state_dict()
    for name, value in odd.model.state_dict().items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], value), name


def test_the_loaded_model_answers_as_the_one_that_was_saved(odd: Odd, loaded: VideoGPT) -> None:
    frames = clip(loaded)
    ids = loaded.tokenize(frames, loaded.context)
    assert ids.dtype == torch.int64 and ids.shape == (B, loaded.layout.length(F))
    assert torch.equal(ids, odd.model.tokenize(frames)) and torch.equal(ids, loaded.tokenize(frames.double()))
    assert torch.equal(loaded.detokenize(ids, loaded.context), odd.model.detokenize(ids))
    action = torch.randn(B, loaded.context + F, odd.action_dim)
    out, wanted = (model.transformer(ids, ids, action) for model in (loaded, odd.model))
    assert out.logits.shape == (B, ids.shape[1], loaded.layout.vocab)
    assert torch.equal(out.loss, wanted.loss) and torch.equal(out.logits, wanted.logits)
    if odd.model.transformer.heads.reward == "scalar":
        assert out.rewards.shape == (B, F, 1) and torch.equal(out.rewards, wanted.rewards)


@torch.no_grad()
def test_a_rollout_is_what_plain_passes_over_the_whole_string_give(odd: Odd, loaded: VideoGPT) -> None:
    """No cache and no engine here: every id is the argmax of one full pass, its action in place."""
    side, t, horizon = loaded.tokenizer.config.image, loaded.context, 2
    frames = (clip(loaded)[:, :t] * 255).to(torch.uint8)
    actions = torch.randn(B, horizon, odd.action_dim, generator=torch.Generator().manual_seed(1))
    obs_u8 = torch.cat([frames[:, :1], frames], 1).flatten(1, 2)  # one more than the model looks at
    obs, acted, rewards = loaded.rollout(obs_u8, lambda _, step: actions[:, step], horizon)
    blank = torch.zeros(B, 1, 3, side, side)
    ids = loaded.tokenize(torch.cat([frames / 255, blank], 1))[:, : loaded.layout.prelude]
    context, published = ids, torch.cat([torch.zeros(B, t - 1, odd.action_dim), actions], 1)
    for step in range(horizon):
        shown = []
        ids = torch.cat([ids, torch.full((B, 1), loaded.layout.sdf)], 1)
        for _ in range(loaded.layout.codes_future):
            filled = torch.cat([ids, ids.new_zeros(B, loaded.layout.length(step + 1) - ids.shape[1])], 1)
            logits = loaded.transformer(filled, None, published[:, : t + step]).logits
            shown.append(logits[:, ids.shape[1] - 1].argmax(-1))
            ids = torch.cat([ids, shown[-1][:, None]], 1)
        seen = loaded.detokenize(torch.cat([context, torch.full((B, 1), loaded.layout.sdf), torch.stack(shown, 1)], 1))
        torch.testing.assert_close(obs[:, step + 1, -3:], seen[:, -1].clamp(0, 1), atol=1e-4, rtol=0)
    read = loaded.transformer(ids, None, published).rewards
    if read is None:
        assert rewards[:, 1:].isnan().all()
    else:
        torch.testing.assert_close(rewards[:, 1:], read.sign() * read.abs().expm1(), atol=1e-4, rtol=1e-4)
    assert not rewards[:, 0].any() and torch.equal(acted[:, 1:], actions)


def test_sampled_generation_is_drawn_from_the_generator_alone(odd: Odd, loaded: VideoGPT) -> None:
    frames, action = clip(loaded), torch.randn(B, loaded.context + F - 1, odd.action_dim)
    first, again, other = (
        loaded.predict(frames, frames=F, action=action, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert first.shape == frames.shape
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="draws: give it a generator"):
        loaded.predict(frames, frames=F, action=action)
    ids = loaded.tokenize(frames)
    forced = loaded.generate(ids, sampling="argmax", force_separators=True)
    assert (forced[:, loaded.layout.prelude :: loaded.layout.stride] == loaded.layout.sdf).all()
    assert torch.equal(codes_of_ids(forced, loaded.layout)[0], codes_of_ids(ids, loaded.layout)[0])


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_saved_again_it_is_the_same_in_published_words(name: str, tmp_path: Path) -> None:
    odd = make(name, tmp_path / "first")
    model = worldmodel.load(odd.folder)
    save_published(model, tmp_path / "second")
    again = worldmodel.load(tmp_path / "second")
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in again.state_dict().items())
    for part in ("tokenizer", "transformer"):
        assert "tokendream" not in json.loads((tmp_path / "second" / part / "config.json").read_text())
    save_published(again, tmp_path / "second")  # in place of what is there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_float32_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    for part, file in (
        ("tokenizer", "diffusion_pytorch_model.safetensors"),
        ("transformer_action", "model.safetensors"),
    ):
        config = json.loads((SET_A / part / "config.json").read_text())
        write(tmp_path / "a" / part, config, load_file(SET_A / part / file), file, torch.float32)
    save_published(worldmodel.load(tmp_path / "a"), tmp_path / "b")
    for before, after in (("tokenizer", "tokenizer"), ("transformer_action", "transformer")):
        (old,), (new,) = ((tmp_path / x).glob("*.safetensors") for x in (f"a/{before}", f"b/{after}"))
        assert old.read_bytes() == new.read_bytes()
        told = json.loads((tmp_path / "b" / after / "config.json").read_text())
        said = json.loads((SET_A / before / "config.json").read_text())
        assert {k: told[k] for k in said.keys() & told.keys()} == {k: said[k] for k in said.keys() & told.keys()}


def test_the_action_conditioned_transformer_is_taken_unless_told_otherwise(tmp_path: Path) -> None:
    assert worldmodel.load(SET_A).action_dim == 4
    assert worldmodel.load(SET_A, transformer="transformer").action_dim == 0
    with pytest.raises(ValueError, match="has no folder transformer_x"):
        worldmodel.load(SET_A, transformer="transformer_x")
    with pytest.raises(ValueError, match="has no folder tokenizer and no folder transformer"):
        worldmodel.load(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        worldmodel.load(tmp_path / "nothing")


def test_heads_added_to_an_action_free_model_change_nothing() -> None:
    plain = worldmodel.load(SET_A, transformer="transformer")
    more = worldmodel.load(SET_A, transformer="transformer", action_dim=5, reward=True, seed=1)
    frames = clip(plain)
    ids, action = plain.tokenize(frames), torch.randn(B, plain.context + F, 5)
    assert torch.equal(more.transformer(ids, ids, action).logits, plain.transformer(ids, ids).logits)
    forced = plain.generate(ids, sampling="argmax", force_separators=True)
    assert torch.equal(more.generate(ids, action=action, sampling="argmax"), forced)
    other = worldmodel.load(SET_A, transformer="transformer", action_dim=5, reward=True, seed=2)
    assert not torch.equal(other.transformer.reward_linear.weight, more.transformer.reward_linear.weight)
    obs = (frames[:, :2].flatten(1, 2) * 255).to(torch.uint8)
    assert more.rollout(obs, lambda *_: action[:, 0], 1).rewards.isfinite().all()
    with pytest.raises(ValueError, match="action-free: load it with action_dim=A"):
        plain.rollout(obs, lambda *_: action[:, 0], 1)
    with pytest.raises(ValueError, match="action-free: leave action out"):
        plain.generate(ids, action=action, sampling="argmax")


def test_the_context_can_shrink_but_not_grow() -> None:
    short, whole = worldmodel.load(SET_A, context=1), worldmodel.load(SET_A)
    blocks = [model.tokenizer.cond_encoder.cross_att_blocks[0] for model in (short, whole)]
    assert torch.equal(blocks[0].kv_pos_emb, blocks[1].kv_pos_emb[-256:])
    assert short.layout == short.transformer.layout and short.layout.context == 1
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.5)
    whole.set_context_length(1)
    frames = clip(short)
    assert torch.equal(whole.tokenize(frames), short.tokenize(frames))
    out = whole.tokenizer(frames[:, :1], frames[:, 1:])
    out.recon_future.mean().backward()
    optimizer.step()  # it still holds the parameters that the model has
    assert not torch.equal(blocks[0].kv_pos_emb, blocks[1].kv_pos_emb)
    with pytest.raises(ValueError, match=r"context can only shrink: 1 to 2 frames \(got 3\)"):
        worldmodel.load(SET_A, context=3)
    with pytest.raises(ValueError, match="context must be the tokenizer's 2 frames"):
        worldmodel.load(SET_A).tokenize(frames, 1)


def test_a_rollout_says_what_it_needs() -> None:
    model = worldmodel.load(SET_A)
    for obs, horizon, message in (
        (torch.zeros(1, 9, 64, 64), 1, "obs_u8 must be uint8"),
        (torch.zeros(1, 9, 32, 32, dtype=torch.uint8), 1, r"\[B, 3k, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 1, "at least 2 frames"),
        (torch.zeros(1, 9, 64, 64, dtype=torch.uint8), 0, "horizon must be >= 1"),
        (torch.zeros(1, 9, 64, 64, dtype=torch.uint8), 99, "at most 30 frames fit"),
    ):
        with pytest.raises(ValueError, match=message):
            model.rollout(obs, lambda *_: torch.zeros(1, 4), horizon)
    with pytest.raises(ValueError, match="sampling must be argmax, published"):
        model.rollout(torch.zeros(1, 9, 64, 64, dtype=torch.uint8), lambda *_: torch.zeros(1, 4), 1, "best")


def test_a_model_of_other_actions_is_refused_with_the_cause() -> None:
    with pytest.raises(Mismatch) as caught:
        worldmodel.load(SET_A, action_dim=5)
    assert caught.value.headline.endswith("do not fit the model: action_dim 4 in the file, 5 in the model")


def test_the_goal_comes_first() -> None:
    steps = torch.arange(5).view(1, 5)
    assert goal_first(steps).tolist() == [[4, 0, 1, 2, 3, 4]]
    assert goal_first(steps, keep_last=False).tolist() == [[4, 0, 1, 2, 3]]


def test_the_example_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert sum(bool(line) and not line.startswith("import") for line in code.splitlines()) <= 10
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "model").symlink_to(SET_A)
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(tmp_path / "example.py"))
    assert found["ids"].dtype == torch.int64 and found["frames"].shape == found["clips"].shape
    assert found["out"].loss.isfinite() and found["out"].rewards.shape == (2, 4, 1)
    assert found["obs"].shape == (2, 5, 9, 64, 64) and found["rewards"].isfinite().all()
