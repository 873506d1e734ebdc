"""Say what this machine can do: rendering, GPU, memory, versions.

usage: mbrl doctor [key=value ...]

Prints one line for each check: ok, warn (it works, but slowly or not everywhere) or fail (something needed is missing).
The overrides of `mbrl train` are understood, so that memory is counted for the run you mean.
Exit code 0 unless a line says fail.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import mbrl
from mbrl.cli.errors import BUG, DONE, one_line
from mbrl.files import sized

Level = Literal["ok", "warn", "fail"]
VERSIONS = ("torch", "tensordict", "torchrl", "numpy", "hydra-core", "gymnasium", "metaworld", "mujoco")
IMPORTED = ("worldmodel", "agents", "mbrl")
OUR_NAMES = (*IMPORTED, "benchmarks", "configs")
DECISIONS, WITHIN_S = 25, 1.0  # per speed measurement: enough for two digits, and less where drawing is slow
ENOUGH_FRAMES = 40.0  # frames/s below which drawing, not learning, is what one waits for
MOST_OF_MEMORY = 0.7
ROWS = 64  # of the rollout that is timed


@dataclasses.dataclass(frozen=True)
class Finding:
    """One printed line; `warn`: it works, but slowly or not everywhere; `fail`: something needed is missing."""

    level: Level
    text: str


def run(args: list[str]) -> int:
    """Prints every finding; exit code 1 if one says fail. Overrides of `mbrl train` choose the run that is meant."""
    from mbrl.cli.train import compose_new

    plain, line = compose_new("train", args)
    refuse(plain)
    worst = DONE
    for name, check in (CHECKS if plain["init"] is None else {"init": lambda plain: sizes(line), **CHECKS}).items():
        for finding in examined(lambda check=check: check(plain)):  # type: ignore[misc]
            print(f"{finding.level:4}  {name:9} {finding.text}", flush=True)
            worst = BUG if finding.level == "fail" else worst
    return worst


def examined(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The check's findings; one that breaks is itself a finding, and the others still run."""
    try:
        yield from check()
    except Exception as error:  # whatever a driver or a foreign package throws
        yield Finding("fail", f"{type(error).__name__}: {one_line(error)}")


def refuse(plain: Mapping[str, Any]) -> None:
    """Raises: ValueError for a value that no machine could do. Whether the device is there is a finding."""
    try:
        from mbrl.run.assemble import GROUPS
        from mbrl.rundir.build import make
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in IMPORTED:
            raise
        return  # what is not installed is a finding too
    for name in GROUPS:
        make(plain[name] | ({"device": "cpu"} if name == "compute" else {}), name, trusted=True)


def sizes(line: str) -> Iterator[Finding]:
    """Which sizes came with the weights that are begun from."""
    yield Finding("ok", line or "the sizes asked for are those of the weights")


