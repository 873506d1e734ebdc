"""`python -m mbrl`: the console script, where none is installed, and what torchrun starts."""

import os
import sys

if __name__ == "__main__":
    from mbrl.rundir.stop import leave_early

    leave_early(sys.argv[1:])  # before anything else is imported

    from mbrl.cli.main import console
    from mbrl.ranks import take

    take(os.environ)
    console()
