"""How good tokenizer and transformer are on clips that they never learn from: numbers, and clips to look at.

Knows models and clips; nothing of runs or files. B clips, T frames, K codes of a frame, V codes of a book.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.progress import Tell, quiet
from worldmodel.dream.imagine import Dream, fixed_actions
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.losses.tokenizer import to_float01
from worldmodel.seeds import Seeds
from worldmodel.sequence import layout_ids

ROWS = 8
"""Clips that are measured at once."""


@dataclass(frozen=True)
class Measured:
    """Numbers by name, and the first clip: truth and what the model makes of it, u8 [T, 3, H, W]."""

    numbers: dict[str, float]
    truth: Tensor
    made: Tensor


def psnr(truth: Tensor, made: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [...] in dB of u8 frames [..., 3, H, W] (spec 10.7)."""
    error = (to_float01(truth) - to_float01(made)).square().mean((-3, -2, -1))
    return 10 * torch.log10(1 / (error + 1e-8))


@torch.no_grad()
def tokenizer(model: IVideoGPT, clips: TensorDict, tell: Tell = quiet) -> Measured:
    """What is left of frames behind the codes, and how many codes are in use (model in eval mode).

    `usage` is the share of a book's codes that occur in the clips, `dead` how many do not, `perplexity` how many evenly
    used ones would tell as much. `tell` hears of each few clips.
    """
    layout, counts = model.layout, {}
    made: list[Tensor] = []
    for kind, vocab in (("context", layout.vocab_context), ("future", layout.vocab_future)):
        counts[kind] = torch.zeros(vocab, dtype=torch.long)
    for place, rows in enumerate(clips.split(ROWS)):
        tell(place * ROWS, len(clips))
        context_BN, codes_BTK = model.tokenize(rows["context"], rows["pixels"])
        counts["context"] += context_BN.flatten().cpu().bincount(minlength=layout.vocab_context)
        counts["future"] += codes_BTK.flatten().cpu().bincount(minlength=layout.vocab_future)
        per_frame = context_BN.unflatten(1, (layout.context, layout.codes_context))
        decoded = torch.cat(model.tokenizer.decode(per_frame, codes_BTK), 1)
        made.append((decoded.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    whole = torch.cat(made)
    truth = torch.cat([clips["context"], clips["pixels"]], 1)
    numbers: dict[str, float] = {}
    for kind, part in (("context", slice(None, layout.context)), ("future", slice(layout.context, None))):
        real, shown = truth[:, part], whole[:, part]
        numbers[f"tokenizer/{kind}_l1"] = float((to_float01(real) - to_float01(shown)).abs().mean())
        numbers[f"tokenizer/{kind}_psnr"] = float(psnr(real, shown).mean())
        numbers |= {f"codes/{kind}_{name}": value for name, value in diversity(counts[kind]).items()}
    if model.objective.distance is not None:
        numbers["tokenizer/future_lpips"] = _distance(model, clips["pixels"], whole[:, layout.context :])
    return Measured(numbers, truth[0], whole[0])


def diversity(counts_V: Tensor) -> dict[str, float]:
    """How evenly codes are used.

    >>> diversity(torch.tensor([2, 2, 0, 0]))
    {'usage': 0.5, 'dead': 2.0, 'perplexity': 2.0}
    """
    share = counts_V[counts_V > 0].double() / counts_V.sum()
    entropy = float(-(share * share.log()).sum())
    used = int((counts_V > 0).sum())
    return {
        "usage": used / len(counts_V),
        "dead": float(len(counts_V) - used),
        "perplexity": round(math.exp(entropy), 6),
    }


def _distance(model: IVideoGPT, truth: Tensor, made: Tensor) -> float:
    assert model.objective.distance is not None
    pairs = zip(truth.flatten(0, 1).split(64), made.flatten(0, 1).split(64), strict=True)
    device = model.device
    found = [
        model.objective.distance(to_float01(real.to(device)), to_float01(shown.to(device))) for real, shown in pairs
    ]
    return float(torch.cat(found).mean())


@torch.no_grad()
def dynamics(model: IVideoGPT, clips: TensorDict, tell: Tell = quiet) -> Measured:
    """How well codes are predicted one by one, and frames in one go behind the first ones (model in eval mode).

    Columns: `dynamics/ce`, nats for a code given all before it (where queries predict, all that is known in its pass,
    for one draw of the order), and `ce_<j>` of frame j alone; `prediction/psnr`, open loop with the most likely codes,
    beside `psnr_copy`, the last real frame again and again. A model that is told actions is also measured with those of
    another clip (`..._shuffled`): what it loses is what it learned from them. `tell` hears of each few clips.
    """
    sums: dict[str, list[Tensor]] = {}
    shown = None
    for place, rows in enumerate(clips.split(ROWS)):
        tell(place * ROWS, len(clips))
        truth, made, found = _predicted(model, rows, rows["action"])
        found |= _told(model, rows, rows["action"])
        if model.spec.action_dim:
            wrong = rows["action"].roll(1, 0)
            found["dynamics/ce_shuffled"] = _told(model, rows, wrong)["dynamics/ce"]
            found["prediction/psnr_shuffled"] = _predicted(model, rows, wrong)[2]["prediction/psnr"]
        shown = (truth[0], made[0]) if shown is None else shown
        for name, value in found.items():
            sums.setdefault(name, []).append(value.cpu())
    assert shown is not None
    return Measured({name: float(torch.cat(held).mean()) for name, held in sums.items()}, *shown)


def _told(model: IVideoGPT, rows: TensorDict, action_BTA: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of every clip, [B], over all frames that are predicted and for each of them."""
    layout, device = model.layout, model.device
    context_BN, codes_BTK = model.tokenize(rows["context"], rows["pixels"])
    per_frame = context_BN.unflatten(1, (layout.context, layout.codes_context))
    first = 1 if model.config.context == "first_frame" else 0
    known_BTK = model.tokens.decoding.shown(codes_BTK.shape, Seeds(0).torch("measure", device=device), device=device)
    ids_BN, actions_BTA = layout_ids(per_frame, codes_BTK, layout), action_BTA.to(device)
    _, predicting_BfKD = model.tokens.predicting(ids_BN, actions_BTA, known_BFK=known_BTK, first=first)
    supervised = (codes_BTK[:, first:], None if known_BTK is None else known_BTK[:, first:])
    losses_Bf = model.tokens.frame_loss(predicting_BfKD, *supervised)
    values = {f"dynamics/ce_{first + place}": losses_B for place, losses_B in enumerate(losses_Bf.unbind(1))}
    return {"dynamics/ce": torch.stack(list(values.values())).mean(0), **values}


def _predicted(model: IVideoGPT, rows: TensorDict, action_BTA: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Truth and open-loop prediction of the frames behind the observed ones, u8 [B, H, 3, S, S], and their PSNR [B]."""
    observed, frames = model.spec.burn_in, rows["pixels"].shape[1]
    # what led into the observed frames is part of what is known; only what is imagined follows the given actions
    start = TensorDict({key: rows[key][:, :observed] for key in ("pixels", "action")}, batch_size=rows.batch_size)
    start["context"] = rows["context"]
    dream, policy = Dream(model, seeds=Seeds(0)), fixed_actions(action_BTA[:, observed:])
    path = dream.rollout(
        policy, dream.encode(start), 0, frames - observed, stream="measure", draw=0, keys=("pixels",), sample=False
    ).path
    truth, made_BH = rows["pixels"][:, observed:], path["next", "pixels"].cpu()
    last = (rows["pixels"][:, observed - 1] if observed else rows["context"][:, -1])[:, None].expand_as(truth)
    found = {"prediction/psnr": psnr(truth, made_BH).mean(1), "prediction/psnr_copy": psnr(truth, last).mean(1)}
    return truth, made_BH, found
