"""A whole published model on disk: `tokenizer/` and `transformer/` in one folder, in and out.

Knows which folders there are; what is in each belongs to the files beside this one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from worldmodel.published.model import VideoGPT
from worldmodel.published.tokenizer import TOKENIZER_FILE, TokenizerWeights, published_of_config, read_tokenizer
from worldmodel.published.transformer import (
    TRANSFORMER_FILE,
    TransformerWeights,
    published_of_model,
    read_transformer,
)
from worldmodel.weights.files import swapped_in, write_part

TOKENIZER = "tokenizer"
TRANSFORMERS = ("transformer_action", "transformer")
"""Where a transformer may lie; of several the first is taken."""


def transformer_folder(path: Path, name: str | None = None) -> Path:
    """The folder of the transformer in `path`: `name`, or the first of `TRANSFORMERS` that is there.

    Raises: ValueError if `path` is no folder of a published model.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the one that holds {TOKENIZER}/ and transformer/")
    names = TRANSFORMERS if name is None else (name,)
    found = next((path / known for known in names if (path / known).is_dir()), None)
    lacking = [] if (path / TOKENIZER).is_dir() else [TOKENIZER]
    lacking += [names[-1]] if found is None else []
    if found is None or lacking:
        raise ValueError(f"{path} has no folder {' and no folder '.join(lacking)}: it is not a published model")
    return found


def read_folder(
    path: str | Path, *, transformer: str | None = None, values: bool = True
) -> tuple[TokenizerWeights, TransformerWeights]:
    """Both parts of a model on disk, before any network is made. Raises: ValueError, see `worldmodel.load`.

    Args:
        values: False for tensors of the meta device, which have shapes alone.
    """
    path = Path(path)
    chosen = transformer_folder(path, transformer)
    return read_tokenizer(path / TOKENIZER, values=values), read_transformer(chosen, values=values)


def assembled(
    tokenizer: TokenizerWeights,
    transformer: TransformerWeights,
    *,
    context: int | None = None,
    action_dim: int | None = None,
    reward: bool = False,
    seed: int = 0,
) -> VideoGPT:
    """Both parts as one model; arguments and errors as for `worldmodel.load`."""
    if action_dim is not None and action_dim < 1:
        raise ValueError(f"action_dim must be >= 1, or left out (got {action_dim})")
    network = tokenizer.build()
    if context is not None:
        network.set_context_length(context)
    tokens = transformer.build(
        network.layout,
        generator=torch.Generator().manual_seed(seed),
        action_dim=action_dim,
        reward=reward,
        features_VJ=network.id_features() if transformer.levels else None,
    )
    return VideoGPT(network, tokens).eval()


def save_published(model: VideoGPT, folder: str | Path) -> None:
    """Writes `tokenizer/` and `transformer/` of a model; what was in `folder` before is replaced as a whole.

    A model whose options the published keys can say is written as published: float32, metadata `{"format": "pt"}`,
    names with `llm.` exactly if there is more than the language model.
    """
    with swapped_in(Path(folder)) as new:
        tokenizer = model.tokenizer
        config = published_of_config(tokenizer.config)
        write_part(new / TOKENIZER, config, tokenizer.state_dict(), TOKENIZER_FILE)
        write_part(new / TRANSFORMERS[-1], *published_of_model(model.transformer), TRANSFORMER_FILE)
