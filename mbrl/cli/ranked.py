"""A verb in several processes, as torchrun starts them: the first one decides what the line means, the others are told.

Imports nothing heavy before a process knows that it is one of several.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mbrl.cli.compose import own_folder, take_config_dir
from mbrl.cli.errors import BadInput, one_line
from mbrl.ranks import Ranks


def broadcast_decision(processes: Any, args: list[str], decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `decide` gives in the first process (plain JSON); None for `processes` is one process alone.

    Raises: whatever `decide` raises, in the first process; BadInput with the same line in the others.
    """
    if processes is None:
        return decide()
    if processes.first:
        try:
            decision = decide()
        except BaseException as error:
            processes.broadcast_str(json.dumps({"error": one_line(error)}))
            raise
        processes.broadcast_str(json.dumps(decision))
        return decision
    decision = json.loads(processes.broadcast_str(None))
    if "error" in decision:
        raise BadInput(f"process {processes.rank} ends with the first one: {decision['error']}")
    if (own := take_config_dir(args)[1]) is not None:
        own_folder(own)  # lets Python find the user's own classes
    return decision


def device_of(name: str, ranks: Ranks) -> Any:
    """The device of this process: with several on one machine, `cuda` is one GPU for each. Raises: ValueError."""
    import torch

    if name.startswith("cuda:") and ranks.world > 1:
        raise ValueError(f"compute.device must be cuda with {ranks.world} processes, one GPU for each (got {name})")
    if name != "cuda" or ranks.world == 1:
        return torch.device(name)
    if ranks.local >= torch.cuda.device_count():
        raise ValueError(
            f"compute.device=cuda needs a GPU for each process of a machine: {torch.cuda.device_count()} are there, "
            f"this is process {ranks.local}; lower --nproc-per-node"
        )
    device = torch.device("cuda", ranks.local)
    torch.cuda.set_device(device)
    return device
