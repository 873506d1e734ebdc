"""The weights of an IVideoGPT in a folder of the published layout, and from there (or from a checkpoint) into another.

What the published keys cannot say of our own options is under one extra key of each `config.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from worldmodel.ivideogpt import IVideoGPT
from worldmodel.published.folder import TRANSFORMERS, read_folder, save_published
from worldmodel.published.model import VideoGPT
from worldmodel.published.tokenizer import TokenizerWeights
from worldmodel.published.transformer import LLM, TransformerWeights
from worldmodel.spec import Part
from worldmodel.transformer.token_model import HeadConfig
from worldmodel.weights.mismatch import Mismatch, Row, compare, compare_settings

MODEL = "model"
"""Where a pre-training run has its weights in the published layout."""
PARTS: tuple[Part, ...] = ("tokenizer", "dynamics")


def save_model(model: IVideoGPT, folder: str | Path) -> None:
    """Writes tokenizer and token model in the published layout; what was in `folder` is replaced as a whole.

    The auxiliary heads, which only training reads, are not part of it.
    """
    save_published(VideoGPT(model.tokenizer, model.tokens), folder)


def load_into(model: IVideoGPT, folder: str | Path, *, parts: Sequence[Part] = PARTS) -> list[str]:
    """Fills parts of `model` from a folder in the published layout (or from the `model/` of a pre-training run).

    Returns: lines that say what was loaded and what kept its initial values.
    Raises: see `adopt`; ValueError if the folder holds no such files.
    """
    return adopt(model, *read_folder(published_in(Path(folder))), parts=parts)


def published_in(folder: Path) -> Path:
    """The folder itself, or the `model/` of a pre-training run."""
    return folder / MODEL if (folder / MODEL).is_dir() else folder


def adopt(
    model: IVideoGPT,
    tokenizer: TokenizerWeights,
    transformer: TransformerWeights,
    *,
    parts: Sequence[Part] = PARTS,
    auxiliary: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Fills parts of `model` with weights; nothing is changed unless all of them fit.

    A context that is longer than the model's shrinks (spec 2.11). Heads that the weights lack keep their initial
    values; heads that the model lacks are left out.

    Args:
        auxiliary: the auxiliary heads' tensors, where there are any.
    Returns: as `load_into`.
    Raises: Mismatch, with a table, if sizes or settings do not fit.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts must be some of {', '.join(PARTS)} (got {', '.join(unknown)})")
    rows: list[Row] = []
    fitting: dict[str, Tensor] = {}
    said: list[str] = []
    if "tokenizer" in parts:
        rows, fitting, more_said = _tokenizer(model, tokenizer, auxiliary or {})
        said += more_said
    if "dynamics" in parts:
        more, tensors, more_said = _dynamics(model, transformer)
        rows, fitting, said = rows + more, fitting | tensors, said + more_said
    if rows:
        source = transformer.source if "tokenizer" not in parts else tokenizer.source
        raise Mismatch(source if len(parts) == 1 else Path(source).parent.parent, rows)
    model.load_state_dict(fitting, strict=False)  # what may be missing was checked
    for part in parts:
        model.updated(part)
    return said


Found = tuple[list[Row], dict[str, Tensor], list[str]]
"""What does not fit; what does, under the model's names; what is to be said."""


def _tokenizer(model: IVideoGPT, weights: TokenizerWeights, auxiliary: Mapping[str, Tensor]) -> Found:
    wanted, given = model.tokenizer.config, weights.config
    free = ("cross_dropout", "context")
    rows = compare_settings(dataclasses.asdict(given), dataclasses.asdict(wanted), free=free)
    tensors, said = dict(weights.tensors), [f"tokenizer: weights of {weights.source}"]
    if given.context > wanted.context and not rows:
        source = weights.build()
        source.set_context_length(wanted.context)
        tensors = source.state_dict()
        said[0] += f", its context of {given.context} frames cut to the newest {wanted.context}"
    rows += compare(tensors, model.tokenizer.state_dict())
    fitting = {f"tokenizer.{name}": value for name, value in tensors.items()}
    if model.auxiliary is not None:
        if compare(auxiliary, model.auxiliary.state_dict()):
            said.append("tokenizer: the auxiliary heads, which only training reads, keep their initial values")
        else:
            fitting |= {f"auxiliary.{name}": value for name, value in auxiliary.items()}
    return rows, fitting, said


def _dynamics(model: IVideoGPT, weights: TransformerWeights) -> Found:
    config, state = model.tokens.llm.config, model.tokens.state_dict()
    given, wanted = (dataclasses.asdict(c) for c in (weights.config, config))
    rows = compare_settings(given, wanted, free=("dropout", "positions"))
    around = {name for name in {*state, *weights.tensors} if not name.startswith(LLM)}
    fresh, left = sorted(around - {*weights.tensors}), sorted(around - {*state})
    rows += _head_settings(weights.heads, model.tokens.heads, around - {*fresh, *left})
    tensors = {name: value for name, value in weights.tensors.items() if name not in left}
    rows += compare(tensors, state, optional=fresh)
    line = f"dynamics: weights of {weights.source}"
    line += f"; initial values stay in {_modules(fresh)}" if fresh else ""
    line += f"; left out, as the model has none: {_modules(left)}" if left else ""
    return rows, {f"tokens.{name}": value for name, value in tensors.items()}, [line]


def _head_settings(file: HeadConfig, model: HeadConfig, shared: Collection[str]) -> list[Row]:
    """Settings that count for heads that both have."""
    counted = ["action"] if "action_linear.weight" in shared else []
    if file.reward == model.reward == "twohot":
        counted += ["bins", "low", "high", "width"]
    given, wanted = (dataclasses.asdict(heads) for heads in (file, model))
    return compare_settings({name: given[name] for name in counted}, wanted)


def _modules(names: Sequence[str]) -> str:
    """The heads that parameters belong to."""
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))


def files_of(folder: Path) -> list[Path]:
    """The files that `load_into` reads of a folder in the published layout."""
    found = published_in(folder)
    kept = (*TRANSFORMERS, "tokenizer")
    return [p for p in sorted(found.glob("*/*")) if p.parent.name in kept and p.suffix in (".json", ".safetensors")]
