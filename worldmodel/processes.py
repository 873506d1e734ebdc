"""Several processes on one batch: who is who, sums and means over them, and models that they hold together.

Knows torch.distributed; nothing of models' insides, files or command lines. One process alone is the same code.
"""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Sharding = Literal["ddp", "fsdp2"]
TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: rank 0 evaluates and saves alone meanwhile."""


GONE = re.compile(r"[Cc]onnection (closed|reset|refused)|[Tt]imed? ?out|gloo|NCCL|[Bb]roken pipe")
"""What torch.distributed says, as a RuntimeError, of a process that is no longer there."""


class Lost(RuntimeError):
    """Another process has ended, or has not answered for `TIMEOUT`."""


class _Total(torch.autograd.Function):
    """Sum over processes; what each of them does with the sum counts for every summand."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed


class Processes:
    """This process among those that train one model.

    Args:
        rank: its number; 0 alone writes files.
        world: how many there are.
        device: where its tensors are; may be set once it is known.
    """

    def __init__(self, *, rank: int, world: int, device: torch.device) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}) (got {rank})")
        self.rank, self.world, self.device = rank, world, device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, with gradient; all must ask."""
        if self.world == 1:
            return tensor
        return cast(Tensor, _Total.apply(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over all processes, with gradient."""
        return tensor if self.world == 1 else self.total(tensor) / self.world

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, those of rank 0 first; all must have equally many."""
        if self.world == 1:
            return rows
        rows = rows.contiguous()
        found = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(found, rows)
        return torch.cat(found)

    def own_rows(self, rows: Tensor) -> Tensor:
        """Inverse of `all_gather_rows`: those of this process."""
        return rows.tensor_split(self.world)[self.rank]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes each gradient the mean over the processes; all must ask, and have gradients of the same parameters."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.world)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A FloatingPointError inside, in any process, is one in all of them at the end; nothing inside may wait."""
        fault: FloatingPointError | None = None
        try:
            yield
        except FloatingPointError as error:
            fault = error
        if self.any(fault is not None):
            raise fault or FloatingPointError("numbers that are not finite in another process")

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's; all must ask, the others with any tensor of its shape and type, which is overwritten."""
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all must ask."""
        return bool(flag) if self.world == 1 else self.all_reduce_max(int(flag)) > 0

    def all_reduce_max(self, number: int) -> int:
        """The largest of the processes' numbers; all must ask."""
        if self.world == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def broadcast_str(self, text: str | None) -> str:
        """What rank 0 says, in every process; all must ask, the others with None."""
        if self.world == 1:
            return text or ""
        content = (text or "").encode()
        size = torch.tensor(len(content), device=self.device)
        dist.broadcast(size, 0)
        held = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.first:
            held.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(held, 0)
        return bytes(held.cpu().tolist()).decode()

    def shared(self, module: nn.Module, sharding: Sharding) -> nn.Module:
        """`module` with gradients that are means over the processes.

        Args:
            sharding: `ddp`: each process holds all of it; `fsdp2`: each holds a share of every parameter and puts the
                members of its module lists (the blocks of a transformer) together one at a time.
        """
        if self.world == 1 and sharding == "ddp":
            return module
        if sharding == "ddp":
            # buffers are statistics of whole batches, and so the same everywhere; every parameter has a gradient
            return nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        lists = [held for held in module.modules() if isinstance(held, nn.ModuleList)]
        for block in (block for held in lists for block in held):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module


def alone(device: torch.device | str = "cpu") -> Processes:
    """One process."""
    return Processes(rank=0, world=1, device=torch.device(device))


def without_sync(module: nn.Module, *, last: bool) -> None:
    """Whether the next backward pass of a shared module exchanges gradients: the last of several pieces does."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        module.require_backward_grad_sync = last
        return
    choose = getattr(module, "set_requires_gradient_sync", None)  # FSDP2 gives it to what it shards
    if callable(choose):
        choose(last)


def agreed_name(store: dist.Store, *, rank: int, world: int, patience_s: float = TIMEOUT.total_seconds()) -> str:
    """A name that the processes of this life alone know.

    torchrun keeps its store when it restarts processes: without a name of their own they would find the addresses of
    the dead there, and wait for them. Process 0 answers whoever asks with a number of its own, until all have heard.

    Raises: TimeoutError if not all came.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + patience_s
    if rank:
        store.set(f"asks/{rank}", own)
        store.wait([f"told/{own}"], datetime.timedelta(seconds=patience_s))
        name = store.get(f"told/{own}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return name
    while not all(store.check([f"heard/{own}/{other}"]) for other in range(1, world)):
        for other in range(1, world):
            if store.check([f"asks/{other}"]):
                store.set(f"told/{store.get(f'asks/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {world} processes came within {patience_s:.0f} s")
        time.sleep(0.05)
    return own


@contextmanager
def joined(*, rank: int, world: int) -> Iterator[Processes]:
    """The processes that torchrun started, connected (gloo on the CPU, NCCL between GPUs); alone nothing is.

    Raises: Lost where another process ends before this one.
    """
    if world > 1:
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=TIMEOUT))
        own = dist.PrefixStore(agreed_name(store, rank=rank, world=world), store)
        dist.init_process_group(store=own, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Processes(rank=rank, world=world, device=torch.device("cpu"))
    except RuntimeError as error:
        if world == 1 or not GONE.search(str(error)):
            raise
        raise Lost(f"process {rank} of {world} ends: another one has ended or does not answer") from error
    finally:
        if world > 1:
            dist.destroy_process_group()
