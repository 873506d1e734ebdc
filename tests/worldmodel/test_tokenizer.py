"""The small tokenizers: shapes, independence of frames, warm-up, memos, errors, and that a tiny one learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from worldmodel.layout import TokenLayout
from worldmodel.tokenizer import CompressiveTokenizer, TokenizerConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "tokenizer"
B, F = 3, 5


def config(name: str, **changes: object) -> TokenizerConfig:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    del values["_target_"]
    return TokenizerConfig(**(values | changes))


def seeded(config: TokenizerConfig) -> CompressiveTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tokenizer = config.build()
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("pos_emb"):  # they begin at zero, where a mistake in them would not show
                torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer


def random_frames(config: TokenizerConfig, count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, count, 3, config.image, config.image, generator=generator)


def fitted(tokenizer: CompressiveTokenizer) -> CompressiveTokenizer:
    """In eval mode, with the quantizers' statistics of a few batches, so that codes differ."""
    tokenizer.train()
    with torch.no_grad():
        for seed in range(20):
            t = tokenizer.config.context
            frames = random_frames(tokenizer.config, t + F, seed=seed)
            tokenizer(frames[:, :t], frames[:, t:])
    return tokenizer.eval()


MICRO = config("micro")
VARIANTS = {
    "micro": MICRO,
    "two context frames": replace(MICRO, context=2),
    "three levels": replace(MICRO, stem=2, block_out_channels=(8, 16, 16)),
    "no stem, 24 pixels": replace(MICRO, image=24, stem=1, block_out_channels=(8, 8), patch_size=3, context=2),
    "attention everywhere": replace(MICRO, max_attention_resolution=32, mid_attention=True, context=2),
    "published options": replace(
        MICRO,
        quantizer="vq",
        code_dim=6,
        vocab_context=37,
        vocab_future=29,
        fsq_levels_context=(),
        fsq_levels_future=(),
        fsq_place_means=False,
        future_input="frame",
        context_skip=False,
        context=2,
    ),
    "unequal books": replace(
        MICRO,
        vocab_context=60,
        vocab_future=42,
        fsq_levels_context=(3, 4, 5),
        fsq_levels_future=(7, 3, 2),
        fsq_place_means=False,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_has_its_shape_and_its_range(name: str) -> None:
    cfg = VARIANTS[name]
    tokenizer = fitted(seeded(cfg))
    t, side, n, k, d = cfg.context, cfg.side, cfg.codes_context, cfg.codes_future, tokenizer.vector_dim
    assert (n, k) == (side**2, (side // cfg.patch_size) ** 2)
    assert tokenizer.config.side == side
    frames = random_frames(cfg, t + F)
    context_codes, codes = tokenizer.tokenize(frames[:, :t], frames[:, t:])
    assert context_codes.shape == (B, t, n)
    assert codes.shape == (B, F, k)
    assert context_codes.dtype == codes.dtype == torch.int64
    assert 0 <= context_codes.min() <= context_codes.max() < cfg.vocab_context
    assert 0 <= codes.min() <= codes.max() < cfg.vocab_future
    assert tokenizer.code_vectors(codes).shape == (B, F, k, d)
    assert tokenizer.context_vectors(context_codes).shape == (B, t, d, side, side)
    out = tokenizer(frames[:, :t], frames[:, t:])
    assert out.recon_context.shape == (B, t, 3, cfg.image, cfg.image)
    assert out.recon_future.shape == (B, F, 3, cfg.image, cfg.image)
    assert torch.equal(out.codes_context, context_codes)
    assert torch.equal(out.codes_future, codes)
    torch.testing.assert_close(out.vectors_future, tokenizer.code_vectors(codes), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.vectors_context, tokenizer.context_vectors(context_codes), atol=1e-5, rtol=0)
    recon_context, recon_future = tokenizer.decode(context_codes, codes)
    torch.testing.assert_close(recon_context, out.recon_context, atol=1e-4, rtol=0)
    torch.testing.assert_close(recon_future, out.recon_future, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "codes"), [("tiny", (64, 4, 512)), ("tiny16", (64, 16, 512)), ("fine", (256, 16, 4096))]
)
def test_the_presets_for_a_cpu_have_so_many_codes_and_about_a_million_parameters(
    name: str, codes: tuple[int, ...]
) -> None:
    cfg = config(name)
    assert (cfg.codes_context, cfg.codes_future, cfg.vocab_future) == codes
    assert 1e6 < sum(p.numel() for p in cfg.build().parameters()) < 1.6e6


@pytest.mark.parametrize("name", ["micro", "two context frames", "published options"])
def test_a_future_frame_sees_itself_and_its_own_context_only(name: str) -> None:
    cfg = VARIANTS[name]
    tokenizer = fitted(seeded(cfg))
    t = cfg.context
    frames = random_frames(cfg, t + F).requires_grad_()
    latents = tokenizer.encode_future(tokenizer.encode_context(frames[:, :t]), frames[:, t:])
    (gradient,) = torch.autograd.grad(latents[1, 2].square().sum(), frames)
    reach = gradient.abs().amax((2, 3, 4)) > 0
    expected = torch.zeros(B, t + F, dtype=torch.bool)
    expected[1, :t] = True
    expected[1, t + 2] = True
    assert torch.equal(reach, expected)


@pytest.mark.parametrize("name", ["micro", "two context frames", "published options"])
def test_a_decoded_frame_depends_on_its_own_codes_and_all_of_its_context(name: str) -> None:
    cfg = VARIANTS[name]
    tokenizer = fitted(seeded(cfg))
    t = cfg.context
    frames = random_frames(cfg, t + F)
    context_codes, codes = tokenizer.tokenize(frames[:, :t], frames[:, t:])

    def changed(context_codes: Tensor, other_codes: Tensor) -> Tensor:
        gap = tokenizer.decode(context_codes, other_codes)[1] - before
        return gap.abs().amax((2, 3, 4)) > 1e-5

    with torch.no_grad():
        before = tokenizer.decode(context_codes, codes)[1]
        other = codes.clone()
        other[1, 2, 0] = (other[1, 2, 0] + 1) % cfg.vocab_future
        assert changed(context_codes, other).nonzero().tolist() == [[1, 2]]
        for frame in range(t):
            other = context_codes.clone()
            other[2, frame] = (other[2, frame] + 1) % cfg.vocab_context
            assert changed(other, codes).nonzero().tolist() == [[2, j] for j in range(F)]


@pytest.mark.parametrize("name", ["micro", "published options"])
def test_tokenizing_in_pieces_gives_the_same_codes(name: str) -> None:
    cfg = VARIANTS[name]
    tokenizer = fitted(seeded(cfg))
    t = cfg.context
    frames = random_frames(cfg, t + F)
    context, future = frames[:, :t], frames[:, t:]
    context_codes, codes = tokenizer.tokenize(context, future)
    pieces = [tokenizer.tokenize(context, part)[1] for part in future.split([2, 3], dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), codes)
    rows = [tokenizer.tokenize(context[i : i + 1], future[i : i + 1]) for i in range(B)]
    assert torch.equal(torch.cat([c for c, _ in rows]), context_codes)
    assert torch.equal(torch.cat([c for _, c in rows]), codes)
    assert codes.unique().numel() > 4


def test_decoding_from_a_memo_equals_decoding_at_once() -> None:
    cfg = VARIANTS["two context frames"]
    tokenizer = fitted(seeded(cfg))
    frames = random_frames(cfg, 2 + F)
    context_codes, codes = tokenizer.tokenize(frames[:, :2], frames[:, 2:])
    with torch.no_grad():
        recon_context, recon_future = tokenizer.decode(context_codes, codes)
        memo = tokenizer.decode_context(context_codes)
        assert all(feature.shape[:2] == (B, 2) for feature in memo.features)
        for j in range(F):
            again_context, frame = tokenizer.decode(context_codes, codes[:, j : j + 1], memo)
            torch.testing.assert_close(frame[:, 0], recon_future[:, j], atol=1e-5, rtol=0)
            assert torch.equal(again_context, recon_context)


def test_a_clip_without_future_frames_has_context_codes_and_no_others() -> None:
    tokenizer = fitted(seeded(MICRO))
    context = random_frames(MICRO, 1)
    context_codes, codes = tokenizer.tokenize(context, context[:, :0])
    assert torch.equal(context_codes, tokenizer.tokenize(context, context)[0])
    assert codes.shape == (B, 0, MICRO.codes_future)
    assert tokenizer.decode(context_codes, codes)[1].shape == (B, 0, 3, 32, 32)


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("name", ["micro", "two context frames", "published options"])
def test_the_loss_reaches_every_parameter(name: str, quantize: bool) -> None:
    cfg = VARIANTS[name]
    tokenizer = seeded(cfg).train()
    frames = random_frames(cfg, cfg.context + F)
    context, future = frames[:, : cfg.context], frames[:, cfg.context :]
    out = tokenizer(context, future, quantize=quantize, generator=torch.Generator().manual_seed(1))
    loss = (out.recon_context - context).abs().mean() + (out.recon_future - future).abs().mean()
    (loss + out.commit_context + out.commit_future).backward()
    silent = [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_the_codes_vectors_carry_gradient_to_the_encoder_alone() -> None:
    tokenizer = seeded(MICRO).train()
    frames = random_frames(MICRO, 1 + F)
    out = tokenizer(frames[:, :1], frames[:, 1:])
    out.vectors_future.square().sum().backward()
    reached = {n.split(".")[0] for n, p in tokenizer.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "cond_encoder", "quant_linear"}


def test_warm_up_noise_follows_the_generator_and_stays_within_half_a_level() -> None:
    tokenizer = seeded(MICRO).train()
    frames = random_frames(MICRO, 1 + F)

    def vectors(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return tokenizer(frames[:, :1], frames[:, 1:], quantize=False, generator=generator).vectors_future.detach()

    once, again, other = vectors(1), vectors(1), vectors(2)
    assert torch.equal(once, again)
    gap = (once - other).abs() * 1.5  # 4 levels are 2/3 apart
    assert 0.5 < gap.max() < 1
    with pytest.raises(ValueError, match="give the generator"):
        tokenizer(frames[:, :1], frames[:, 1:], quantize=False)


def test_quantizers_keep_full_precision_under_autocast() -> None:
    cfg = MICRO
    tokenizer = fitted(seeded(cfg))
    frames = random_frames(cfg, 1 + F)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = tokenizer.encode_context(frames[:, :1])
        latents = tokenizer.encode_future(encoded, frames[:, 1:])
        out = tokenizer(frames[:, :1], frames[:, 1:])
    assert encoded.latents.dtype == latents.dtype == out.vectors_future.dtype == torch.float32
    assert out.recon_context.dtype == out.recon_future.dtype == torch.float32
    assert not torch.equal(latents, latents.bfloat16().float())


def test_ids_follow_the_layout_and_lead_back_to_the_frames() -> None:
    cfg = VARIANTS["two context frames"]
    tokenizer = fitted(seeded(cfg))
    frames = random_frames(cfg, 2 + F)
    layout = tokenizer.layout
    assert layout == TokenLayout(context=2, codes_context=16, codes_future=4, vocab_context=64, vocab_future=64)
    ids, labels = tokenizer.tokenize_ids(frames, 2)
    context_codes, codes = tokenizer.tokenize(frames[:, :2], frames[:, 2:])
    assert ids.shape == labels.shape == (B, layout.length(F))
    assert torch.equal(ids[:, :16], context_codes[:, 0])
    assert (ids[:, 16] == layout.scf).all()
    assert torch.equal(ids[:, 17:33], context_codes[:, 1])
    for j in range(F):
        start = layout.sdf_position(j)
        assert (ids[:, start] == layout.sdf).all()
        assert torch.equal(ids[:, start + 1 : start + 5], codes[:, j] + 64)
    assert (labels[:, : layout.prelude + 1] == -100).all()
    assert torch.equal(labels[:, layout.prelude + 1 :], ids[:, layout.prelude + 1 :])
    with torch.no_grad():
        clip = tokenizer.detokenize(ids, 2)
        torch.testing.assert_close(clip, torch.cat(tokenizer.decode(context_codes, codes), dim=1))
        wild = ids.clone()
        wild[:, layout.sdf_position(1) + 1] = 5  # a context code becomes the first future code, a separator the last
        wild[:, layout.sdf_position(1) + 2] = layout.sdf
        tame = ids.clone()
        tame[:, layout.sdf_position(1) + 1] = 64
        tame[:, layout.sdf_position(1) + 2] = 127
        assert torch.equal(tokenizer.detokenize(wild, 2), tokenizer.detokenize(tame, 2))


@pytest.mark.parametrize("bad", [-1, 64, 129])
def test_a_context_id_that_is_no_context_code_is_refused(bad: int) -> None:
    tokenizer = seeded(MICRO).eval()
    ids, _ = tokenizer.tokenize_ids(random_frames(MICRO, 3), 1)
    ids[1, 4] = bad
    with pytest.raises(ValueError, match=r"context ids must lie in \[0, 64\)"):
        tokenizer.detokenize(ids, 1)


def test_shrinking_the_context_keeps_the_newest_frames_positions_and_growing_is_refused() -> None:
    tokenizer = seeded(VARIANTS["two context frames"]).eval()
    blocks = [*tokenizer.cond_encoder.cross_att_blocks, *tokenizer.cond_decoder.cross_att_blocks]
    rows = [block.kv_pos_emb.detach().clone() for block in blocks]
    tokenizer.set_context_length(1)
    assert tokenizer.config.context == tokenizer.layout.context == 1
    for block, before in zip(blocks, rows, strict=True):
        assert torch.equal(block.kv_pos_emb, before[len(before) // 2 :])
    assert tokenizer.tokenize_ids(random_frames(MICRO, 1 + F), 1)[0].shape == (B, tokenizer.layout.length(F))
    with pytest.raises(ValueError, match="context can only shrink: 1 to 1 frames"):
        tokenizer.set_context_length(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": 36}, "image must be a multiple of 8 = stem 4 x 2"),
        ({"stem": 3}, "stem must be 1 or even"),
        ({"patch_size": 3}, "patch_size must divide the latent side 4"),
        ({"block_out_channels": [16, 30]}, "norm_groups must divide all block_out_channels"),
        ({"cross_norm_groups": 5}, "cross-attention needs widths"),
        ({"vocab_future": 65}, "fsq_levels_future must be code_dim = 3 numbers >= 2 with product 65"),
        ({"fsq_levels_context": [8, 8]}, "fsq_levels_context must be code_dim = 3 numbers"),
        ({"quantizer": "vq"}, "fsq_levels_context must be empty with quantizer vq"),
        ({"quantizer": "vq", "fsq_levels_context": [], "fsq_levels_future": []}, "fsq_place_means must be false"),
        ({"quantizer": "lfq"}, "quantizer must be vq or fsq"),
        ({"future_input": "change"}, "future_input must be frame or frame_and_change"),
        ({"cross_dropout": 1.0}, r"cross_dropout must be in \[0, 1\)"),
        ({"context": 0}, "context must be >= 1"),
    ],
)
def test_a_config_that_does_not_fit_says_what_to_change(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("micro", **changes)


def test_frames_of_another_kind_are_refused() -> None:
    tokenizer = seeded(MICRO).eval()
    frames = random_frames(MICRO, 4)
    with pytest.raises(ValueError, match="context must be"):
        tokenizer.tokenize(frames[:, :2], frames[:, 2:])
    with pytest.raises(ValueError, match="frames must be"):
        tokenizer.tokenize(frames[:, :1], frames[:, 1:, :, :16])
    with pytest.raises(ValueError, match="divide uint8 frames by 255"):
        tokenizer.tokenize((frames[:, :1] * 255).byte(), frames[:, 1:])
    with pytest.raises(ValueError, match="context must be the tokenizer's 1 frames"):
        tokenizer.tokenize_ids(frames, 2)
    with pytest.raises(ValueError, match="more than 1 context frames"):
        tokenizer.tokenize_ids(frames[:, :1], 1)


def shapes(generator: torch.Generator, clips: int, frames: int) -> tuple[Tensor, Tensor]:
    """Clips of a red and a blue square at random places before a static slope of colour."""
    row, column = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    slope = torch.stack([0.2 + column / 64, 0.2 + row / 64, (row + column) / 160 + 0.4])
    clip = slope.expand(clips, frames + 1, 3, 32, 32)
    for colour in ([0.9, 0.1, 0.1], [0.1, 0.2, 0.9]):
        place = torch.rand(clips, frames + 1, 2, 1, 1, generator=generator) * 22 + 5
        inside = ((row - place[:, :, 0]).abs() < 4) & ((column - place[:, :, 1]).abs() < 4)
        clip = torch.where(inside[:, :, None], torch.tensor(colour).view(3, 1, 1), clip)
    return clip[:, :1], clip[:, 1:]


def test_a_tiny_tokenizer_learns_to_draw_moved_shapes_and_keeps_many_codes_alive() -> None:
    tokenizer = seeded(MICRO).train()
    generator = torch.Generator().manual_seed(0)
    context, future = shapes(torch.Generator().manual_seed(1), 6, 4)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3, betas=(0.9, 0.99))
    first = (tokenizer.eval().decode(*tokenizer.tokenize(context, future))[1] - future).abs().mean().item()
    tokenizer.train()
    for step in range(45):
        out = tokenizer(context, future, quantize=step >= 15, generator=generator)
        loss = (out.recon_future - future).abs().mean() + (out.recon_context - context).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
    tokenizer.eval()
    context_codes, codes = tokenizer.tokenize(context, future)
    with torch.no_grad():
        last = (tokenizer.decode(context_codes, codes)[1] - future).abs().mean().item()
    assert last < 0.1 < 0.3 < first
    assert codes.unique().numel() > 15
    assert all(codes[:, :, k].unique().numel() > 5 for k in range(4))
    assert context_codes.unique().numel() > 8
