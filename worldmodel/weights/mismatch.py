"""What a file holds against what a model needs: one row for each name that does not fit, with its likely cause.

Knows names and shapes only. The names are the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]
MOST_ROWS = 20
"""Rows of a table that somebody reads."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One mismatch, as text: `file` and `model` are shapes, values, `missing` or `unexpected`."""

    name: str
    file: str
    model: str
    cause: str


class Mismatch(ValueError):
    """File and model do not fit.

    Attributes:
        headline: one line.
        table: a row for each of the first mismatches, under a header.
    """

    def __init__(self, source: object, rows: Collection[Row]) -> None:
        causes = list(dict.fromkeys(row.cause for row in rows))
        text = "; ".join(causes[:2]) + (f"; and {len(causes) - 2} more" if len(causes) > 2 else "")
        self.headline = (
            f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'} of {source} do not fit the model: {text}"
        )
        self.table = _table(rows)
        super().__init__(f"{self.headline}\n{self.table}")


def _table(rows: Collection[Row]) -> str:
    cells = [("name", "in the file", "in the model", "likely cause")]
    cells += [(row.name, row.file, row.model, row.cause) for row in list(rows)[:MOST_ROWS]]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
    more = [f"... and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
    return "\n".join([*lines, *more])


def compare(
    file: Mapping[str, Tensor], model: Mapping[str, Tensor], *, optional: Collection[str] = (), extra: bool = False
) -> list[Row]:
    """The rows of tensors whose names or shapes differ.

    Args:
        optional: names that the file may lack.
        extra: whether the file may hold names that the model has not.
    """
    given = {name: tuple(value.shape) for name, value in file.items()}
    wanted = {name: tuple(value.shape) for name, value in model.items()}
    rows = []
    for name in dict.fromkeys([*wanted, *given]):
        a, b = given.get(name), wanted.get(name)
        if a == b or (a is None and name in optional) or (b is None and extra):
            continue
        cause = likely_cause(name, given, wanted)
        rows.append(Row(name=name, file=_shown(a, "missing"), model=_shown(b, "unexpected"), cause=cause))
    return rows


def compare_settings(file: Mapping[str, Any], model: Mapping[str, Any], *, free: Collection[str] = ()) -> list[Row]:
    """The rows of settings that differ though no shape need show it; `free` names may."""
    return [
        Row(name=f"config: {name}", file=str(value), model=str(model[name]), cause=f"trained with another {name}")
        for name, value in file.items()
        if name not in free and value != model[name]
    ]


def _shown(shape: Shape | None, absent: str) -> str:
    return absent if shape is None else str(list(shape))


def likely_cause(name: str, file: Mapping[str, Shape], model: Mapping[str, Shape]) -> str:
    """What most often makes `name` differ between a file's shapes and a model's."""
    a, b = file.get(name), model.get(name)
    if not file.keys() & model.keys():
        return "a file of another kind of model"
    for rule in (_head, _structure, _sizes):
        cause = rule(name, a, b, file, model)
        if cause:
            return cause
    return "a damaged or cut file" if a is None else "not a tensor of this model" if b is None else "another size"


Shapes = Mapping[str, Shape]


def _head(name: str, a: Shape | None, b: Shape | None, file: Shapes, model: Shapes) -> str:
    """Causes in what is put around a language model."""
    head = name.split(".")[0]
    if head == "action_linear":
        if a is None:
            return "an action-free file: give action_dim to load it with a new action embedding"
        if b is None:
            return f"action_dim {file['action_linear.weight'][1]} in the file, an action-free model"
        there, here = (shapes["action_linear.weight"] for shapes in (file, model))
        width = f"hidden_size {there[0]} in the file, {here[0]} in the model"
        return width if there[0] != here[0] else f"action_dim {there[1]} in the file, {here[1]} in the model"
    if head in ("reward_linear", "reward_head"):
        kind = {"reward_linear": "scalar", "reward_head": "twohot"}[head]
        if a is None:
            return "reward head missing in the file: add it with reward=true"
        return f"a {kind} reward head, which the model has not" if b is None else "a reward head of another size"
    if head in ("continue_linear", "proprio_linear", "action_recon_linear"):
        where = "missing in the file" if a is None else "not in the model" if b is None else "of another size"
        return f"{head.removesuffix('_linear').replace('_', '-')} head {where}"
    return ""


LISTED = (  # part of a name before a number, what the number counts
    (r"(?:^|\.)layers\.(\d+)\.", "num_hidden_layers"),
    (r"encoder\.down_blocks\.(\d+)\.", "levels (block_out_channels)"),
    (r"decoder\.up_blocks\.(\d+)\.", "levels (block_out_channels)"),
    (r"cross_att_blocks\.(\d+)\.", "cross-attention blocks (max_att_resolution, resolution)"),
    (r"\.resnets\.(\d+)\.", "blocks a level (layers_per_block)"),
)


def _structure(name: str, a: Shape | None, b: Shape | None, file: Shapes, model: Shapes) -> str:
    """Causes of a name that only one of both has."""
    if a is not None and b is not None:
        return ""
    if name.endswith((".basis", "embed_tokens.weight", "lm_head.weight")):
        kinds = ["levels" if any(n.endswith(".basis") for n in names) else "table" for names in (file, model)]
        return f"embedding {kinds[0]} in the file, {kinds[1]} in the model" if kinds[0] != kinds[1] else ""
    for pattern, counted in LISTED:
        counts = [_count(pattern, name, names) for names in (file, model)]
        if re.search(pattern, name) and counts[0] != counts[1]:
            return f"{counted}: {counts[0]} in the file, {counts[1]} in the model"
    if "mid_block.attentions" in name:
        return f"mid_block_add_attention is {a is not None} in the file, {b is not None} in the model"
    if "downsamplers" in name or "upsamplers" in name:
        return "another number of levels (block_out_channels)"
    if "conv_shortcut" in name:
        return "other widths (block_out_channels)"
    if name.endswith(("embedding.weight", "running_mean", "running_var")) and "quantize" in name:
        return "another quantizer (vq or fsq)"
    return ""


def _count(pattern: str, name: str, names: Collection[str]) -> int:
    """How many of a numbered thing there are in `names`, in the same place as in `name`."""
    found = re.search(pattern, name)
    start = name[: found.start(1)] if found else ""
    return len({n[len(start) :].split(".")[0] for n in names if found and n.startswith(start)})


def _sizes(name: str, a: Shape | None, b: Shape | None, file: Shapes, model: Shapes) -> str:
    """Causes of two shapes for one name."""
    if a is None or b is None:
        return ""
    if name.endswith("kv_pos_emb"):
        query = name.replace("kv_pos_emb", "q_pos_emb")
        if query in file and file[query] == model.get(query):
            there, here = (shape[0] // model[query][0] for shape in (a, b))
            return f"file has context {there}, model {here}" + ("" if here < there else ": a context cannot grow")
    if name.endswith("pos_emb") and a[1:] == b[1:]:
        return "another resolution or another place of cross-attention (resolution, max_att_resolution)"
    if name.endswith("embedding.weight"):
        codes = "num_dyn_embeddings" if "dynamics" in name else "num_vq_embeddings"
        return f"vocabulary: {codes} {a[0]} in the file, {b[0]} in the model" if a[0] != b[0] else "vq_embed_dim"
    if name.endswith(("embed_tokens.weight", "lm_head.weight")) and a[0] != b[0]:
        return f"vocabulary {a[0]} in the file, {b[0]} in the model (context codes + dynamics codes + 2)"
    if ".mlp." in name and sorted(a)[0] == sorted(b)[0]:
        return f"intermediate_size {max(a)} in the file, {max(b)} in the model"
    if name.startswith("llm.") or name.startswith(("model.", "lm_head")):
        axis = 0 if "down_proj" in name else -1
        return f"hidden_size {a[axis]} in the file, {b[axis]} in the model"
    if name.startswith(("quant_linear", "post_quant_linear")):
        return "latent_channels, patch_size or vq_embed_dim"
    if name.startswith(("quant_conv", "post_quant_conv")) or ".conv_out" in name:
        return "latent_channels or vq_embed_dim"
    return "other widths (block_out_channels)"
