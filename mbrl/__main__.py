"""`python -m mbrl`: the console script, where none is installed."""

from mbrl.cli.main import console

if __name__ == "__main__":
    console()
