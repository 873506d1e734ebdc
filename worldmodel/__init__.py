"""World models that predict frames from frames and actions; `load` opens a published one.

Importing this package alone imports nothing else of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.published.model import VideoGPT


def load(
    path: str | Path,
    *,
    transformer: str | None = None,
    context: int | None = None,
    action_dim: int | None = None,
    reward: bool = False,
    seed: int = 0,
) -> VideoGPT:
    """A model in the published layout: float32, in eval mode, on the CPU. Nothing is executed, nothing downloaded.

    Architecture, image side, context length, vocabulary, action width and heads are read off the files. Of two
    transformers the action-conditioned one is taken: `transformer_action/` if it is there, else `transformer/` (where
    published models have theirs, action-free or action-conditioned).

    Args:
        path: the folder that holds `tokenizer/` and a transformer's folder, each with `config.json` and safetensors.
        transformer: name of the transformer's folder, where another than that is wanted.
        context: use fewer context frames than the model was trained with (spec 2.11). Before any optimizer.
        action_dim: width A of the actions of an action-free file: it gets a zero action embedding, which changes
            nothing until it is trained. Otherwise it must be the file's.
        reward: add a new reward head where the file has none.
        seed: of the initial values of what the file does not hold.
    Raises: ValueError if a file is missing, unreadable or of another kind of model, or the context would grow;
        `worldmodel.weights.mismatch.Mismatch`, with a table, if tensors do not fit.
    """
    from worldmodel.published.folder import assembled, read_folder

    parts = read_folder(path, transformer=transformer)
    return assembled(*parts, context=context, action_dim=action_dim, reward=reward, seed=seed)
