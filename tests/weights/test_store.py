"""An IVideoGPT's weights in the published layout, and from there into other models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import worldmodel
from mbrl.cli.compose import compose
from mbrl.rundir.build import make
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.published.store import MODEL, load_into, save_model
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec
from worldmodel.weights import files
from worldmodel.weights.mismatch import Mismatch

PUBLISHED = (
    "tokenizer.stem=1", "tokenizer.quantizer=vq", "tokenizer.fsq_levels_context=[]", "tokenizer.fsq_levels_future=[]",
    "tokenizer.fsq_place_means=false", "tokenizer.future_input=frame", "tokenizer.context_skip=false",
    "tokenizer.cross_norm_groups=32", "tokenizer.cross_dropout=0.1", "tokenizer.block_out_channels=[4,4,32,32]",
    "tokenizer.norm_groups=4", "worldmodel.embedding=table", "worldmodel.context=sliding", "worldmodel.burn_in=0",
    "worldmodel.heads={action:slot,reward:scalar,bins:0,low:0,high:0,width:0}", "worldmodel.losses.aux_coef=0",
)  # fmt: skip
"""The toy preset with the published model's options: nothing of ours."""
OURS = ("worldmodel.proprio=true",)
MASKED = ("worldmodel.decoding={kind:masked,passes:3}",)


def build(*overrides: str, seed: int = 3, actions: int = 2, terminates: bool = False) -> IVideoGPT:
    plain: Any = OmegaConf.to_container(compose("train", ["experiment=toy", *overrides]))
    parts = {name: make(plain[name], name, trusted=True) for name in ("worldmodel", "tokenizer", "transformer")}
    spec = {"image": 32, "discrete": False, "action_repeat": 1, "decisions": 9, "proprio_dim": 5}
    model: IVideoGPT = parts["worldmodel"].build(
        tokenizer=parts["tokenizer"],
        transformer=parts["transformer"],
        env_spec=EnvSpec(action_dim=actions, terminates=terminates, **spec),
        seeds=Seeds(seed),
    )
    with torch.no_grad():  # heads that start at zero would make every test of them vacuous
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=Seeds(seed).torch(name)).abs() * 0.1)
    return model


def same(a: IVideoGPT, b: IVideoGPT) -> list[str]:
    """Names of the tensors that are equal in both."""
    theirs = b.state_dict()
    return [name for name, value in a.state_dict().items() if torch.equal(value, theirs[name])]


@pytest.mark.parametrize("words", [(), OURS, MASKED, PUBLISHED], ids=["levels", "proprio", "masked", "published"])
def test_a_saved_model_fills_another_and_opens_by_itself(words: tuple[str, ...], tmp_path: Path) -> None:
    model, other = build(*words, terminates=True), build(*words, seed=4, terminates=True)
    save_model(model, tmp_path / "saved")
    before = other.version
    lines = load_into(other, tmp_path / "saved")
    differing = set(model.state_dict()) - set(same(model, other))
    assert all(name.startswith("auxiliary.") for name in differing)
    assert (other.version, other.tokenizer_version) == (before + 2, 1)
    assert ("auxiliary" in " ".join(lines)) == (model.auxiliary is not None)
    assert "initial values stay" not in " ".join(lines)
    configs = [
        json.loads((tmp_path / "saved" / part / "config.json").read_text()) for part in ("tokenizer", "transformer")
    ]
    assert ["tokendream" in config for config in configs] == [words is not PUBLISHED] * 2
    torch.manual_seed(0)
    stream = torch.get_rng_state()
    video = worldmodel.load(tmp_path / "saved")
    assert torch.equal(stream, torch.get_rng_state())
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part in ("tokenizer", "tokens"):
            assert torch.equal(getattr(video, {"tokens": "transformer"}.get(part, part)).state_dict()[rest], value), (
                name
            )
    frames = torch.rand(3, model.layout.context + 2, 3, 32, 32)
    ids = video.tokenize(frames)
    assert video.transformer.decoding == model.tokens.decoding
    action = torch.randn(3, model.layout.context + 2, video.action_dim)
    hidden = model.tokens.eval().hidden_states(ids, model.tokens.into_frames(action, 2))
    assert torch.equal(video.transformer(ids, None, action).hidden, hidden)


