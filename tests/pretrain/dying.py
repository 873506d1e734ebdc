"""What torchrun starts in a test: `mbrl`, but process 1 kills itself once, and all of them tell what they learned."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from mbrl.cli.main import console
from mbrl.pretrain.run import Pretraining
from mbrl.ranks import take
from worldmodel.training.updater import Updater


def rehearse(notes: Path, *, dies_at: int) -> None:
    """Process 1 dies in update `dies_at` (never, if that is negative) of its first life."""
    update, finish, rank = Updater.update, Pretraining.finish, os.environ["RANK"]

    def mortal(self: Updater, part: Any, number: int) -> dict[str, float]:
        if rank == "1" and number == dies_at and not (notes / "died").exists():
            (notes / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, part, number)

    def told(self: Pretraining) -> None:
        finish(self)
        held = {name: tensor.contiguous().clone() for name, tensor in self.whole.state_dict().items()}
        safetensors.torch.save_file(held, notes / f"rank-{rank}.safetensors")

    Updater.update = mortal  # type: ignore[method-assign]
    Pretraining.finish = told  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, when, *sys.argv[1:] = sys.argv[1:]
    take(os.environ)
    rehearse(Path(folder), dies_at=int(when))
    console()
