"""From a verb's words on the command line to one checked configuration, or to one line that says what is wrong.

Hydra composes the files and the chosen variants; the values are laid on afterwards, key by key, so that every complaint
can name the key, the value and the mend. Builds nothing and creates no folder.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.cli.errors import BadInput, did_you_mean
from mbrl.cli.values import Assignment, check_once, laid_on, leaves, shown
from mbrl.cli.words import expanded, paths_in
from mbrl.program import packaged_configs

SEVERAL = ("experiment", "recipe")
"""Groups of which several variants may be laid over each other, `experiment=[demos,proprio]`: later ones win."""

PATHS = ("run_dir", "init", "demos_from", "agent.goal", "data.root", "to", "out")
"""Keys whose values are paths: taken as they are typed, whatever a folder may be called."""
PATH_LISTS = ("rehearsal", "data.folders")
"""Keys whose values are lists of paths."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A verb's words, read; no file is merged yet.

    Attributes:
        values: the values that are to be laid on the merged files, in the user's order.
        variants: the variants that the user chose.
        folders: where files are looked for, the packaged ones first.
        places: place -> group, as the root file and variants lay them out.
    """

    values: list[Assignment]
    variants: list[Assignment]
    folders: list[Path]
    places: dict[str, str]


def compose(root: str, overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The configuration of a verb.

    Args:
        root: name of the root file, without `.yaml`.
        overrides: `group=variant` and `key=value`, in any order; `--config-dir DIR` among them counts as `config_dir`.
        config_dir: the user's own folder of groups, searched after the packaged one.
    Raises: BadInput with one line.
    """
    return composed(root, overrides, config_dir)[0]


def compose_onto(stored: Mapping[str, Any], root: str, overrides: Sequence[str]) -> DictConfig:
    """A stored configuration with the user's words laid on: nothing that was not typed comes from the files' defaults.

    A chosen variant replaces what its place held; an experiment sets the keys and places that its file names.
    Raises: BadInput with one line.
    """
    said = read(root, overrides)
    laid = OmegaConf.to_container(merged(root, said)[0], resolve=False)
    cfg = OmegaConf.create(copy.deepcopy(dict(stored)))
    for key in sorted({key for variant in said.variants for key in laid_down(variant, said.folders)}):
        node: Any = laid
        for name in key.split("."):
            node = node[name]
        OmegaConf.update(cfg, key, node, merge=False, force_add=True)
    return laid_on(cfg, said.values)


def composed(root: str, overrides: Sequence[str], config_dir: Path | None = None) -> tuple[DictConfig, dict[str, str]]:
    """What `compose` gives, and which variant it took of each group, e.g. `{"agent": "dreamer_cpu", ...}`; no nulls."""
    said = read(root, overrides, config_dir)
    cfg, picked = merged(root, said)
    return laid_on(cfg, said.values), picked


def laid_down(variant: Assignment, folders: Sequence[Path]) -> Iterator[str]:
    """The keys that a variant decides: its place, or all that a file for the whole configuration names."""
    if isinstance(variant.value, list):
        for name in variant.value:
            yield from laid_down(replace(variant, value=name), folders)
        return
    files = (folder / variant.key / f"{variant.value}.yaml" for folder in folders)
    path = next((path for path in files if path.is_file()), None)
    if path is None:  # experiment=null
        return
    if not re.search(r"^\s*#\s*@package\s+_global_\s*$", path.read_text(encoding="utf-8"), re.MULTILINE):
        yield variant.place or variant.key
        return
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(node, dict)  # it composed
    for entry in node.pop("defaults", []):
        named = entry if isinstance(entry, dict) else {variant.key: entry}
        for key, name in named.items():
            group, _, place = str(key).split()[-1].lstrip("/").partition("@")
            if name not in ("_self_", None):
                yield from laid_down(Assignment(text=str(name), key=group, value=name, place=place), folders)
    yield from leaves(node)


def typed(root: str, overrides: Sequence[str], key: str) -> Any:
    """The value that the user's words give to `key`; None if they give none."""
    return next((a.value for a in read(root, overrides).values if a.key == key), None)


def decided(root: str, overrides: Sequence[str]) -> set[str]:
    """The keys and places that the user's words decide, by a value or by a chosen variant."""
    said = read(root, overrides)
    laid = {key for variant in said.variants for key in laid_down(variant, said.folders)}
    return laid | {assignment.key for assignment in said.values}


