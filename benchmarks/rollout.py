"""How fast the rollout engine is: against a twin that reads the whole prefix again for every frame.

Random weights, no data, no tokenizer. `python -m benchmarks.rollout sizes=tiny,base138m json=out.json`, or
`sizes=tiny codes=4,16 decodings=autoregressive,parallel,masked2,masked3`, each of them with each of the others.
The exit code is 1 if an engine with precision float32 and the twin do not draw the same codes under argmax.
"""

# B rows, t context frames, N codes of a context frame, H imagined frames, K codes of a frame, A action, T new positions

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from mbrl.cli.errors import guarded
from mbrl.cli.words import Word, listed, path, whole, words
from worldmodel.layout import TokenLayout
from worldmodel.rollout import SamplingConfig, TokenEngine
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.rollout.passes import draw_in_passes
from worldmodel.seeds import Seeds
from worldmodel.sequence import layout_ids, string_of_ids
from worldmodel.transformer import HeadConfig, TokenModel, TransformerConfig
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig, Sight

PUBLISHED = TokenLayout(context=2)
SMALL = TokenLayout(context=1, codes_context=64, codes_future=4, vocab_context=512, vocab_future=512)
ACTION_DIM = 4
GREEDY = SamplingConfig(temperature=0.0, top_k=0, codes_only=False)
CONFIGS = Path(__file__).parents[1] / "configs" / "transformer"


@dataclass(frozen=True)
class Case:
    """What is measured of one size unless the command line says otherwise."""

    layout: TokenLayout
    rows: int
    horizon: int
    repeats: int
    copies: int = 1


CASES = {
    "micro": Case(SMALL, 64, 10, 7),
    "tiny": Case(SMALL, 64, 10, 7),
    "s": Case(SMALL, 16, 10, 3),
    "base138m": Case(PUBLISHED, 4, 4, 3),
    "medium436m": Case(PUBLISHED, 1, 4, 1),
}


@dataclass(frozen=True)
class Result:
    """One row of the table; medians over repeats, whole rollouts include their prefills.

    Attributes:
        codes: of a frame.
        decoding: what predicts them (`worldmodel.transformer.decoding`), with the number of passes if it is masked.
        copies: rows that go on from one start.
        prefill_ms: the engine's one prefill of the context.
        frame_ms: the engine's time for one imagined frame after the prefill.
        frames_per_s: imagined frames of all rows per second of a whole rollout by the engine.
        tokens_per_s: drawn codes, likewise.
        engine_ms: whole rollout by the engine.
        twin_ms: whole rollout by the twin.
        ratio: twin_ms / engine_ms.
        equal: whether all codes agree under argmax.
        agree: share of the first frame's codes that do; what follows on others may differ.
        kv_mib: what the engine holds for keys and values.
        nats: cross-entropy of the twin's frames as the engine reads them, minus that of exact products; None for
            decodings in passes, which do not read a frame to predict it.
    """

    size: str
    codes: int
    decoding: str
    precision: str
    rows: int
    copies: int
    horizon: int
    threads: int
    device: str
    prefill_ms: float
    frame_ms: float
    frames_per_s: float
    tokens_per_s: float
    engine_ms: float
    twin_ms: float
    ratio: float
    equal: bool
    agree: float
    kv_mib: float
    nats: float | None


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