def test_one_part_may_be_taken_and_nothing_is_changed_unless_all_fits(tmp_path: Path) -> None:
    model, other = build(), build(seed=4)
    save_model(model, tmp_path / MODEL)  # as a pre-training run has it
    load_into(other, tmp_path, parts=("tokenizer",))
    assert {name.split(".")[0] for name in same(model, other)} == {"tokenizer"}
    wider = build("transformer.mlp=180", seed=5)
    state = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(Mismatch, match="intermediate_size 172 in the file, 180 in the model"):
        load_into(wider, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in wider.state_dict().items())
    with pytest.raises(ValueError, match="parts must be some of tokenizer, dynamics"):
        load_into(other, tmp_path, parts=("agent",))  # type: ignore[arg-type]


def test_heads_that_are_not_in_the_file_keep_their_values_and_the_line_says_so(tmp_path: Path) -> None:
    free, full = build(*PUBLISHED, actions=0), build("worldmodel.heads.action=slot", *PUBLISHED[:-2], PUBLISHED[-1])
    save_model(free, tmp_path)
    head = full.tokens.reward_head[0].weight.clone()
    lines = load_into(full, tmp_path)
    assert lines[1].endswith(
        "initial values stay in action_linear, reward_head; left out, as the model has none: reward_linear"
    )
    assert torch.equal(full.tokens.reward_head[0].weight, head)
    assert torch.equal(full.tokens.llm.lm_head.weight, free.tokens.llm.lm_head.weight)


def test_one_decoding_may_begin_with_the_weights_of_another_and_the_line_says_so(tmp_path: Path) -> None:
    one, masked = build(), build(*MASKED, seed=4)
    save_model(one, tmp_path / "one")
    save_model(masked, tmp_path / "masked")
    assert "decoding" not in (tmp_path / "one" / "transformer" / "config.json").read_text()
    assert load_into(masked, tmp_path / "one")[-1].endswith("initial values stay in frame_queries")
    assert load_into(one, tmp_path / "masked")[-1].endswith("left out, as the model has none: frame_queries")


def test_frames_of_queries_are_generated_with_separators_in_their_places(tmp_path: Path) -> None:
    save_model(build(*PUBLISHED, *MASKED, actions=0), tmp_path)
    video = worldmodel.load(tmp_path)
    ids = video.tokenize(torch.rand(3, 3, 3, 32, 32))
    made = video.generate(ids, generator=torch.Generator().manual_seed(0))
    assert (made[:, video.layout.prelude :: video.layout.stride] == video.layout.sdf).all()
    assert torch.equal(made, video.generate(ids, generator=torch.Generator().manual_seed(0), force_separators=True))


def test_a_longer_context_shrinks_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    two, one = build(*PUBLISHED, "tokenizer.context=2"), build(*PUBLISHED, seed=4)
    save_model(two, tmp_path / "two")
    save_model(one, tmp_path / "one")
    lines = load_into(one, tmp_path / "two")
    assert "its context of 2 frames cut to the newest 1" in lines[0]
    rows = [m.tokenizer.cond_decoder.cross_att_blocks[0].kv_pos_emb for m in (two, one)]
    assert torch.equal(rows[0][-len(rows[1]) :], rows[1])
    with pytest.raises(Mismatch, match="file has context 1, model 2: a context cannot grow"):
        load_into(two, tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "row"),
    [
        (("transformer.heads=1",), "config: heads"),
        (("worldmodel.heads.action=slot",), "config: action"),
        (("worldmodel.heads.high=3",), "config: high"),
        (("tokenizer.context_skip=false",), "config: context_skip"),
        (("tokenizer.fsq_levels_future=[2,8,4]",), "config: fsq_levels_future"),
    ],
)
def test_settings_that_no_shape_shows_are_compared_too(words: tuple[str, ...], row: str, tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    with pytest.raises(Mismatch) as caught:
        load_into(build(*words), tmp_path)
    assert row in caught.value.table


@pytest.mark.parametrize("call", [2, 7, 8])
def test_a_save_that_fails_leaves_what_was_there(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = build(), build(seed=4)
    save_model(first, tmp_path / MODEL)
    real, left = os.fsync, [call]

    def failing(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError("disk full")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", failing)
    if call < 8:
        with pytest.raises(OSError, match="disk full"):
            save_model(second, tmp_path / MODEL)
    else:  # there: only the rename itself was not yet on disk
        with pytest.raises(OSError, match="disk full"):
            save_model(second, tmp_path / MODEL)
        first = second
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]
    other = build(seed=5)
    load_into(other, tmp_path)
    assert {name.split(".")[0] for name in same(first, other)} == {"tokenizer", "tokens"}
