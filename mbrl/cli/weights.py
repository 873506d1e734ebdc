"""Look into weights; bring them into and out of the published iVideoGPT layout.

usage: mbrl weights inspect DIR|FILE.safetensors
       mbrl weights inspect [tokenizer=PRESET] [transformer=PRESET]
       mbrl weights export run=DIR to=NEW
       mbrl weights import from=DIR to=NEW [context=N] [action_dim=A] [reward=true] [transformer=FOLDER]

  mbrl weights inspect runs/mine                  parameters of each module, sizes, heads, which published model it is
  mbrl weights inspect tokenizer=res64 transformer=base138m       the same of presets, without any file
  mbrl weights export run=runs/mine to=exported   the newest checkpoint's world model in the published layout
  mbrl weights import from=ivideogpt-bair to=mine context=1 action_dim=4 reward=true

A folder in the published layout holds tokenizer/ and transformer/, each with config.json and a .safetensors file. It is
what `mbrl train init=DIR` and worldmodel.load(DIR) take. import writes a checked copy in float32: with fewer context
frames, and with an action embedding or a reward head where the file has none. Nothing that is opened executes code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mbrl.cli.errors import DONE, BadInput, did_you_mean
from mbrl.cli.words import Word, choice, expanded, path, target, whole, words


def new_folder(text: str) -> Path:
    """Raises: BadInput if something is there already."""
    folder = target("to", text).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"to={text} is there already and not empty; name a new folder")
    return folder


INSPECT = {"tokenizer": Word("a preset"), "transformer": Word("a preset")}
NEW = Word("a new folder", new_folder, needed=True)
EXPORT = {"run": path("a training or pre-training run", needed=True), "to": NEW}
IMPORT = {
    "from": path("a folder in the published layout", needed=True),
    "to": NEW,
    "transformer": Word("the transformer's folder, where there are several"),
    "context": whole(None),
    "action_dim": whole(None),
    "reward": choice("true", "false", default="false"),
}
VOCABULARY = 16386
"""Ids of every published model, for a transformer that is looked at without a tokenizer."""

Shapes = Mapping[str, tuple[int, ...]]


def run(args: list[str]) -> int:
    """Does one of the three. Raises: BadInput for another word."""
    actions: dict[str, Callable[[list[str]], None]] = {"inspect": look, "export": export, "import": bring}
    word = args[0] if args else ""
    if word not in actions:
        hint = did_you_mean(word, actions) or f"; write one of {', '.join(actions)}"
        raise BadInput(f"{word or 'nothing'} is not something that `mbrl weights` does{hint}")
    actions[word](args[1:])
    return DONE


# inspect --------------------------------------------------------------------------------------------------------------


def look(args: list[str]) -> None:
    """Prints what a folder, a file or presets hold."""
    if not args:
        raise BadInput("inspect what? A folder, a .safetensors file, or tokenizer=res64 transformer=base138m")
    places = [word for word in args if word.partition("=")[0] not in INSPECT]
    if places:
        if len(args) > 1:
            raise BadInput(f"inspect takes one folder or file, or presets (got {' '.join(args)})")
        for title, shapes, more in _on_disk(expanded(places[0])):
            _show(title, shapes, more)
        return
    for title, shapes, more in _presets(words("mbrl weights inspect", args, INSPECT)):
        _show(title, shapes, more)


Found = list[tuple[str, Shapes, dict[str, Any]]]
"""Title, shapes by name, and what a config says beside."""


def _on_disk(path: Path) -> Found:
    from mbrl.rundir.origin import check_origin, is_training_run, read_weights
    from worldmodel.published.store import published_in
    from worldmodel.weights.files import PICKLES, read_header, refuse_pickle

    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.is_file():
        return [_of_header(path, read_header(path))]
    alone = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if alone and not _parts(published_in(path)):  # one network's folder
        return [_of_header(file, read_header(file)) for file in alone]
    check_origin(path)
    if is_training_run(path):
        found = read_weights(path)
        sizes: list[tuple[Any, Any]] = [(found.tokenizer, found.tokenizer.config), (found.transformer, None)]
        return [
            (part.source, {n: tuple(v.shape) for n, v in part.tensors.items()}, {"type": "F32", **_told(config)})
            for part, config in sizes
        ]
    files = [file for part in _parts(published_in(path)) for file in _files(part)]
    return [_of_header(file, read_header(file)) for file in files]


def _files(part: Path) -> list[Path]:
    """The tensor files of a network's folder; one in shards is named as if it were whole."""
    whole = [path.with_name(path.name.removesuffix(".index.json")) for path in part.glob("*.safetensors.index.json")]
    return sorted(whole or part.glob("*.safetensors"))