def versions(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """Python and the packages that results depend on."""
    found, missing = [f"python {platform.python_version()}"], []
    for name in VERSIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", ", ".join(found))
    if missing:
        yield Finding("fail", f"not installed: {', '.join(missing)}; run make setup")


def names(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether Python finds our packages under our names, or somebody else's."""
    home = Path(mbrl.__file__).resolve().parents[1]
    providers, shadowed = metadata.packages_distributions(), False
    for name in OUR_NAMES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places and home / name not in places:
            shadowed = True
            needed: Level = "fail" if name in IMPORTED else "warn"
            yield Finding(
                needed, f"`import {name}` finds {places[0]}, not ours: remove that package or use an own environment"
            )
        others = sorted({other for other in providers.get(name, []) if other.lower() != "tokendream"})
        if others and name in IMPORTED:  # the other names belong to folders of a checkout, which comes first
            shadowed = True
            yield Finding(
                "warn", f"{name} is also installed by {', '.join(others)}; whichever comes first on sys.path wins"
            )
    if not shadowed:
        yield Finding("ok", f"no foreign package uses our names ({', '.join(OUR_NAMES)})")
    if importlib.util.find_spec("wandb"):
        yield Finding(
            "ok", "wandb may greet with `Detected [agents] in use`: it means another package, which is not here"
        )


def threads(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """Cores that this process may use against the threads that the run asks for."""
    import torch

    from mbrl.rundir.machine import overruled

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    asked = plain["compute"]["threads"]
    text = f"{cores} cores may be used, compute.threads={asked}{overruled(asked)}"
    if asked > cores:
        yield Finding("warn", f"{text}: more threads than cores are slower; set compute.threads={cores}")
    else:
        yield Finding("ok", f"{text}, {torch.backends.cpu.get_cpu_capability()}")


def gpu(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """CUDA devices, and whether the one that the run asks for is there."""
    import torch

    count, device = torch.cuda.device_count(), str(plain["compute"]["device"])
    for index in range(count):
        at = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index} {at.name}, {at.total_memory / 2**30:.0f} GiB, compute {at.major}.{at.minor}")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        yield Finding("fail", f"compute.device={device} is not there ({count} CUDA devices); use compute.device=cpu")
    elif not count:
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Finding("ok", f"none ({build}); the CPU presets need none")


def rollout(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """How fast the run's own transformer imagines here (random weights), and what could make it faster."""
    import torch

    from mbrl.rundir.build import make
    from mbrl.rundir.folder import world_model
    from worldmodel.rollout.engine import TokenEngine, laid_out
    from worldmodel.transformer.token_model import TokenModel

    if (name := world_model(plain)) != "ivideogpt":
        yield Finding("ok", f"the world model is {name}: no transformer to time")
        return
    parts = {name: make(plain[name], name, trusted=True) for name in ("tokenizer", "transformer", "worldmodel")}
    task, protocol = (make(plain[name], name, trusted=True) for name in ("task", "protocol"))
    action_dim = task.facts(protocol).action_dim
    layout, device = parts["tokenizer"].layout, "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    model = TokenModel(
        parts["transformer"],
        layout,
        condition_dim=action_dim,
        heads=parts["worldmodel"].heads,
        feature_dim=1,  # the heads are not used here
        continues=False,
        generator=generator,
        decoding=parts["worldmodel"].decoding,
    ).to(device)
    frames, sampling, precision = (
        getattr(parts["worldmodel"], key) for key in ("max_frames", "sampling", "rollout_precision")
    )
    weights = laid_out(model, sampling, precision)
    engine = TokenEngine(model, rows=ROWS, frames=frames, sampling=sampling, weights=weights)
    context = torch.zeros(ROWS, layout.context * layout.codes_context, dtype=torch.int64, device=device)
    action, draws = torch.zeros(ROWS, action_dim, device=device), torch.Generator(device).manual_seed(0)
    engine.prefill(
        context, context.new_zeros(ROWS, 0, layout.codes_future), torch.zeros(ROWS, 0, action_dim, device=device)
    )
    engine.sample_frame(action, engine.uniform(draws))  # the first frame allocates
    most, frames, begin = parts["worldmodel"].max_frames - 1, 0, time.perf_counter()
    while frames < most and (not frames or time.perf_counter() - begin < WITHIN_S):
        last, frames = engine.sample_frame(action, engine.uniform(draws)), frames + 1
    finite = bool(torch.isfinite(last.hidden_BD).all())  # sync
    rate = ROWS * frames / (time.perf_counter() - begin)
    yield Finding(
        "ok" if finite else "fail",
        f"{rate:.0f} imagined frames/s with {ROWS} rows on {device}, {engine.nbytes / 1e6:.0f} MB of keys and values",
    )
    if device == "cuda":
        graphs, why = captured()
        low = torch.cuda.is_bf16_supported()
        text = f"CUDA graphs: {'yes' if graphs else why}, bfloat16: {'yes' if low else 'no'}"
        yield Finding("ok" if graphs and low else "warn", text)
    else:
        yield Finding(
            "ok", f"CUDA graphs need a CUDA device; on the CPU the engine runs eagerly with products in {precision}"
        )


def captured() -> tuple[bool, str]:
    """Whether a small graph can be captured and replayed with the right result, and why not."""
    import torch

    try:
        value, side = torch.ones(4, device="cuda"), torch.cuda.Stream()
        with torch.cuda.stream(side):  # warm-up away from the default stream, as capture demands
            value * 2
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = value * 2
        value.fill_(3.0)
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return False, one_line(error)[:80]
    return bool((doubled == 6.0).all()), "a replayed graph gave a wrong result"


def memory(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """What the replay of this run will need of memory, against what is free."""
    from mbrl.replay.store import available_ram

    protocol, schedule = plain["protocol"], plain["schedule"]
    kept = min(plain["replay"]["capacity"], schedule["total"] // protocol["action_repeat"])
    yield room(plain, kept, "ram", available_ram(), "lower replay.capacity")


def disk(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """What all episodes of this run will need of the disk, against what is free."""
    folder = Path(plain["run_dir"] or ".").absolute()
    while not folder.exists():
        folder = folder.parent
    collected = plain["schedule"]["total"] // plain["protocol"]["action_repeat"]
    yield room(plain, collected, "disk", shutil.disk_usage(folder).free, "choose another run_dir")


def room(plain: Mapping[str, Any], decisions: int, of: str, free: int, mend: str) -> Finding:
    """Whether so many decisions, and the demonstrations beside them, find room."""
    from mbrl.run.validate import footprint
    from mbrl.rundir.build import make

    groups = {name: make(plain[name], name, trusted=True) for name in ("task", "protocol", "worldmodel")}
    side, count = plain["protocol"]["image"], decisions + plain["demos"] * plain["protocol"]["decisions"]
    need = getattr(footprint(groups, count), of)
    text = (
        f"replay: {count} decisions of {side}x{side} x {need / count:.0f} bytes = {sized(need)}, {sized(free)} are free"
    )
    if need > free:
        return Finding("fail", f"{text}; {mend}")
    return Finding("warn" if need > MOST_OF_MEMORY * free else "ok", text)


def worlds(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """What the run's task says of its worlds, and whether they can do what the protocol asks."""
    from mbrl.rundir.build import make

    task, protocol = (make(plain[name], name, trusted=True) for name in ("task", "protocol"))
    facts = task.facts(protocol)
    has = [word for word, true in (("an expert", facts.expert), ("snapshots", facts.snapshot_dim)) if true]
    yield Finding(
        "ok",
        f"{task.name} of {len(task.tasks)} tasks: {facts.action_dim} {'choices' if facts.discrete else 'actions'}, "
        f"proprioception {facts.proprio_dim}, state {facts.state_dim}{''.join(f', {word}' for word in has)}, "
        f"{'success' if facts.success else 'no success: ranked by returns'}",
    )
    for complaint in task.complaints(protocol):
        yield Finding("fail", complaint)


def rendering(plain: Mapping[str, Any]) -> Iterator[Finding]:
    """Which back end draws, and how fast the run's own task comes in the `fast` and in the `full` quality."""
    from mbrl.envs.gl import drawn_by
    from mbrl.envs.make import frames_per_second
    from mbrl.rundir.build import make

    yield Finding("ok", drawn_by())
    task, protocol = (make(plain[name], name, trusted=True) for name in ("task", "protocol"))
    timed: dict[str, Any] = {"decisions": DECISIONS, "within_s": WITHIN_S}
    rates = {
        quality: frames_per_second(task, dataclasses.replace(protocol, quality=quality), **timed)
        for quality in ("fast", "full")
    }
    text = (
        f"{task.name} {protocol.image}x{protocol.image}, action repeat {protocol.action_repeat}: "
        f"{rates['fast']:.0f} frames/s fast, {rates['full']:.0f} full, ratio {rates['fast'] / rates['full']:.1f}; "
        f"protocol {protocol.name} draws {protocol.quality}"
    )
    slow = rates[protocol.quality] < ENOUGH_FRAMES
    mend = "; a graphics card's EGL driver or protocol.quality=fast is faster" if slow else ""
    yield Finding("warn" if slow else "ok", text + mend)
    if (workers := plain["compute"]["workers"]) > 1:
        counts: dict[str, Any] = {"decisions": DECISIONS, "rows": workers}
        alone, together = (frames_per_second(task, protocol, **counts, workers=n) for n in (0, workers))
        text = f"{workers} rows in {workers} workers {together:.0f} frames/s, in one process {alone:.0f}"
        yield Finding("ok" if together > alone else "warn", f"{text}, ratio {together / alone:.2f}")


CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[Finding]]] = {
    "versions": versions,
    "names": names,
    "threads": threads,
    "gpu": gpu,
    "rollout": rollout,
    "memory": memory,
    "disk": disk,
    "worlds": worlds,
    "rendering": rendering,
}
