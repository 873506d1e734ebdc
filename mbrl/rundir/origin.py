"""Where first weights come from: a folder in the published layout, a pre-training run, or a training run.

Reads folders and fills world models; knows nothing of agents, environments or the loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mbrl.io.checkpoint import DamagedCheckpoint, checkpoint_paths, read_newest
from mbrl.rundir.build import make
from mbrl.rundir.folder import holds_run, read_config
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.published.folder import read_folder, transformer_folder
from worldmodel.published.store import MODEL, adopt, files_of, published_in
from worldmodel.published.tokenizer import TokenizerWeights
from worldmodel.published.transformer import TransformerWeights
from worldmodel.transformer.decoding import AUTOREGRESSIVE

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a folder holds of a world model, before any network is made.

    Attributes:
        auxiliary: the auxiliary heads of a training run; empty elsewhere.
    """

    tokenizer: TokenizerWeights
    transformer: TransformerWeights
    auxiliary: Mapping[str, Tensor]


def is_training_run(folder: Path) -> bool:
    """Whether the weights in `folder` are those of a training run's checkpoints."""
    return holds_run(folder) and not (folder / MODEL).is_dir()


def check_origin(folder: Path) -> None:
    """Raises: ValueError if `folder` is none of the three."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a published model, a pre-training run or a training run")
    if is_training_run(folder):
        if not checkpoint_paths(folder / CHECKPOINTS):
            raise ValueError(f"{folder} is a run without a checkpoint yet: it has no weights to start from")
        return
    try:
        transformer_folder(published_in(folder))
    except ValueError as error:
        raise ValueError(f"{error}, nor a pre-training or training run") from error


def read_weights(folder: Path) -> Weights:
    """What `folder` holds: of a training run the newest checkpoint's world model (not the best one's: that was chosen).

    Raises: ValueError (DamagedCheckpoint) where there is nothing that can be used.
    """
    check_origin(folder)
    if not is_training_run(folder):
        tokenizer, transformer = read_folder(published_in(folder))
        return Weights(tokenizer=tokenizer, transformer=transformer, auxiliary={})
    plain, checkpoint = read_config(folder), read_newest(folder / CHECKPOINTS)
    state = _tensors(checkpoint.states["model"])
    if not any(name.startswith("tokens.") for name in state):
        raise ValueError(f"{folder} has no weights to start from: its world model is {plain['worldmodel']['_target_']}")
    sizes: dict[str, Any] = {name: make(plain[name], name, trusted=False) for name in ("tokenizer", "transformer")}
    parts = {part: _below(part, state) for part in ("tokenizer", "tokens", "auxiliary")}
    source = str(folder / CHECKPOINTS / f"step-{checkpoint.step:09d}")
    decoding = plain["worldmodel"].get("decoding")  # a class of the user's own may have none
    return Weights(
        tokenizer=TokenizerWeights(config=sizes["tokenizer"], tensors=parts["tokenizer"], source=source),
        transformer=TransformerWeights(
            config=sizes["transformer"],
            heads=make(plain["worldmodel"]["heads"], "worldmodel.heads", trusted=False),
            decoding=make(decoding, "worldmodel.decoding", trusted=False) if decoding else AUTOREGRESSIVE,
            tensors=parts["tokens"],
            source=source,
        ),
        auxiliary=parts["auxiliary"],
    )


def _tensors(state: Any) -> Mapping[str, Tensor]:
    """Raises: DamagedCheckpoint unless a state of a world model is tensors by name."""
    held = state if isinstance(state, Mapping) else {"model": state}
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise DamagedCheckpoint(
                f"{name} of the newest checkpoint is {type(value).__name__}, where a tensor belongs"
            )
    return held


def _below(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def record_of(folder: Path) -> dict[str, Any]:
    """What run.json says of where a run began: the folder, and the SHA-256 of every file that is read of it.

    Raises: as `check_origin`.
    """
    check_origin(folder)
    files = files_of(folder)
    if is_training_run(folder):
        newest = checkpoint_paths(folder / CHECKPOINTS)[0]
        files = [folder / "config.yaml", newest / "model.safetensors"]
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(folder), "sha256": hashes}


def start_from(model: Any, record: Mapping[str, Any]) -> list[str]:
    """Fills a new run's world model; returns lines that say what was loaded and what kept its initial values.

    Raises: Mismatch, with a table, where sizes disagree; ValueError if the files are no longer those of the record, or
        the model has no weights.
    """
    folder = Path(record["path"])
    if not isinstance(model, IVideoGPT):
        raise ValueError(f"init={folder} needs a world model that has weights (got {type(model).__name__})")
    if record_of(folder) != record:
        raise ValueError(f"init={folder} has changed since this run began; bring its files back, or begin a new run")
    found = read_weights(folder)
    return adopt(model, found.tokenizer, found.transformer, auxiliary=found.auxiliary)
