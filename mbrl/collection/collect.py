"""Playing episodes into a data set: each is a function of (seed, task, policy, number), whoever plays it and when.

So any number of workers, interrupted and started again, write the same files.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from mbrl.collection.policies import Acting, build
from mbrl.data.dataset import CARD, Card, read_card, write_card
from mbrl.envs.make import make_envs
from mbrl.envs.protocol import ProtocolConfig
from mbrl.envs.rows import RowsEnv, env_spec_of
from mbrl.envs.simulator import Task
from mbrl.envs.workers import belong_to
from mbrl.files import clear_temporaries
from mbrl.replay.cut import KEPT, episode_of
from mbrl.replay.episode import NAME, Episode, write_episode
from worldmodel.seeds import Seeds

PIECE = 3
"""Episodes that a worker is given at a time: few, so that an interruption is short and the workers end together."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Episodes of one task by one policy.

    Attributes:
        task, protocol: the world.
        policy: who acts, as in `Card.policies`.
        random: the configuration of the agent that acts by chance.
        folder: the data set.
        episodes: how many of this policy it is to hold.
        own: the user's folder of configurations.
    """

    task: Task
    protocol: ProtocolConfig
    policy: Mapping[str, Any]
    random: Mapping[str, Any]
    folder: Path
    episodes: int
    own: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one worker does next: these numbers of an order, under this row of the card's policies."""

    order: Order
    row: int
    numbers: tuple[int, ...]


class Table:
    """A world and who acts in it, kept from one piece of an order to the next."""

    def __init__(self) -> None:
        self._order: Order | None = None
        self._env: RowsEnv | None = None
        self._acting: Acting | None = None

    def play(self, piece: Piece) -> int:
        """Plays and writes the piece's episodes; returns how many."""
        order = piece.order
        if self._order != order:
            self.close()
            self._env = world(order)
            self._acting, self._order = build(order.policy, self._env, random=order.random, own=order.own), order
        assert self._env is not None and self._acting is not None
        for number in piece.numbers:
            write_episode(order.folder, episode(self._env, self._acting, number=number, row=piece.row))
        return len(piece.numbers)

    def close(self) -> None:
        """Frees the world."""
        if self._env is not None:
            self._env.close()
        self._order = self._env = self._acting = None


def world(order: Order) -> RowsEnv:
    """One row; its episode k begins from the seed of (task, policy, k). Raises: ValueError, NoRendering."""
    stream = f"data/{order.task.name}/{order.policy['policy']}"
    return make_envs(order.task, order.protocol, seeds=Seeds(order.policy["seed"]), stream=stream, rows=1)


def episode(env: RowsEnv, acting: Acting, *, number: int, row: int) -> Episode:
    """Plays episode `number` to its end. The actions in it are those that were executed: clipped, or one-hot."""
    env.episodes = [number]
    now = env.reset()
    steps: list[TensorDict] = []
    while True:
        wanted = acting.act(now, number=number, decision=len(steps))
        stepped, now = env.step_and_maybe_reset(now.set("action", wanted))
        steps.append(stepped[0].select(*KEPT, strict=False).clone())
        if bool(stepped["next", "done"][0]):
            return episode_of(steps, env=row, number=number)


def check(order: Order) -> Card:
    """The card of the order's data set, as it lies on disk or as it will begin; nothing is written.

    Raises: ValueError, NoRendering if the world cannot be played, or the folder holds other data.
    """
    spec = env_spec_of(order.task.facts(order.protocol), order.protocol)
    card = Card(
        name=order.folder.name,
        source="collected with `mbrl data collect`",
        tasks=(order.task.name,),
        protocol=dataclasses.asdict(order.protocol),
        action_dim=spec.action_dim,
        rewards=True,
        image=(spec.image, spec.image),
        rate=1.0,
        policies=(),
    )
    return written(order.folder, card)


def begun(order: Order) -> tuple[int, list[int]]:
    """Writes or extends the card; the policy's row in it, and the numbers that are still to be played.

    Raises: as `check`.
    """
    old = check(order)
    policies = [dict(policy) for policy in old.policies]
    if dict(order.policy) not in policies:
        policies.append(dict(order.policy))
        write_card(order.folder, dataclasses.replace(old, policies=tuple(policies)))
    row = policies.index(dict(order.policy))
    clear_temporaries(order.folder)
    there = {int(match[1]) for path in order.folder.glob("ep-*.npz") if (match := own(path, row))}
    return row, [number for number in range(order.episodes) if number not in there]


def own(path: Path, row: int) -> Any:
    """The match of the name of an episode of this row; None for others."""
    match = NAME.fullmatch(path.name)
    return match if match and int(match[2]) == row else None


def written(folder: Path, card: Card) -> Card:
    """The card that lies in `folder`, which must be of the same world as `card`; `card` itself where there is none.

    Raises: ValueError naming the field that differs.
    """
    if not (folder / CARD).exists():
        if folder.exists() and any(folder.glob("*.npz")):
            raise ValueError(f"to={folder} holds .npz files but no {CARD}: give a new or an empty folder")
        return card
    old = read_card(folder)
    plain = plainly(dataclasses.asdict(card))
    for field, now in plainly(dataclasses.asdict(old)).items():
        if field not in ("name", "policies") and now != plain[field]:
            raise ValueError(f"to={folder} holds data with {field}={now}, not {plain[field]}: give another folder")
    return old


def plainly(value: Any) -> Any:
    """With lists for tuples, as JSON has it."""
    if isinstance(value, Mapping):
        return {name: plainly(inner) for name, inner in value.items()}
    return [plainly(inner) for inner in value] if isinstance(value, list | tuple) else value


def collect(orders: Sequence[Order], *, workers: int, on_progress: Callable[[int, int], None]) -> int:
    """Plays what is missing of all orders; returns how many episodes that were.

    Args:
        workers: processes; 1 plays in this one.
        on_progress: called with (done, total) as episodes come in.
    Raises: ValueError, OSError, NoRendering; RuntimeError if a worker was killed.
    """
    pieces = []
    for order in orders:
        row, missing = begun(order)
        chunks = [tuple(missing[place : place + PIECE]) for place in range(0, len(missing), PIECE)]
        pieces += [Piece(order=order, row=row, numbers=numbers) for numbers in chunks]
    total, done = sum(len(piece.numbers) for piece in pieces), 0
    on_progress(0, total)
    if workers == 1 or len(pieces) < 2:
        table = Table()
        try:
            for piece in pieces:
                for number in piece.numbers:
                    done += table.play(dataclasses.replace(piece, numbers=(number,)))
                    on_progress(done, total)
        finally:
            table.close()
        return done
    for count in side_by_side(pieces, min(workers, len(pieces))):
        done += count
        on_progress(done, total)
    return done


def side_by_side(pieces: Sequence[Piece], workers: int) -> Any:
    """Plays the pieces in worker processes; yields how many episodes each gave."""
    spawn = multiprocessing.get_context("spawn")  # a forked GL context would be shared
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin_worker, initargs=(os.getpid(),))
    try:
        pending = {pool.submit(work, piece) for piece in pieces}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process was killed (out of memory?): the same command goes on") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


TABLE = Table()
"""Of a worker process: it plays one piece at a time."""


def begin_worker(parent: int) -> None:
    """One thread, and an end with the parent."""
    torch.set_num_threads(1)
    belong_to(parent)


def work(piece: Piece) -> int:
    """Plays a piece in a worker."""
    return TABLE.play(piece)