def measure(
    size: str,
    case: Case,
    decoding: DecodingConfig,
    *,
    precisions: list[Precision],
    threads: int,
    device: torch.device,
) -> Iterator[Result]:
    """Engines of these precisions and the twin in turn, on the same random model, context and actions."""
    torch.set_num_threads(threads)
    layout, draw = case.layout, Seeds(0).torch("benchmark")
    model = random_model(size, layout, decoding, draw).to(device)
    shape = (case.rows // case.copies, layout.context * layout.codes_context)
    context_BN = torch.randint(layout.vocab_context, shape, generator=draw).to(device)
    actions_BHA = (torch.rand(case.rows, case.horizon, ACTION_DIM, generator=draw) * 2 - 1).to(device)
    starts = (context_BN, context_BN.new_empty(len(context_BN), 0, layout.codes_future), None)
    context_BN = context_BN.repeat_interleave(case.copies, 0)
    engines = {
        how: TokenEngine(
            model, rows=case.rows, frames=case.horizon, sampling=GREEDY, weights=laid_out(model, GREEDY, how)
        )
        for how in precisions
    }
    runs: dict[Precision, list[tuple[float, float, Tensor]]] = {how: [] for how in precisions}
    twins: list[tuple[float, Tensor]] = []
    for _ in range(case.repeats + 1):  # the first one warms up
        for how, engine in engines.items():
            prefill, _ = _timed(partial(engine.prefill, *starts, copies=case.copies), device)
            runs[how].append((prefill, *_timed(partial(imagined, engine, actions_BHA), device)))
        twins.append(_timed(partial(reprefilling_rollout, model, context_BN, actions_BHA), device))
    twin_ms, slow_BHK = 1e3 * statistics.median(spent for spent, _ in twins[1:]), twins[0][1]
    exact = surprise(model, "float32", context_BN, slow_BHK, actions_BHA)
    for how, run in runs.items():
        engine_ms = 1e3 * statistics.median(prefill + frames for prefill, frames, _ in run[1:])
        yield Result(
            size=size,
            codes=layout.codes_future,
            decoding=decoding.kind + str(decoding.passes or ""),
            precision=how,
            rows=case.rows,
            copies=case.copies,
            horizon=case.horizon,
            threads=threads,
            device=str(device),
            prefill_ms=1e3 * statistics.median(prefill for prefill, _, _ in run[1:]),
            frame_ms=1e3 * statistics.median(frames for _, frames, _ in run[1:]) / case.horizon,
            frames_per_s=case.rows * case.horizon / engine_ms * 1e3,
            tokens_per_s=slow_BHK.numel() / engine_ms * 1e3,
            engine_ms=engine_ms,
            twin_ms=twin_ms,
            ratio=twin_ms / engine_ms,
            equal=all(torch.equal(found_BHK, slow_BHK) for _, _, found_BHK in run),
            agree=float((run[0][2][:, 0] == slow_BHK[:, 0]).float().mean()),
            kv_mib=engines[how].nbytes / 2**20,
            nats=None if decoding.has_queries else surprise(model, how, context_BN, slow_BHK, actions_BHA) - exact,
        )


def random_model(size: str, layout: TokenLayout, decoding: DecodingConfig, draw: torch.Generator) -> TokenModel:
    """A model of this size with weights from `draw`, as it is for imagining."""
    transformer = TransformerConfig(**{k: v for k, v in _preset(size).items() if k != "_target_"})
    heads = HeadConfig(action="slot", reward="none", bins=0, low=0.0, high=0.0, width=0, action_recon=0.0)
    model = TokenModel(
        transformer, layout, condition_dim=ACTION_DIM, heads=heads, feature_dim=0, continues=False, generator=draw,
        decoding=decoding,
    )  # fmt: skip
    torch.nn.init.normal_(model.action_linear.weight, std=0.02, generator=draw)  # else actions would not matter
    return model.eval()


def imagined(engine: TokenEngine, actions_BHA: Tensor) -> Tensor:
    """Most likely ids [B, H, K] behind what the engine holds."""
    return torch.stack([engine.sample_frame(action_BA, None).ids_BK for action_BA in actions_BHA.unbind(1)], 1)


@torch.no_grad()
def surprise(model: TokenModel, how: Precision, context_BN: Tensor, ids_BHK: Tensor, actions_BHA: Tensor) -> float:
    """Cross-entropy of given codes in nats, read in one pass of products of this precision."""
    weights, layout, config = laid_out(model, GREEDY, how), model.layout, model.llm.config
    weights.refresh()
    string_BN = string_of_ids(context_BN, ids_BHK, layout)
    rows, positions = string_BN.shape
    cache = KVCache(
        layers=config.layers,
        rows=rows,
        heads=config.heads,
        positions=positions,
        channels=config.hidden // config.heads,
        dtype=model.llm.lm_head.weight.dtype,
        device=string_BN.device,
    )
    hidden_BND = weights(model.embed(string_BN, actions_BHA), cache, keep=positions - layout.prelude)
    hidden_BHKD = hidden_BND.unflatten(1, (ids_BHK.shape[1], layout.stride))[:, :, :-1]  # each sees the one before
    return float(F.cross_entropy(weights.logits(hidden_BHKD).flatten(0, 2), ids_BHK.flatten()))


def _timed(work: Callable[[], object], device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def _preset(size: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{size}.yaml").read_text())


def sizes_of(text: str) -> list[str]:
    """Raises: ValueError for a size that is none."""
    if unknown := set(sizes := listed(text)) - set(CASES):
        raise ValueError(unknown)
    return sizes


def decodings_of(text: str) -> list[DecodingConfig]:
    """Raises: ValueError for a decoding that is none.

    >>> [decoding.passes for decoding in decodings_of("parallel,masked3")]
    [None, 3]
    """
    found = []
    for name in listed(text):
        kind: Any = name.rstrip("0123456789")  # the class knows which there are
        passes = name.removeprefix(kind)
        found.append(DecodingConfig(kind=kind, passes=int(passes) if passes else None))
    return found


def codes_of(text: str) -> list[int]:
    """Raises: ValueError for what is no number of codes."""
    found = [int(codes) for codes in listed(text)]
    if min(found) < 1:
        raise ValueError(text)
    return found


def precisions_of(text: str) -> list[Precision]:
    """Raises: ValueError for another one."""
    if set(found := listed(text)) - set(get_args(Precision)):
        raise ValueError(text)
    return cast(list[Precision], found)


def cases_of(options: dict[str, Any]) -> Iterator[tuple[str, Case, DecodingConfig]]:
    """What the words ask for. Raises: ValueError where they do not go together."""
    for size, codes, decoding in itertools.product(options["sizes"], options["codes"], options["decodings"]):
        default = CASES[size]
        layout = replace(default.layout, codes_future=codes or default.layout.codes_future)
        decoding.draws(layout.codes_future)
        sizes = (options[k] or getattr(default, k) for k in ("rows", "horizon", "repeats", "copies"))
        if (case := Case(layout, *sizes)).rows % case.copies:
            raise ValueError(f"rows must be a multiple of copies={case.copies} (got {case.rows})")
        yield size, case, decoding


KEYS = {
    "sizes": Word(f"some of {','.join(CASES)}", sizes_of, ["tiny", "base138m"]),
    "codes": Word("whole numbers >= 1, the codes of a frame", codes_of, [None], example="4,16"),
    "decodings": Word("some of autoregressive,parallel,masked<passes>", decodings_of, [AUTOREGRESSIVE]),
    "precisions": Word("some of float32,bfloat16,int8, of the engine's products", precisions_of, ["float32"]),
    "threads": whole(2),
    "device": Word("cpu or cuda", default="cpu"),
    "json": path("a file"),
    **dict.fromkeys(("rows", "horizon", "repeats", "copies"), whole(None)),
}


def main(arguments: list[str]) -> int:
    """Measure, print a table and, with json=path, write it; 1 if any codes differ."""
    options, results = words("benchmarks.rollout", arguments, KEYS), []
    cases = list(cases_of(options))  # whatever is wrong with one of them is said before the first is measured
    print(
        f"{'size':11} {'codes':>5} {'decoding':14} {'precision':9} {'rows':>4} {'copies':>6} {'frames':>6}"
        f" {'prefill ms':>10} {'ms/frame':>9} {'frames/s':>9} {'tokens/s':>9} {'engine ms':>10} {'twin ms':>10}"
        f" {'ratio':>6} {'K/V MiB':>8}  codes equal"
    )
    for size, case, decoding in cases:
        how = {"threads": options["threads"], "device": torch.device(options["device"])}
        for r in measure(size, case, decoding, precisions=options["precisions"], **how):
            results.append(r)
            print(
                f"{r.size:11} {r.codes:5d} {r.decoding:14} {r.precision:9} {r.rows:4d} {r.copies:6d} {r.horizon:6d}"
                f" {r.prefill_ms:10.1f} {r.frame_ms:9.2f} {r.frames_per_s:9.0f} {r.tokens_per_s:9.0f}"
                f" {r.engine_ms:10.1f} {r.twin_ms:10.1f} {r.ratio:6.2f} {r.kv_mib:8.1f}  {'yes' if r.equal else 'NO'}"
                f" ({100 * r.agree:.1f} % of the first frame's)"
                f"{'' if r.nats is None else f', {r.nats:+.4f} nats'}",
                flush=True,
            )
    if options["json"]:
        options["json"].write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 0 if all(result.equal for result in results if result.precision == "float32") else 1


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
