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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import bandwidth, peak_mib, product_rate, timed
from benchmarks.twin import GREEDY, reprefilling_rollout
from benchmarks.workload import (
    CASES,
    Case,
    Launches,
    Rollout,
    bytes_of_frame,
    engine_of,
    growth,
    imagined,
    rollout,
    set_up,
)
from mbrl.cli.errors import guarded
from mbrl.cli.words import Word, listed, path, whole, words
from mbrl.measure.cost import counted
from worldmodel.rollout.engine import laid_out
from worldmodel.rollout.fused import Precision
from worldmodel.rollout.kv_cache import KVCache
from worldmodel.sequence import string_of_ids
from worldmodel.transformer import TokenModel
from worldmodel.transformer.decoding import AUTOREGRESSIVE, DecodingConfig


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
        frame_gflop: operations of a frame of all rows, counted: two for each multiplication and addition of a product.
        launches: operations that a frame starts, each at least one kernel on a GPU.
        frame_mb: bytes that a frame reads at least, 10^6: the weights and all keys and values once in every pass.
        product_share: frame_gflop per second over what the machine reaches in a product of large float32 matrices.
        bandwidth_share: frame_mb per second over what it reaches in copying a large block.
        peak_mib: most memory that the process has held, the twin's included.
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
    frame_gflop: float
    launches: float
    frame_mb: float
    product_share: float
    bandwidth_share: float
    peak_mib: float


@dataclass(frozen=True)
class Limits:
    """What the machine reaches: operations and bytes per second."""

    products: float
    bandwidth: float


def measure(
    size: str,
    case: Case,
    decoding: DecodingConfig,
    *,
    precisions: list[Precision],
    threads: int,
    device: torch.device,
    limits: Limits,
) -> Iterator[Result]:
    """Engines of these precisions and the twin in turn, on the same random model, context and actions."""
    layout = case.layout
    model, starts_SN, actions_BHA = set_up(size, case, decoding, device)
    context_BN = starts_SN.repeat_interleave(case.copies, 0)
    engines = {how: engine_of(model, case, how) for how in precisions}
    runs: dict[Precision, list[Rollout]] = {how: [] for how in precisions}
    twins: list[tuple[float, Tensor]] = []
    for _ in range(case.repeats + 1):  # the first one warms up
        for how, engine in engines.items():
            runs[how].append(rollout(engine, starts_SN, actions_BHA, case, device))
        twins.append(timed(partial(reprefilling_rollout, model, context_BN, actions_BHA), device))
    twin_ms, slow_BHK = 1e3 * statistics.median(spent for spent, _ in twins[1:]), twins[0][1]
    exact = surprise(model, "float32", context_BN, slow_BHK, actions_BHA)
    for how, run in runs.items():
        engine_ms = 1e3 * statistics.median(one.prefill_s + one.frames_s for one in run[1:])
        frame_s = statistics.median(one.frames_s for one in run[1:]) / case.horizon
        engines[how].rewind(0)
        operations = counted(partial(imagined, engines[how], actions_BHA)) / case.horizon
        engines[how].rewind(0)
        with Launches() as started:
            imagined(engines[how], actions_BHA)
        read = bytes_of_frame(model, case, how)
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
            prefill_ms=1e3 * statistics.median(one.prefill_s for one in run[1:]),
            frame_ms=1e3 * frame_s,
            frames_per_s=case.rows * case.horizon / engine_ms * 1e3,
            tokens_per_s=slow_BHK.numel() / engine_ms * 1e3,
            engine_ms=engine_ms,
            twin_ms=twin_ms,
            ratio=twin_ms / engine_ms,
            equal=all(torch.equal(one.ids_BHK, slow_BHK) for one in run),
            agree=float((run[0].ids_BHK[:, 0] == slow_BHK[:, 0]).float().mean()),
            kv_mib=engines[how].nbytes / 2**20,
            nats=None if decoding.has_queries else surprise(model, how, context_BN, slow_BHK, actions_BHA) - exact,
            frame_gflop=operations / 1e9,
            launches=started.count / case.horizon,
            frame_mb=read / 1e6,
            product_share=operations / frame_s / limits.products,
            bandwidth_share=read / frame_s / limits.bandwidth,
            peak_mib=peak_mib(device),
        )


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


def grown_of(text: str) -> list[str]:
    """Raises: ValueError for what does not grow."""
    if set(found := listed(text)) - {"rows", "horizon", "codes", "copies"}:
        raise ValueError(text)
    return found


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
    "growth": Word("some of rows,horizon,codes,copies", grown_of, [], example="rows,horizon"),
    "threads": whole(2),
    "device": Word("cpu or cuda", default="cpu"),
    "json": path("a file"),
    **dict.fromkeys(("rows", "horizon", "repeats", "copies"), whole(None)),
}


def main(arguments: list[str]) -> int:
    """Measure, print a table and, with json=path, write it; 1 if any codes differ."""
    options, results = words("benchmarks.rollout", arguments, KEYS), []
    cases = list(cases_of(options))  # whatever is wrong with one of them is said before the first is measured
    device = torch.device(options["device"])
    torch.set_num_threads(options["threads"])
    limits = Limits(products=product_rate(device), bandwidth=bandwidth(device))
    print(f"one product {limits.products / 1e9:.1f} GFLOP/s, one copy {limits.bandwidth / 1e9:.1f} GB/s")
    print(
        f"{'size':11} {'codes':>5} {'decoding':14} {'precision':9} {'rows':>4} {'copies':>6} {'frames':>6}"
        f" {'prefill ms':>10} {'ms/frame':>9} {'GFLOP':>7} {'share':>5} {'MB':>8} {'share':>5}"
        f" {'frames/s':>9} {'tokens/s':>9} {'engine ms':>10} {'twin ms':>10}"
        f" {'ratio':>6} {'K/V MiB':>8}  codes equal"
    )
    lines = []
    for size, case, decoding in cases:
        for r in measure(
            size,
            case,
            decoding,
            precisions=options["precisions"],
            threads=options["threads"],
            device=device,
            limits=limits,
        ):
            results.append(r)
            print(
                f"{r.size:11} {r.codes:5d} {r.decoding:14} {r.precision:9} {r.rows:4d} {r.copies:6d} {r.horizon:6d}"
                f" {r.prefill_ms:10.1f} {r.frame_ms:9.2f} {r.frame_gflop:7.2f} {r.product_share:5.2f} {r.frame_mb:8.1f}"
                f" {r.bandwidth_share:5.2f} {r.frames_per_s:9.0f} {r.tokens_per_s:9.0f}"
                f" {r.engine_ms:10.1f} {r.twin_ms:10.1f} {r.ratio:6.2f} {r.kv_mib:8.1f}  {'yes' if r.equal else 'NO'}"
                f" ({100 * r.agree:.1f} % of the first frame's)"
                f"{'' if r.nats is None else f', {r.nats:+.4f} nats'}",
                flush=True,
            )
        for along in options["growth"]:
            lines.append(growth(size, case, decoding, along, device))
            print(lines[-1], flush=True)
    print(f"operations that a frame starts: {', '.join(f'{r.size} {r.decoding} {r.launches:.0f}' for r in results)}")
    print(f"peak {peak_mib(device):.0f} MiB")
    if options["json"]:
        found = {
            "product_gflops": limits.products / 1e9,
            "bandwidth_gbs": limits.bandwidth / 1e9,
            "rollouts": [asdict(result) for result in results],
            "growth": [line._asdict() for line in lines],
        }
        options["json"].write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(result.equal for result in results if result.precision == "float32") else 1


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug=False))
