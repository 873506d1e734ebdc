"""How large a network is, module by module, and whether that is the size of a published one.

Knows names and shapes only: of a file's header, of a state dict, or of a network on the meta device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from worldmodel.published.transformer import LLM

Shape = tuple[int, ...]

TOKENIZERS = {
    114_159_174: "the 64x64 tokenizer with 2 context frames",
    113_831_494: "the 64x64 tokenizer with 1 context frame",
    310_472_774: "the 256x256 tokenizer with 2 context frames",
    308_899_910: "the 256x256 tokenizer with 1 context frame",
}
"""By parameters (spec section 6)."""
TRANSFORMERS = {
    138_434_304: "the base transformer (138M)",
    436_261_888: "the medium transformer (436M)",
}
"""By parameters of the language model alone (spec section 7)."""


def is_tokenizer(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are names of a tokenizer."""
    return "quant_conv.weight" in shapes


def is_transformer(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are names of a transformer, with or without heads around it."""
    return any(name.removeprefix(LLM).startswith("lm_head.") for name in shapes)


def per_module(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    """Tensors and numbers of each module, in the order of the file; a transformer's layers count as one."""
    tensors: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for name, shape in shapes.items():
        plain = name.removeprefix(LLM)
        parts = plain.split(".")
        module = ".".join(parts[:2]) if parts[0] == "model" else parts[0]
        tensors[module] += 1
        numbers[module] += prod(shape)
    return {module: (tensors[module], numbers[module]) for module in tensors}


def published_name(shapes: Mapping[str, Shape]) -> str:
    """Which published network has exactly so many parameters; empty if none."""
    modules = per_module(shapes)
    if is_tokenizer(shapes):
        return TOKENIZERS.get(sum(n for _, n in modules.values()), "")
    return TRANSFORMERS.get(
        sum(n for module, (_, n) in modules.items() if module.startswith(("model.", "lm_head"))), ""
    )


def dimensions(shapes: Mapping[str, Shape]) -> dict[str, int | str]:
    """What the shapes alone tell of a network."""
    if is_tokenizer(shapes):
        context, future = (shapes[f"{book}.embedding.weight"][0] if f"{book}.embedding.weight" in shapes else 0
                           for book in ("quantize", "dynamics_quantize"))  # fmt: skip
        keys = "cond_decoder.cross_att_blocks.0.kv_pos_emb"
        found: dict[str, int | str] = {"context frames": shapes[keys][0] // shapes[keys.replace("kv_", "q_")][0]}
        if context:
            found |= {"codes": f"{context} + {future}", "vocabulary": context + future + 2}
        return found
    if not is_transformer(shapes):
        return {"network": "neither a tokenizer nor a transformer"}
    plain = {name.removeprefix(LLM): shape for name, shape in shapes.items()}
    layers = {name.split(".")[2] for name in plain if name.startswith("model.layers.")}
    found = {"layers": len(layers)}
    if "lm_head.weight" in plain:
        found |= dict(zip(("vocabulary", "hidden_size"), plain["lm_head.weight"], strict=True))
    if "lm_head.basis" in plain:
        found |= dict(zip(("features of an id", "hidden_size"), plain["lm_head.basis"], strict=True))
    heads = [name.split(".")[0] for name in plain if not name.startswith(("model.", "lm_head", "action_linear"))]
    found["actions"] = plain["action_linear.weight"][1] if "action_linear.weight" in plain else "none (action-free)"
    found["heads"] = ", ".join(dict.fromkeys(heads)) or "none"
    return found
