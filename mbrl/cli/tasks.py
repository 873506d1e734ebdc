"""List the 50 Meta-World tasks.

usage: mbrl tasks

One name a line, for task.name=NAME.
"""

from __future__ import annotations

from mbrl.cli.errors import DONE, BadInput


def run(args: list[str]) -> int:
    """Prints the Meta-World tasks, one a line. Raises: BadInput if anything follows the verb."""
    if args:
        raise BadInput(f"mbrl tasks takes nothing (got {' '.join(args)}); to search: mbrl tasks | grep {args[0]}")
    from mbrl.envs.metaworld import TASKS

    print("\n".join(TASKS))
    return DONE