def read(root: str, overrides: Sequence[str], config_dir: Path | None = None) -> Said:
    """Reads the words. Raises: BadInput with one line, also for a variant that is not there."""
    words, named = take_config_dir(overrides)
    folders = [packaged_configs()]
    own = named or config_dir
    if own is not None and own.resolve() != folders[0]:
        folders.append(own_folder(own))
    places = default_places(folders[0] / f"{root}.yaml")
    places |= nested_places(places, folders)
    assignments = [parse(word, places) for word in words]
    check_once(assignments, SEVERAL)
    variants = [a for a in assignments if a.place or is_group(a.key, folders)]
    for variant in variants:
        known, name = choices(variant.key, folders), variant.value
        several = name if isinstance(name, list) and name and variant.key in SEVERAL else [name]
        if variant.key == "experiment" and name is None:  # none, as the root file has it
            continue
        if wrong := [one for one in several if str(one) not in known]:
            hint, where = did_you_mean(str(wrong[0]), known), variant.place or variant.key
            raise BadInput(f"{variant.text}: {where} must be one of {', '.join(known)} (got {shown(wrong[0])}){hint}")
    values = [a for a in assignments if a not in variants]
    return Said(values=values, variants=variants, folders=folders, places=places)


def own_folder(path: Path) -> Path:
    """The user's folder of configurations; Python finds the modules in it and beside it from now on.

    They come last, so that nothing there can stand in for a module of ours or of a library.
    """
    if not path.is_dir():
        raise BadInput(f"--config-dir {path} is not a folder; give the folder that holds your agent/, task/, ... files")
    folder = path.resolve()
    sys.path += [place for place in (str(folder.parent), str(folder)) if place not in sys.path]
    return folder