def _parts(folder: Path) -> list[Path]:
    from worldmodel.published.folder import TOKENIZER, TRANSFORMERS

    return [folder / name for name in (TOKENIZER, *reversed(TRANSFORMERS)) if (folder / name).is_dir()]


def _of_header(file: Path, header: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[str, Shapes, dict[str, Any]]:
    from worldmodel.published.counts import is_tokenizer

    shapes = {name: shape for name, (shape, _) in header.items()}
    more: dict[str, Any] = {"type": ", ".join(sorted({kind for _, kind in header.values()}))}
    config = file.parent / "config.json"
    if config.is_file():
        more |= _config_of(config, tokenizer=is_tokenizer(shapes))
    return str(file), shapes, more


def _config_of(path: Path, *, tokenizer: bool) -> dict[str, Any]:
    from worldmodel.published.tokenizer import tokenizer_config
    from worldmodel.published.transformer import config_of_published
    from worldmodel.weights.files import read_json

    raw = read_json(path)
    if tokenizer:
        return _told(tokenizer_config(raw, path))
    config = config_of_published(raw, path)
    return {"attention heads": config.heads, "positions": config.positions}


def _told(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    vocabulary = f"{config.vocab_context} + {config.vocab_future} + 2 = {config.layout.vocab}"
    tokens = f"{config.codes_context} for a context frame, {config.codes_future} for a future one"
    return {"image": f"{config.image}x{config.image}", "tokens": tokens, "vocabulary": vocabulary}


def _presets(given: Mapping[str, str]) -> Found:
    import torch
    import yaml

    from mbrl.cli.compose import packaged_configs
    from mbrl.rundir.build import make

    found: Found = []
    vocabulary = VOCABULARY
    for group in [group for group in INSPECT if given[group]]:
        path = packaged_configs() / group / f"{given[group]}.yaml"
        if not path.is_file() or path.parent.name != group:
            names = sorted(file.stem for file in path.parent.glob("*.yaml"))
            hint = did_you_mean(given[group], names)
            raise BadInput(f"{group} must be one of {', '.join(names)} (got {given[group]}){hint}")
        config: Any = make(yaml.safe_load(path.read_text()), group, trusted=False)
        with torch.device("meta"):
            if group == "tokenizer":
                network, more, vocabulary = config.build(), _told(config), config.layout.vocab
            else:
                network, more = config.build(vocab=vocabulary, generator=torch.Generator("cpu")), {}
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        found.append((f"{group}={given[group]}", shapes, more))
    return found


def _show(title: str, shapes: Shapes, more: Mapping[str, Any]) -> None:
    from worldmodel.published.counts import dimensions, per_module, published_name

    modules = per_module(shapes)
    words_of = [name for name in modules if name.rpartition(".")[2] in ("embed_tokens", "lm_head")]
    counted = {"total": list(modules.values())}
    if words_of:  # what sizes are named by: it does not depend on the tokenizer
        counted = {"without vocabulary": [n for name, n in modules.items() if name not in words_of], **counted}
    print(title)
    for module, (tensors, numbers) in modules.items():
        print(f"  {module:20} {tensors:5d} tensors {numbers:15,d} parameters")
    for name, parts in counted.items():
        print(f"  {name:20} {sum(t for t, _ in parts):5d} tensors {sum(n for _, n in parts):15,d} parameters")
    for name, value in {**dimensions(shapes), **more}.items():
        print(f"  {name:20} {value}")
    print(f"  {'published':20} {published_name(shapes) or 'none has so many parameters'}")


# export and import ----------------------------------------------------------------------------------------------------


def export(args: list[str]) -> None:
    """Writes the world model of a run in the published layout."""
    given = words("mbrl weights export", args, EXPORT)
    to = given["to"]

    from mbrl.rundir.origin import read_weights
    from worldmodel.published.folder import assembled, save_published

    found = read_weights(given["run"].resolve())
    save_published(assembled(found.tokenizer, found.transformer), to)
    print(f"weights of {found.transformer.source}\nwritten to {to}")


def bring(args: list[str]) -> None:
    """Writes a checked float32 copy of a published model, changed as asked."""
    given = words("mbrl weights import", args, IMPORT)
    sizes = {key: given[key] for key in ("context", "action_dim") if given[key] is not None}
    source, to = given["from"].resolve(), given["to"]

    import worldmodel
    from worldmodel.published.folder import save_published

    reward = given["reward"] == "true"
    model = worldmodel.load(source, transformer=given["transformer"], reward=reward, **sizes)
    save_published(model, to)
    head = model.transformer.heads.reward
    print(
        f"{source}: {model.context} context frames, {model.layout.vocab} ids, "
        f"{f'actions of {model.action_dim}' if model.action_dim else 'action-free'}, reward head {head}\n"
        f"written to {to} in float32"
    )
