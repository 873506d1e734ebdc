"""What the configs of a run must agree on: one pure rule each, checked before anything heavy is built.

Ranges of single values live beside the values (each dataclass's `__post_init__`); here stand the rules between two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agents.api import asked
from mbrl.envs.simulator import WorldFacts
from mbrl.files import sized
from mbrl.replay.store import Footprint, Stored, available_ram, expected_bytes
from worldmodel.answers import method, shown
from worldmodel.none import NullModelConfig
from worldmodel.rollout.fused import multiplies_bytes
from worldmodel.rollout.pool import kv_bytes


def check_together(groups: Mapping[str, Any], *, demos: int = 0, recorded: bool = False) -> None:
    """`demos`: demonstrations that the replay holds beside its capacity; `recorded`: nobody has to play them.

    Raises: ValueError with the first disagreement: the key, its value, what it is up against, and a mend.
    """
    for complaint in complaints(groups, demos=demos, recorded=recorded):
        raise ValueError(complaint)


def complaints(groups: Mapping[str, Any], *, demos: int = 0, recorded: bool = False) -> Iterator[str]:
    """Every disagreement, most basic first."""
    yield from worlds(groups, 0 if recorded else demos)
    yield from weights(groups)
    yield from owed_to(groups)
    yield from dreams(groups)
    if "tokenizer" in asked(groups["worldmodel"]):
        yield from images(groups)
        yield from positions(groups)
        yield from decodings(groups)
        yield from precisions(groups)
        yield from rollouts(groups)
    if groups["worldmodel"].parts:
        yield from clips(groups)
        yield from embeddings(groups)
        yield from horizons(groups)
        yield from rewards(groups)
        yield from thresholds(groups)
        yield from openings(groups)
    yield from imitations(groups, demos)
    yield from amounts(groups, demos)


def check_recorded(stored: Iterable[Stored], widths: Mapping[str, int]) -> None:
    """Raises: ValueError where replay was recorded when the task told other numbers (`widths`) than now."""
    for one in stored:
        for key in ("proprio", "state"):
            width = getattr(one.episode, key).shape[1]
            if width != widths[key]:
                raise ValueError(
                    f"replay/{one.name} holds {width} numbers of {key}, the task now tells {widths[key]}: continue "
                    "this run with the version that began it (run.json), or begin a new one"
                )


def imitations(groups: Mapping[str, Any], demos: int) -> Iterator[str]:
    """Whom the agent imitates is there."""
    outer = groups["agent"]
    agents: dict[str, Any] = {"agent": outer, "agent.inner": getattr(outer, "inner", None)}
    for key, agent in agents.items():
        if getattr(agent, "imitates", False) and not demos:
            without = f"; or set {key}.bc_coef=0 (got {agent.bc_coef})" if hasattr(agent, "bc_coef") else ""
            yield f"{key} ({type(agent).__name__}) needs demonstrations to imitate: set demos=5 or demos=DIR{without}"


def worlds(groups: Mapping[str, Any], demos: int) -> Iterator[str]:
    """The world can do what the protocol asks of it, and gives what the world model reads and the agents ask."""
    task, protocol = groups["task"], groups["protocol"]
    yield from task.complaints(protocol)
    facts = task.facts(protocol)
    if not isinstance(facts, WorldFacts):
        yield f"{method(task, 'facts')} must return WorldFacts (got {shown(facts)})"
        return
    for key, width in facts.widths(snapshots=True).items():
        if key in groups["worldmodel"].obs_keys and not width:
            yield f"worldmodel reads {key}, which {task.name} does not tell; choose another worldmodel or task"
    if protocol.success_bonus and not facts.success:
        yield f"protocol.success_bonus={protocol.success_bonus} needs a success, which {task.name} knows none of; set 0"
    if facts.expert:
        return
    if demos:
        yield f"demos={demos} needs a scripted expert, and {task.name} has none; leave demos out or give demos=DIR"
    for name in ("agent", "prefill"):
        if "expert" in asked(groups[name]):
            yield f"{name} asks a scripted expert, and {task.name} has none; choose another, for example {name}=random"


def owed_to(groups: Mapping[str, Any]) -> Iterator[str]:
    """Updates are owed to the parts that the world model has, and to no others."""
    model, schedule = groups["worldmodel"], groups["schedule"]
    has = f"the world model has {' and '.join(model.parts) or 'nothing'} to fit"
    for part, cadence in schedule.fits.items():
        if part not in model.parts and cadence.ever:
            yield (
                f"schedule.{part}.initial and updates must be 0: {has} "
                f"(got {cadence.initial} and {cadence.updates}); leave both out"
            )
    for part in model.parts:
        if part not in schedule.fits or not hasattr(groups["fit"], part):
            yield f"schedule.{part} and fit.{part} are missing: {has}; give both, in classes that have such a key"
    if not model.parts and groups["fit"].random_shift:
        yield f"fit.random_shift must be 0: {has} (got {groups['fit'].random_shift}); leave it out"
    if not model.parts and schedule.gate.episodes:
        yield f"schedule.gate.episodes must be 0: {has} (got {schedule.gate.episodes}); leave the gate out"


def dreams(groups: Mapping[str, Any]) -> Iterator[str]:
    """Who dreams has a world model."""
    for name in ("agent", "prefill"):
        if isinstance(groups["worldmodel"], NullModelConfig) and "dream" in asked(groups[name]):
            yield (
                f"{name} needs a world model to dream in (got {type(groups[name]).__name__} with worldmodel=none); "
                f"choose another worldmodel, or an agent without dreams, for example {name}=random"
            )


def thresholds(groups: Mapping[str, Any]) -> Iterator[str]:
    """The gate asks for no more codes than there are."""
    needed, there = groups["schedule"].gate.codes_alive, groups["tokenizer"].vocab_future
    if needed and "tokenizer" not in asked(groups["worldmodel"]):
        yield f"schedule.gate.codes_alive must be 0 with a world model without codes (got {needed}); leave it out"
    elif needed > there:
        yield (
            f"schedule.gate.codes_alive={needed} must be <= tokenizer.vocab_future={there}, the codes that there are; "
            f"lower it or choose a larger tokenizer"
        )


def openings(groups: Mapping[str, Any]) -> Iterator[str]:
    """A gate that waits for the world model waits for something that happens."""
    schedule, part = groups["schedule"], groups["worldmodel"].parts[-1]
    cadence = schedule.fits[part]
    if schedule.gate.episodes and not cadence.ever:
        yield (
            f"schedule.gate.episodes={schedule.gate.episodes} waits for a world model that is never fitted; set "
            f"schedule.{part}.initial or updates above 0, or "
            "schedule.gate={episodes: 0, reward_r2: 0, codes_alive: 0}"
        )


def images(groups: Mapping[str, Any]) -> Iterator[str]:
    """Frames are tokenized as they are drawn."""
    image, tokenizer = groups["protocol"].image, groups["tokenizer"]
    if tokenizer.image != image:
        yield (
            f"tokenizer.image={tokenizer.image} must equal protocol.image={image}; "
            f"set protocol.image={tokenizer.image}, or choose another tokenizer"
        )


def positions(groups: Mapping[str, Any]) -> Iterator[str]:
    """A whole segment of tokens fits into the transformer."""
    frames, layout = groups["worldmodel"].max_frames, groups["tokenizer"].layout
    needed, there = layout.length(frames), groups["transformer"].positions
    if needed > there:
        fitting = max(0, (there - layout.prelude) // layout.stride)
        yield (
            f"worldmodel.max_frames={frames} needs {needed} token positions, transformer.positions={there}; "
            f"lower worldmodel.max_frames to {fitting} or raise transformer.positions to {needed}"
        )


def decodings(groups: Mapping[str, Any]) -> Iterator[str]:
    """Each pass that draws a frame has a code to draw (a user's own world model may know no such passes)."""
    passes = getattr(getattr(groups["worldmodel"], "decoding", None), "passes", None) or 1
    if passes > (codes := groups["tokenizer"].layout.codes_future):
        yield (
            f"worldmodel.decoding.passes={passes} must be <= {codes}, the codes of a frame: each pass draws one at "
            f"least; lower it to {codes} or choose a tokenizer with more codes"
        )


def precisions(groups: Mapping[str, Any]) -> Iterator[str]:
    """Bytes are multiplied where the run is (a user's own world model may know no such choice)."""
    precision, device = getattr(groups["worldmodel"], "rollout_precision", ""), groups["compute"].device
    if precision == "int8" and not multiplies_bytes(device):
        yield (
            f"worldmodel.rollout_precision=int8 needs an x86 CPU with VNNI (got compute.device={device}); set bfloat16"
        )


def rollouts(groups: Mapping[str, Any]) -> Iterator[str]:
    """Keys and values of all dreams that go on at once fit into memory (a card says itself what it has)."""
    agent, model, compute = groups["agent"], groups["worldmodel"], groups["compute"]
    if "dream" not in asked(agent) or compute.device != "cpu":
        return
    sizes, free = (groups["transformer"], groups["tokenizer"].layout), available_ram()
    for key, starts in (("batch_size", 0), ("rollouts", 0), ("candidates", compute.rows)):

        def needed(dreams: int, starts: int = starts) -> int:
            rows = dreams * (starts or 1)
            return kv_bytes(*sizes, rows=rows, frames=model.max_frames, starts=starts, shared=model.burn_in)

        most = dreams = getattr(agent, key, 0)
        if dreams and needed(dreams) > free:
            while most > 1 and needed(most) > free:
                most = most // 2 if needed(most // 2) > free else most - 1
            yield (
                f"agent.{key}={dreams} needs {sized(needed(dreams))} of memory for the keys and values of "
                f"transformer.layers={groups['transformer'].layers}, {sized(free)} are free; "
                f"lower agent.{key} to {most}"
            )


def embeddings(groups: Mapping[str, Any]) -> Iterator[str]:
    """Embeddings are composed of levels only where codes have any (a user's own world model may know neither)."""
    if getattr(groups["worldmodel"], "embedding", "") == "levels" and groups["tokenizer"].quantizer != "fsq":
        yield (
            f"worldmodel.embedding=levels needs tokenizer.quantizer=fsq, whose codes have levels "
            f"(got {groups['tokenizer'].quantizer}); set worldmodel.embedding=table"
        )


def horizons(groups: Mapping[str, Any]) -> Iterator[str]:
    """An agent imagines no further than the world model is trained: to the end of its clips, not of its positions."""
    model, last = groups["worldmodel"], groups["worldmodel"].parts[-1]
    trained = getattr(groups["fit"], last).length
    horizon = getattr(groups["agent"], "horizon", 0)
    real, stack = model.burn_in, getattr(groups["agent"], "stack", 0)
    seen, what = (stack, "the stack of frames") if stack > real else (real, "worldmodel.burn_in")
    needed = seen + horizon if horizon else 0
    if needed > min(trained, model.max_frames):
        raised = f"worldmodel.max_frames and fit.{last}.length to {needed}"
        yield (
            f"agent.horizon={horizon} is further than the world model is trained: "
            f"{what}={seen} + horizon must be <= worldmodel.max_frames={model.max_frames} "
            f"and <= fit.{last}.length={trained}; "
            f"lower agent.horizon to {min(trained, model.max_frames) - seen} or raise "
            f"{raised if needed > model.max_frames else f'fit.{last}.length to {needed}'}"
        )


def rewards(groups: Mapping[str, Any]) -> Iterator[str]:
    """There is a reward to imagine, where it is asked for (a world model of the user's own may have no such choice)."""
    heads = getattr(groups["worldmodel"], "heads", None)
    if getattr(heads, "reward", "") != "none":
        return
    if getattr(groups["agent"], "objective", "reward") == "reward":
        yield (
            "worldmodel.heads.reward=none leaves nothing to learn: an agent learns from imagined rewards; "
            "set it to scalar or twohot, as worldmodel=ivideogpt or worldmodel=cpu do"
        )
    if groups["schedule"].gate.episodes:
        yield (
            f"schedule.gate.episodes={groups['schedule'].gate.episodes} waits for rewards, which "
            "worldmodel.heads.reward=none does not predict; "
            "set schedule.gate={episodes: 0, reward_r2: 0, codes_alive: 0}"
        )


def clips(groups: Mapping[str, Any]) -> Iterator[str]:
    """Training clips are long enough to predict something, and fit into the model and into an episode."""
    model, protocol, fit = groups["worldmodel"], groups["protocol"], groups["fit"]
    last, length = model.parts[-1], getattr(fit, model.parts[-1]).length
    if length > model.max_frames:
        yield (
            f"fit.{last}.length={length} must be <= worldmodel.max_frames={model.max_frames}; "
            f"lower it to {model.max_frames} or raise worldmodel.max_frames"
        )
    own = groups["tokenizer"].layout.context if "tokenizer" in asked(model) else getattr(model, "context_frames", 1)
    context = own if model.context == "sliding" else 0
    longest = protocol.decisions + 1 - context
    for part in model.parts:
        if getattr(fit, part).length > longest:
            yield (
                f"fit.{part}.length={getattr(fit, part).length} must be <= {longest}, the frames of an episode of "
                f"protocol.decisions={protocol.decisions} behind {context} of context; lower it or raise "
                "protocol.decisions"
            )
    if "tokenizer" in model.parts and fit.tokenizer.length < 2:
        yield f"fit.tokenizer.length={fit.tokenizer.length} must be >= 2, a frame and the next; for example 5"
    if length <= model.burn_in:
        yield (
            f"fit.{last}.length={length} must be > worldmodel.burn_in={model.burn_in}, "
            f"or no frame is left to predict; for example {model.max_frames}"
        )


def weights(groups: Mapping[str, Any]) -> Iterator[str]:
    """The largest matrices of the networks fit into memory: a lower bound, before anything is built."""
    free, cpu = available_ram(), groups["compute"].device == "cpu"
    for key, value, numbers in matrices(groups):
        needed = numbers * 4 * (4 if cpu else 1)  # beside the weights their gradients and Adam's two moments
        if needed > free:
            yield (
                f"{key}={value} needs at least {sized(needed)} of memory for its weights, "
                f"{sized(free)} are free; lower it"
            )


def matrices(groups: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(key, value, how many numbers it makes at least) of the sizes that grow with their square."""
    if "tokenizer" in asked(groups["worldmodel"]):
        net, frames = groups["transformer"], groups["tokenizer"]
        yield "transformer.hidden", net.hidden, net.layers * net.hidden * (4 * net.hidden + 3 * net.mlp)
        blocks = [str(width) for width in frames.block_out_channels]
        widest = max(frames.block_out_channels)
        yield "tokenizer.block_out_channels", f"[{','.join(blocks)}]", 2 * frames.layers_per_block * (3 * widest) ** 2
    agent = groups["agent"]
    for key, holder in (("agent", agent), ("agent.nets", getattr(agent, "nets", None))):
        if units := getattr(holder, "units", 0):
            yield f"{key}.units", units, 2 * units**2  # an actor's and a critic's


def amounts(groups: Mapping[str, Any], demos: int) -> Iterator[str]:
    """There is an episode to learn from when learning begins, and the replay fits into memory."""
    protocol, schedule, replay = groups["protocol"], groups["schedule"], groups["replay"]
    rows = groups["compute"].rows
    episode = protocol.decisions * protocol.action_repeat * rows
    if schedule.prefill < episode:
        yield (
            f"schedule.prefill={schedule.prefill} must be >= {episode} env steps, one whole episode "
            f"({protocol.decisions} decisions x {protocol.action_repeat} x {rows} rows): "
            f"only finished episodes are learned from; raise it"
        )
    if replay.capacity < protocol.decisions:
        yield (
            f"replay.capacity={replay.capacity} must be >= protocol.decisions={protocol.decisions}, "
            "one episode; raise it"
        )
    kept = min(replay.capacity, schedule.total // protocol.action_repeat)
    shown, free = demos * protocol.decisions, available_ram()
    needed, lasting = footprint(groups, kept + shown).ram, footprint(groups, shown).ram
    if lasting > free:
        yield (
            f"demos={demos} needs {sized(lasting)} of memory, {sized(free)} are free; "
            f"lower demos to {demos * free // lasting}"
        )
    elif needed > free:
        yield (
            f"replay.capacity={replay.capacity} needs {sized(needed)} of memory for "
            f"schedule.total={schedule.total} env steps, {sized(free)} are free; "
            f"lower replay.capacity to {kept * (free - lasting) // (needed - lasting)}"
        )


def footprint(groups: Mapping[str, Any], decisions: int) -> Footprint:
    """What so many decisions of the run's world take in memory and on disk."""
    protocol, facts = groups["protocol"], groups["task"].facts(groups["protocol"])
    return expected_bytes(
        decisions,
        image=protocol.image,
        action_dim=facts.action_dim,
        widths=facts.widths(snapshots="snapshot" in groups["worldmodel"].obs_keys),
        episode_decisions=protocol.decisions,
    )