def take_config_dir(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Splits `--config-dir DIR` or `--config-dir=DIR` off; any other option is refused."""
    rest, own, coming = [], None, iter(words)
    for word in coming:
        if word == "--config-dir" or word.startswith("--config-dir="):
            text = word.partition("=")[2] or next(coming, "")
            if not text or own is not None:
                raise BadInput(f"--config-dir needs a folder{' and is given twice' * bool(own)}: --config-dir DIR")
            own = expanded(text)
        elif word in ("-m", "--multirun"):
            raise BadInput(f"{word} is not known here: mbrl bench starts a run for each of several values")
        elif word.startswith("-"):
            raise BadInput(f"unknown option {word}; settings are written key=value, for example seed=2")
        else:
            rest.append(word)
    return rest, own


def parse(word: str, places: Mapping[str, str]) -> Assignment:
    """Reads one override by Hydra's grammar; a leading `+` or `++` creates nothing here, so it is dropped.

    Args:
        places: place -> group, as the root file's defaults list lays them out.
    """
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    if (paths := typed_paths(key, value)) is not None:
        return Assignment(text=word, key=key, value=paths)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        if not equals:
            raise BadInput(f"{word} is not a setting; write key=value, for example seed=2") from error
        raise BadInput(
            f"cannot read {key}={value}; put quotes around special characters: '{key}=\"{value}\"'"
        ) from error
    key = override.key_or_group
    if not key:
        raise BadInput(f"{word} has no key before the =; write key=value, for example seed=2")
    if override.is_delete():
        raise BadInput(f"{word} would remove {key}; every key is needed, set it to another value instead: {key}=...")
    if override.is_sweep_override():
        list_of = f", or a list in brackets: {key}=[{value}]" if key in SEVERAL else ""
        raise BadInput(f"{key}={value} is several values, which only mbrl bench takes; give one{list_of}")
    place = override.package
    if place is not None and places.get(place) != key:
        known = ", ".join(f"{group}@{name}" for name, group in places.items() if name != group)
        raise BadInput(f"{word} puts {key} where nothing reads it; write {key}=VARIANT, or one of {known}=VARIANT")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise BadInput(
            f"{word}: Hydra's own settings have no effect here; leave {key} out (run_dir=DIR names the run's folder)"
        )
    if key.rsplit(".", 1)[-1] == "_target_":
        raise BadInput(f"{word}: classes are chosen by variant files only; put {key} into a file of --config-dir DIR")
    if places.get(key, key) != key:  # `prefill=scripted` is short for `agent@prefill=scripted`
        key, place = places[key], key
    return Assignment(text=word, key=key, value=override.value(), place=place or "")


def typed_paths(key: str, text: str) -> str | list[str] | None:
    """The path, or the list of paths, that a word gives to `key`; None where Hydra's grammar must say what it means."""
    if key in PATHS:
        plain = text and text != "null" and text[0] not in "\"'" and "${" not in text and not text.isdigit()
        return text if plain else None
    if key in PATH_LISTS and text.startswith("[") and text.endswith("]") and not set("\"'{$") & set(text):
        return paths_in(text)
    return None


def is_group(key: str, folders: Sequence[Path]) -> bool:
    """Whether `key` names a folder of variants."""
    return "." not in key and any((folder / key).is_dir() for folder in folders)


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """The variants of a group in all folders."""
    return sorted({path.stem for path in files_of(group, folders)})


def files_of(group: str, folders: Sequence[Path]) -> Iterator[Path]:
    """The files of a group's variants; hidden ones, as a zip of a Mac leaves them, are none."""
    for folder in folders:
        yield from (path for path in (folder / group).glob("*.yaml") if not path.name.startswith("."))


def merged(root: str, said: Said) -> tuple[DictConfig, dict[str, str]]:
    """Lets Hydra merge the root file and the chosen variants, without the values; which variant each place has.

    Struct mode, references unresolved, `hydra` itself left out. Raises: BadInput with one line.
    """
    variants, folders = said.variants, said.folders
    words = (
        [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders[1:])}]"] if folders[1:] else []
    )
    for variant in variants:
        name, where = variant.value, variant.place or variant.key
        if name is None:  # what the root file says already; Hydra takes no null here
            continue
        name_in_full = variant.key if where == variant.key else f"{variant.key}@{where}"
        words.append(f"{'' if where in said.places else '+'}{name_in_full}={shown(name)}")
    try:
        with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3"):
            full_cfg = hydra_compose(config_name=root, overrides=words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:  # a file of the user's own that does not fit
        raise BadInput(composition_error(error, variants)) from error
    picked = {
        str(name): str(choice)
        for name, choice in full_cfg.hydra.runtime.choices.items()
        if choice and "hydra" not in str(name)
    }
    cfg = OmegaConf.masked_copy(full_cfg, [str(key) for key in full_cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    return cfg, picked


def quoted(text: str) -> str:
    """Text of any kind as one value of Hydra's grammar, where a backslash is one unless it stands before a quote."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def default_places(path: Path) -> dict[str, str]:
    """Where a root file's defaults list puts which group: `{"task": "task", "prefill": "agent", ...}`."""
    root = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(root, dict)
    keys = [
        str(key).removeprefix("optional ") for entry in root["defaults"] if isinstance(entry, dict) for key in entry
    ]
    pairs = [key.strip("/").partition("@") for key in keys]
    return {place or group: group for group, _, place in pairs}


def nested_places(places: Mapping[str, str], folders: Sequence[Path]) -> dict[str, str]:
    """Where variant files put a variant of a group inside themselves: `{"agent.inner": "agent", ...}`.

    Such a file begins with `defaults: [/agent@inner: random, _self_]`; `agent.inner=dreamer_toy` chooses another one.
    """
    nested: dict[str, str] = {}
    for group in sorted(set(places.values())):
        for path in files_of(group, folders):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"{path} is no text: {error}") from error
            for inner, name in re.findall(r"^\s*-\s*/(\w+)@(\w+):", text, re.MULTILINE):
                nested |= {f"{place}.{name}": inner for place, of in places.items() if of == group}
    return nested


def composition_error(error: Exception, variants: Sequence[Assignment]) -> str:
    """What Hydra, OmegaConf or the YAML reader complain of, in one line, with the variants that led there."""
    asked = f"{' '.join(variant.text for variant in variants)}: " if variants else ""
    words = " ".join(str(error).split()) or type(error).__name__
    cause = " ".join(str(error.__cause__).split()) if error.__cause__ else ""
    return f"{asked}the files do not compose: {words}{f' ({cause})' if cause else ''}; mend the file that is named"
