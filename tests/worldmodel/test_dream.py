"""States of fixed shape, and what an agent may do with a dream: go on, fork, look, stop and continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torch import Tensor

from tests.envs.worlds import toy
from tests.worldmodel.test_ivideogpt import SIDE, SLIDING, A, B, build, clip, close, cut
from tests.worldmodel.test_oracle import clip_of, model_of
from worldmodel.dream.env import state_spec
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.seeds import Seeds

WORDS = {
    "first_frame": (),
    "one_burnt_in": ("worldmodel.burn_in=1",),
    "none_burnt_in": ("worldmodel.context=sliding", "worldmodel.burn_in=0"),
    "proprio": ("worldmodel.proprio=true", "worldmodel.burn_in=2"),
    "parallel": ("worldmodel.decoding.kind=parallel",),
    "masked": ("worldmodel.decoding={kind:masked,passes:2}", "worldmodel.proprio=true"),
    "published": (*SLIDING, "tokenizer.context=2", "worldmodel.embedding=table", "worldmodel.heads.action=slot"),
}


@pytest.fixture(scope="module", params=WORDS.values(), ids=WORDS)
def dream(request: pytest.FixtureRequest) -> Dream:
    return Dream(build(*request.param), seeds=Seeds(1))


def start(dream: Dream, rows: int = B) -> TensorDict:
    return cut(clip(dream.model, 4), dream.spec.burn_in)[:rows]


def actions(horizon: int, rows: int = B, seed: int = 0) -> Tensor:
    return torch.rand(rows, horizon, A, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def promised(dream: Any, state: TensorDict, frame: int) -> None:
    """Everything that the spec promises is there, and nothing else is but the context's pixels."""
    leaves = dict(state.items(include_nested=True, leaves_only=True))
    assert leaves.keys() - {("wm", "frames")} == dream.spec.state.keys()
    assert state_spec(dream.spec, [len(state)]).is_in(state)
    for key, (shape, dtype) in dream.spec.state.items():
        assert (leaves[key].shape[1:], leaves[key].dtype) == (shape, dtype), key
    assert state["wm", "frame"].tolist() == [[frame]] * len(state) and dream.model.depth(state) == frame
    assert sum(dream.spec.latent.values()) == dream.spec.latent_dim == state["latent"].shape[1]


def saved_and_loaded(state: TensorDict, path: Path) -> TensorDict:
    flat = {".".join(key) if isinstance(key, tuple) else key: x for key, x in state.items(True, True)}
    save_file({name: x.contiguous() for name, x in flat.items()}, path)
    nested = {tuple(name.split(".")): x for name, x in load_file(path).items()}
    loaded = TensorDict({}, batch_size=state.batch_size)
    for key, x in nested.items():
        loaded[key] = x
    return loaded


def walked(dream: Any, state: TensorDict, path: Path, step: Callable[[TensorDict], TensorDict]) -> None:
    """Every state on a walk is as promised and has the same shapes; forks and loaded states go on as the first does."""
    first = dream.model.depth(state)
    for frame in range(first, min(first + 4, dream.spec.max_frames)):
        promised(dream, state, frame)
        forked, loaded = dream.fork(state, 3), saved_and_loaded(state, path)
        promised(dream, forked, frame)
        promised(dream, loaded, frame)
        after = step(state)
        for other, rows in ((step(loaded), slice(None)), (dream.fork(step(loaded), 3)[1::3], slice(None))):
            assert torch.equal(after["wm", "frame"], other["wm", "frame"][rows])
            torch.testing.assert_close(after["latent"], other["latent"][rows], atol=1e-5, rtol=0)
        state = after


def test_every_state_has_the_shapes_that_the_spec_promises(dream: Dream, tmp_path: Path) -> None:
    action_BHA = actions(dream.spec.max_frames)
    walked(
        dream, dream.encode(start(dream)), tmp_path / "state.safetensors",
        lambda state: dream.step(state, action_BHA[: len(state), 0]),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"may have {dream.spec.max_frames} frames"):
        dream.encode(cut(clip(dream.model, dream.spec.max_frames + 1), dream.spec.max_frames + 1))


def test_the_oracle_s_states_keep_their_promise_too(tmp_path: Path) -> None:
    env = toy("reach", rows=2, snapshots=True)
    dream = Dream(model_of(env, "toy", "reach"), seeds=Seeds(0))
    walked(
        dream, dream.encode(clip_of(env.reset())), tmp_path / "state.safetensors",
        lambda state: dream.step(state, torch.ones(len(state), 2)),
    )  # fmt: skip


