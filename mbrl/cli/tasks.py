"""List the tasks of a world, for example the 50 of Meta-World.

usage: mbrl tasks [task=VARIANT] [--config-dir DIR]

  mbrl tasks                                     Meta-World's, which mbrl train takes unless you say otherwise
  mbrl tasks task=dmc                            the DeepMind Control Suite's; also task=gymnasium, task=toy
  mbrl tasks task=mine --config-dir configs.d    a world of your own

One name a line, for task.name=NAME.
"""

from __future__ import annotations

from typing import Any

from mbrl.cli.errors import DONE, BadInput


def run(args: list[str]) -> int:
    """Prints the tasks of a world, one a line: of `task=VARIANT`, else of the one that `mbrl train` takes.

    Raises: BadInput for any other word.
    """
    from mbrl.cli.compose import compose, take_config_dir
    from mbrl.cli.train import as_plain
    from mbrl.rundir.build import make

    for word in take_config_dir(args)[0]:
        if not word.startswith("task="):
            raise BadInput(f"mbrl tasks takes task=VARIANT only (got {word}); to search: mbrl tasks | grep {word}")
    task: Any = make(as_plain(compose("train", args))["task"], "task", trusted=True)
    print("\n".join(task.tasks))
    return DONE
