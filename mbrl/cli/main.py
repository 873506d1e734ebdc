"""The console script `mbrl`: picks a verb, hands it the rest of the line, and ends with an exit code one can rely on.

Help, a wrong verb and the version are answered from here, so they never wait for torch or Hydra.
"""

from __future__ import annotations

import ast
import faulthandler
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mbrl.cli.errors import DONE, BadInput, did_you_mean, guarded
from mbrl.envs.back_end import unimportable
from mbrl.program import packaged_configs
from mbrl.ranks import current
from mbrl.rundir.stop import leave_early

NAMES = (
    "train", "eval", "bench", "results", "scale", "audit", "report", "predict", "metrics", "data", "pretrain",
    "weights", "transfer", "doctor", "tasks",
)  # fmt: skip
VERBS = {name: f"mbrl.cli.{'evaluate' if name == 'eval' else name}" for name in NAMES}
"""The module whose `run(args) -> int` does it; its docstring is the help: a summary, a blank line, the usage."""
COMPOSED = ("train", "pretrain", "predict", "transfer")
"""Verbs whose words are laid on files under configs/."""
USAGE = """usage: mbrl VERB [...] [--debug]

Model-based reinforcement learning inside token world models.

{verbs}

  mbrl VERB --help   more about a verb
  --debug            show the traceback of an error, also of one in a class of yours
  --version          print the version

Exit codes: 0 done, 2 bad input, 3 damaged data, 4 diverged or a class of yours broke,
75 saved and wants to go on, 1 anything else."""


def help_of(verb: str) -> tuple[str, str]:
    """Summary and usage of a verb, read from its file: imported it would bring torch and Hydra along."""
    spec = importlib.util.find_spec(VERBS[verb])
    assert spec is not None and spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")), clean=False) or ""
    summary, _, usage = text.strip().partition("\n\n")
    return summary.rstrip("."), usage


def settings(verb: str) -> str:
    """The keys and groups of a verb's root file, each with its line, and the variants of every group."""
    configs = packaged_configs()
    _, _, root = (configs / f"{verb}.yaml").read_text(encoding="utf-8").partition("defaults:")
    groups = {
        found[2]: found[1] for found in re.finditer(r"^  - (?:optional )?/?(?:([\w/]+)@)?(\w+):", root, re.MULTILINE)
    }
    wide = max(map(len, groups))
    lines = ["Groups and their variants (group=variant; the files under configs/ hold every key and a line about it):"]
    for place, group in groups.items():
        folder = configs / (group or place)
        lines.append(f"  {place.ljust(wide)}  {' '.join(sorted(path.stem for path in folder.glob('*.yaml')))}")
    keys = re.findall(r"^[a-z]\w*:.*(?:\n  .+)*", root, re.MULTILINE)
    return "\n".join(
        [*lines, "", "Keys (key=value; --cfg prints all, as composed from the other words):", *("  " + k for k in keys)]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    return guarded(lambda: dispatch(words), debug=debug)


def dispatch(words: list[str]) -> int:
    """Answers help and version, or runs the verb. Raises: BadInput for a verb that is none."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:8} {help_of(verb)[0]}" for verb in VERBS)))
        return DONE
    if words[0] == "--version":
        print(version())
        return DONE
    name, rest = words[0], words[1:]
    if name not in VERBS:
        hint = did_you_mean(name, VERBS) or f"; it is one of {', '.join(VERBS)}"
        raise BadInput(f"unknown verb {name}{hint}")
    if "-h" in rest or "--help" in rest:
        print(help_of(name)[1])
        if name in COMPOSED:
            print("\n" + settings(name))
        return DONE
    if "--cfg" in rest and name in COMPOSED:
        from omegaconf import OmegaConf

        from mbrl.cli.compose import compose

        print(OmegaConf.to_yaml(compose(name, joined([word for word in rest if word != "--cfg"]))), end="")
        return DONE
    if current().world > 1 and name not in ("train", "pretrain"):
        raise BadInput(f"torchrun starts several processes, and mbrl {name} is for one: start it without torchrun")
    for complaint in unimportable():
        raise BadInput(complaint)
    code: int = importlib.import_module(VERBS[name]).run(joined(rest))
    return code


def joined(words: list[str]) -> list[str]:
    """`--config-dir DIR` as the one word `--config-dir=DIR`."""
    if "--config-dir" not in words[:-1]:
        return words
    at = words.index("--config-dir")
    return joined([*words[:at], f"--config-dir={words[at + 1]}", *words[at + 2 :]])


def version() -> str:
    """The installed version, or a word that says this is a bare checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"tokendream {installed('tokendream')}"
    except PackageNotFoundError:
        return "tokendream (not installed: running from a checkout)"


def console() -> None:
    """Entry point of `python -m mbrl`; a reader that closed its end early (`mbrl tasks | head`) is no error."""
    leave_early(sys.argv[1:])
    faulthandler.enable()  # a crash in a library's native code tells the line of ours that led there
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        code = DONE
    if current().world > 1:
        # gloo's threads may free tensors while the interpreter ends, which aborts it (pytorch issue 190489)
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
