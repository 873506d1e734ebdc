"""The published rollout: all that came before is read again for every frame; a cache serves inside of a frame."""

# B rows, N codes of the context, H imagined frames, K codes of a frame, A action, T new positions, D hidden

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.rollout import SamplingConfig
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.passes import draw_in_passes
from worldmodel.sequence import layout_ids
from worldmodel.transformer import TokenModel
from worldmodel.transformer.decoding import Sight

GREEDY = SamplingConfig(temperature=0.0, top_k=0, codes_only=False)


@torch.no_grad()
def reprefilling_rollout(model: TokenModel, context_BN: Tensor, actions_BHA: Tensor) -> Tensor:
    """Most likely ids [B, H, K], the published way: a prefill of everything so far for every frame, then its codes."""
    layout, llm, config = model.layout, model.llm, model.llm.config
    rows, horizon, _ = actions_BHA.shape
    cache = KVCache(
        layers=config.layers,
        rows=rows,
        heads=config.heads,
        positions=layout.length(horizon),
        channels=config.hidden // config.heads,
        dtype=llm.lm_head.weight.dtype,
        device=llm.lm_head.weight.device,
    )
    nothing_BFK = context_BN.new_empty(rows, 0, layout.codes_future)
    prefix_BTD = llm.embed(layout_ids(context_BN, nothing_BFK, layout))
    sdf_B1 = context_BN.new_full((rows, 1), layout.sdf)
    frames = []
    for action_BA in actions_BHA.unbind(1):
        added_B1D = model.action_linear(action_BA).unsqueeze(1)
        opened_BTD = torch.cat([prefix_BTD, llm.embed(sdf_B1) + added_B1D], 1)
        cache.rewind(0)
        if model.decoding.has_queries:
            llm(prefix_BTD, cache=cache)
            frames.append(in_passes(model, cache, added_B1D))
        else:
            frames.append(code_by_code(model, cache, llm(opened_BTD, cache=cache)))
        prefix_BTD = torch.cat([opened_BTD, llm.embed(frames[-1])], 1)
    return torch.stack(frames, 1)


def code_by_code(model: TokenModel, cache: KVCache, hidden_BTD: Tensor) -> Tensor:
    """Ids [B, K] of the frame whose opening was read last."""
    ids: list[Tensor] = []
    for _ in range(model.layout.codes_future):
        ids.append(model.llm.logits(hidden_BTD[:, -1]).argmax(-1, keepdim=True))
        hidden_BTD = model.llm(model.llm.embed(ids[-1]), cache=cache)  # the last one gives the reward
    return torch.cat(ids, 1)


def in_passes(model: TokenModel, cache: KVCache, added_B1D: Tensor) -> Tensor:
    """Ids [B, K] of the frame behind what is in the cache."""
    start, codes, device = cache.position, model.layout.codes_future, added_B1D.device
    seen = torch.ones(codes, start + codes, dtype=torch.bool, device=device)
    there = Sight(torch.arange(start, start + codes, device=device), seen)

    def guess(drawn_BK: Tensor, known_BK: Tensor) -> Tensor:
        cache.rewind(start)
        return model.llm(model.queries(model.llm.embed(drawn_BK), known_BK, added_B1D), cache=cache, sight=there)

    nothing_BK = torch.zeros(len(added_B1D), codes, dtype=torch.int64, device=device)
    return draw_in_passes(guess, model.llm.logits, nothing_BK, draws=model.draws, sampling=GREEDY, uniform_SB=None)
