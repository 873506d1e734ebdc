"""The values of a command line, laid on a composed configuration key by key, each as the kind of thing it is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl.cli.errors import BadInput, did_you_mean
from mbrl.rundir.build import KINDS, find, fits


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One `key=value` of the command line.

    Attributes:
        text: what the user typed.
        key: the dotted key, or the group.
        value: what stands behind the `=`, read by Hydra's grammar.
        place: where a variant goes if not to its group's own name (`group@place=variant`).
    """

    text: str
    key: str
    value: Any
    place: str = ""


def check_once(assignments: Sequence[Assignment], several: Sequence[str]) -> None:
    """Raises: BadInput where two words set the same key, with what to write instead.

    Args:
        several: the groups of which several variants may be laid over each other.
    """
    seen: dict[tuple[str, str], Assignment] = {}
    for word in assignments:
        value = word.value
        for key in leaves(value, f"{word.key}.") if isinstance(value, dict) and value else [word.key]:
            if (first := seen.setdefault((key, word.place), word)) is word:
                continue
            mend = "write the one that you mean"
            if key in several:
                names = ",".join(shown(one.value).strip("[]") for one in (first, word))
                mend = f"write {key}=[{names}]: where both set a key, the later one is taken"
            raise BadInput(f"{key} is given twice ({first.text} and {word.text}); {mend}")


def laid_on(cfg: DictConfig, values: Sequence[Assignment]) -> DictConfig:
    """`cfg` with these values, without references."""
    OmegaConf.set_struct(cfg, True)
    known = set(leaves(OmegaConf.to_container(cfg, resolve=False)))
    for assignment in values:
        assign(cfg, assignment, known)
    return resolved(cfg)


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted key of every value in a nested container; lists are values."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


CALLED = {
    **dict.fromkeys(("steps", "max_steps", "num_steps", "total_steps", "total_timesteps"), "schedule.total"),
    **dict.fromkeys(("env", "env_id", "env_name"), "task.name"),
}
"""What other code bases call a key of ours -> it."""


def assign(cfg: DictConfig, assignment: Assignment, known: set[str]) -> None:
    """Sets one existing key to a value of the kind it has by default; a mapping sets each of its keys.

    Raises: BadInput for an unknown key, also behind `+` or `++`, and for a value of another kind.
    """
    key, value = assignment.key, assignment.value
    nodes = {leaf.rsplit(".", depth)[0] for leaf in known for depth in range(leaf.count(".") + 1)}
    if key not in nodes:
        hint = did_you_mean(key, known) or did_you_mean(key, nodes) or "; the files under configs/ hold every key"
        if CALLED.get(key) in known:
            hint = f"; did you mean {CALLED[key]}?"
        raise BadInput(f"unknown key {key} (in {assignment.text}){hint}")
    if isinstance(value, dict) and key not in known:
        for name, inner in value.items():
            assign(cfg, Assignment(text=assignment.text, key=f"{key}.{name}", value=inner), known)
        return
    if key not in known:
        inside = sorted(leaf for leaf in known if leaf.startswith(key + ".") and not leaf.endswith("_target_"))
        raise BadInput(f"{key} holds several keys (got {value!r}); set one of them: {', '.join(inside[:6])}")
    if value is None and may_be_null(cfg, key):
        OmegaConf.update(cfg, key, None, merge=False)
        return
    OmegaConf.update(cfg, key, of_kind(key, value, default_of(cfg, key)), merge=False)


def may_be_null(cfg: DictConfig, key: str) -> bool:
    """Whether the class that takes `key` lets it be null, though the files give it a value."""
    group, _, name = key.rpartition(".")
    target = OmegaConf.select(cfg, f"{group}._target_") if group else None
    try:
        fields = dataclasses.fields(find(target, group, trusted=True)) if target else ()
    except ValueError:  # whoever builds it says so
        return False
    return any(field.name == name and "None" in str(field.type) for field in fields)


def default_of(cfg: DictConfig, key: str) -> Any:
    """The value a key has in the files; None when it is null, must be given, or refers to such a key."""
    parent, name = (OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg), key.rpartition(".")[2]
    if OmegaConf.is_missing(parent, name):
        return None
    value = parent[name]
    return list(value) if isinstance(value, ListConfig) else value


def of_kind(key: str, value: Any, default: Any) -> Any:
    """`value` as the kind of thing `default` is; whole numbers also serve as numbers and, like numbers, as text.

    Raises: BadInput naming the key, the value and an example.
    """
    if isinstance(value, str) and "${" in value and not isinstance(default, str | None):
        raise BadInput(
            f"{key} must be {KINDS[type(default)]} (got the reference {value}); write the value itself: {key}=..."
        )
    if default is None:
        return value
    kind = next(kind for kind in (bool, int, float, str, list, dict) if isinstance(default, kind))
    number = fits(value, float)
    if kind is float and number:
        return float(value)
    if kind is str and number:
        return str(value)
    if fits(value, kind):
        if isinstance(value, list) and default:
            return [of_kind(f"{key}[{place}]", item, default[0]) for place, item in enumerate(value)]
        return value
    example = int(value) if kind is int and number and float(value).is_integer() else shown(default)
    raise BadInput(f"{key} must be {KINDS[kind]} (got {shown(value)}); for example {key.partition('[')[0]}={example}")


def shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return str(value) if value != "" else "nothing"


def resolved(cfg: DictConfig) -> DictConfig:
    """The configuration without references, nothing missing.

    Raises: BadInput naming what must be given, or the key whose reference leads nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        key, words = getattr(error, "full_key", None) or "a key", str(error).splitlines()[0]
        raise BadInput(f"{key} refers to something that is not there ({words}); set it: {key}=...") from error
    if missing:
        raise BadInput(f"{missing[0]} must be given (it has no default); add {missing[0]}=...")
    return cfg
