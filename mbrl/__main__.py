"""`python -m mbrl`: the console script, where none is installed, and what torchrun starts."""

import os

from mbrl.cli.main import console
from mbrl.ranks import take

if __name__ == "__main__":
    take(os.environ)
    console()