def test_codes_that_need_more_than_sixteen_bits_get_them() -> None:
    small = build()
    assert small.spec.state["wm", "codes"][1] == small.spec.state["wm", "context"][1] == torch.int16
    large = build("tokenizer.vocab_future=33620", "tokenizer.fsq_levels_future=[41,41,20]")
    assert large.spec.state["wm", "codes"][1] == torch.int32


# -- the rollout -------------------------------------------------------------------------------------------------------


def test_a_policy_sees_exactly_the_keys_that_were_asked_for(dream: Dream) -> None:
    keys = ("pixels", "reward", *dream.spec.latent)
    watched: list[TensorDict] = []

    def policy(td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
        watched.append(td)
        return td["pixels"].float().mean((2, 3))[:, :A] / 128 - 1, memory

    found = dream.rollout(policy, dream.encode(start(dream)), None, 3, stream="x", draw=0, keys=keys)
    assert all(set(td.keys()) == set(keys) for td in watched) and len(watched) == 3
    assert watched[0]["pixels"].dtype == torch.uint8 and watched[0]["pixels"].shape == (B, 3, SIDE, SIDE)
    assert set(found.path["next"].keys()) == {*keys, "continue"}
    assert torch.equal(found.path["pixels"][:, 1:], found.path["next", "pixels"][:, :-1])
    parts = [found.path["next", name][:, -1] for name in dream.spec.latent]
    assert torch.equal(torch.cat(parts, -1), found.state["latent"])
    assert torch.equal(found.path["next", "pixels"][:, -1], dream.decode(found.state))
    other = dream.rollout(policy, dream.encode(start(dream)), None, 3, stream="x", draw=1, keys=keys)
    assert not torch.equal(other.path["action"][:, 1:], found.path["action"][:, 1:]), "it acts on what it sees"


def test_most_likely_frames_draw_nothing(dream: Dream) -> None:
    root, policy = dream.encode(start(dream)), fixed_actions(actions(3))
    one, two = (dream.rollout(policy, root, 0, 3, stream="x", draw=draw, sample=False) for draw in (0, 1))
    assert torch.equal(one.path["next", "latent"], two.path["next", "latent"]) and one.memory == 3
    state = root
    for h in range(3):
        state = dream.step(state, actions(3)[:, h])
    assert torch.equal(one.state["latent"], state["latent"])


def test_a_rollout_in_two_halves_is_one_of_the_whole_length_bit_for_bit(dream: Dream) -> None:
    def policy(td: TensorDict, held: Tensor) -> tuple[Tensor, Tensor]:
        held = held + td["latent"][:, :A]
        return held.sin(), held

    root, keys = dream.encode(start(dream)), ("latent", "reward")
    how = {"stream": "x", "draw": 3, "keys": keys}
    whole = dream.rollout(policy, root, torch.zeros(B, A), 5, **how)
    half = dream.rollout(policy, root, torch.zeros(B, A), 2, **how)
    rest = dream.rollout(policy, half.state, half.memory, 3, **how)
    for key in ("latent", "action", "reward", ("next", "latent"), ("next", "reward"), ("next", "continue")):
        assert torch.equal(torch.cat([half.path[key], rest.path[key]], 1), whole.path[key]), key
    assert torch.equal(rest.memory, whole.memory)
    assert torch.equal(rest.state["wm", "codes"], whole.state["wm", "codes"])
    other = dream.rollout(policy, root, torch.zeros(B, A), 5, stream="x", draw=4)
    assert not torch.equal(other.path["next", "latent"], whole.path["next", "latent"])


# -- forks and memos ---------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, dream: Dream) -> dict[str, int]:
    """How often the tokenizer reads or draws a context, and positions of a row that the transformer reads."""
    counts = {"encoded": 0, "decoded": 0, "positions": 0}

    def counting(owner: Any, name: str, key: str, size: Callable[..., int]) -> None:
        method = getattr(owner, name)

        def call(*args: Any) -> Any:
            counts[key] += size(*args)
            return method(*args)

        monkeypatch.setattr(owner, name, call)

    tokenizer = dream.model.tokenizer
    counting(tokenizer, "encode_context", "encoded", len)
    counting(tokenizer, "decode_context", "decoded", len)
    extend = KVCache.extend

    def reading(cache: KVCache, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        counts["positions"] += (layer == 0) * len(k_BHTC) * k_BHTC.shape[2]
        return extend(cache, layer, k_BHTC, v_BHTC)

    monkeypatch.setattr(KVCache, "extend", reading)
    return counts


def test_64_forks_cost_one_tokenization_and_one_prefill_and_are_64_starts(
    dream: Dream, counted: dict[str, int]
) -> None:
    model, copies, horizon = dream.model, 64, 3
    plans, layout = actions(horizon, rows=copies), model.layout
    root = dream.encode(start(dream, rows=1))
    prefilled, tokens = layout.length(dream.spec.burn_in), model.tokens
    a_frame = layout.stride + tokens.decoding.has_queries * len(tokens.draws) * layout.codes_future
    assert counted == {"encoded": 1, "decoded": 0, "positions": prefilled}
    forks = dream.fork(root, copies)
    assert counted == {"encoded": 1, "decoded": 0, "positions": prefilled}
    found = dream.rollout(fixed_actions(plans), forks, 0, horizon, stream="x", draw=0, sample=False)
    assert counted["positions"] == prefilled + copies * horizon * a_frame and counted["encoded"] == 1
    again = dream.rollout(fixed_actions(plans), forks, 0, horizon, stream="x", draw=1, sample=False)
    assert counted["positions"] == prefilled + 2 * copies * horizon * a_frame, "a rewind to the forks"
    assert torch.equal(again.path["next", "latent"], found.path["next", "latent"])
    for row in range(copies):
        alone = dream.rollout(
            fixed_actions(plans[row : row + 1]), dream.encode(start(dream, rows=1)), 0, horizon, stream="x", draw=0,
            sample=False,
        )  # fmt: skip
        close(alone.state, found.state[row : row + 1])


def test_forks_of_what_is_not_held_cost_one_prefill(dream: Dream, counted: dict[str, int]) -> None:
    root = dream.encode(start(dream, rows=2))
    dream.encode(start(dream, rows=2).flip(0))  # something else is held for two rows now
    before, action_BA = dict(counted), actions(1, rows=6)[:, 0]
    forks = dream.fork(root, 3)
    assert counted["positions"] - before["positions"] == 2 * dream.model.layout.length(dream.spec.burn_in)
    assert counted["encoded"] == before["encoded"]
    many = start(dream, rows=2).apply(lambda x: x.repeat_interleave(3, 0), batch_size=[6])
    close(dream.step(forks, action_BA), dream.step(dream.encode(many), action_BA))


def test_a_start_s_context_is_decoded_once_however_often_one_looks(dream: Dream, counted: dict[str, int]) -> None:
    root, policy = dream.encode(start(dream)), fixed_actions(actions(3))
    found = dream.rollout(policy, root, 0, 3, stream="x", draw=0, keys=("pixels",))
    dream.rollout(policy, root, 0, 3, stream="x", draw=1, keys=("pixels",))
    assert counted["decoded"] == B
    forks = dream.fork(found.state, 2)
    again = dream.decode(found.state).repeat_interleave(2, 0)
    torch.testing.assert_close(dream.decode(forks), again, atol=1, rtol=0)
    assert counted["decoded"] == B
    shown = dream.decode(dream.encode(start(dream).flip(0)))
    assert counted["decoded"] == 2 * B
    assert torch.equal(shown.flip(0), dream.decode(root)), "and rows stay rows"
    with torch.no_grad():
        for parameter in dream.model.tokenizer.parameters():
            parameter.mul_(1.01)
    assert not torch.equal(dream.decode(root), shown.flip(0)), "other weights draw another picture"
    with torch.no_grad():
        for parameter in dream.model.tokenizer.parameters():
            parameter.div_(1.01)


def test_rows_that_change_places_in_a_state_are_never_taken_for_what_they_were() -> None:
    dream = Dream(build(), seeds=Seeds(1))
    root, action_BA = dream.encode(start(dream)), actions(1)[:, 0]
    wanted = dream.step(root, action_BA)
    order = torch.tensor([2, 0, 1])
    moved = dream.encode(start(dream))
    moved[:] = moved[order].clone()  # in place: the very tensors that the engine gave out
    close(dream.step(moved, action_BA[order]), wanted[order])
    close(dream.step(root[order], action_BA[order]), wanted[order])


def test_in_inference_mode_nothing_is_found_again_by_versions_that_are_not_there_and_all_is_as_ever() -> None:
    dream = Dream(build(), seeds=Seeds(1))
    root, action_BA, order = dream.encode(start(dream)), actions(1)[:, 0], torch.tensor([2, 0, 1])
    wanted, frames = dream.step(root, action_BA), dream.decode(root)
    with torch.inference_mode():
        inside = dream.encode(start(dream))
        assert torch.equal(dream.decode(inside), frames)
        close(dream.step(inside[order], action_BA[order]), wanted[order])


def test_what_is_imagined_from_a_state_leaves_the_state_alone(dream: Dream) -> None:
    root = dream.encode(start(dream))
    before = root.clone()
    dream.rollout(fixed_actions(actions(3)), root, 0, 3, stream="x", draw=0)
    assert bool((before == root).all())
