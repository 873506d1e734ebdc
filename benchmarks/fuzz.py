"""Folders of a stranger: seeded mutations of every kind of file in a run and in foreign archives, opened by the verbs
that read them.

python -m benchmarks.fuzz [cases] [seed]

Each case is a copy of a small run, or of an archive that `mbrl data convert` reads, with one mutation, opened in a
process of its own. It is right if that ends by itself, within `SECONDS` and `MEMORY`, with exit code 0, 2 or 3, and
without a traceback. (4 is right where a value of a run's configuration is another: training from it may well diverge.)
Prints counts by exit code, the longest time and the largest memory; ends with 1 and the cases that were wrong. 1000
cases take an hour of one core.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks import archives
from mbrl.cli.main import main as mbrl
from mbrl.progress import told

SECONDS, MEMORY = 60.0, 4 * 2**30
"""At most, of one core; five minutes by the clock."""
RIGHT, DIVERGED = (0, 2, 3), 4
"""Exit codes: done, bad input, damaged data; and of training that diverges."""
EVAL, REPORT = ("eval", "run=IT", "episodes=1"), ("report", "run=IT")
TRAIN, CHECK, INSPECT = (
    ("train", "run_dir=IT", "schedule.total=225"),
    ("data", "check", "IT"),
    ("weights", "inspect", "IT"),
)
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    ".yaml": (EVAL, REPORT, TRAIN, INSPECT),
    ".json": (EVAL, REPORT, TRAIN, INSPECT),
    ".csv": (REPORT, TRAIN),
    ".npz": (TRAIN, CHECK),
    ".safetensors": (EVAL, TRAIN, INSPECT),
}
"""Which verbs read a kind of file in a run."""
CONVERT = ("data", "convert", "from=IT", "to=OUT")
VALUES: tuple[object, ...] = (
    0,
    -1,
    1e30,
    2**40,
    float("nan"),
    None,
    [],
    {},
    "",
    "x" * 5000,
    True,
    "${oc.env:HOME}",
    "../../etc",
    [[[]]],
    3.5,
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one case ended: its exit code (negative: died of that signal), what it said last, seconds, bytes at most."""

    code: int
    said: str
    seconds: float
    memory: int
    traceback: bool
    right: tuple[int, ...] = RIGHT

    @property
    def wrong(self) -> bool:
        """Whether nobody should have had to see this."""
        return self.code not in self.right or self.traceback or self.seconds > SECONDS or self.memory > MEMORY


def begun(folder: Path) -> Path:
    """A folder with a small run and archives to mutate; what the verbs import is imported here, once."""
    archives.write(folder)
    for module in (
        "run.assemble",
        "run.restore",
        "report.page",
        "data.check",
        "rundir.origin",
        "cli.train",
        "cli.evaluate",
        "data.convert.run",
    ):
        importlib.import_module(f"mbrl.{module}")
    code = opened(("train", "experiment=debug", "schedule.total=200", "run_dir=IT"), folder / "run", folder).code
    assert code == 0, (folder / "said").read_text()
    return folder


def opened(words: Sequence[str], it: Path, folder: Path, *, right: tuple[int, ...] = RIGHT) -> Ended:
    """One command line about `it` in a process of its own; what it says and writes comes into `folder`."""
    said = folder / "said"
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            screen = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(screen, 1)
            os.dup2(screen, 2)
            signal.alarm(int(5 * SECONDS))  # whoever waits for nothing takes no seconds of a core
            code = mbrl([word.replace("IT", str(it)).replace("OUT", str(folder / "out")) for word in words])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    text = said.read_text(errors="replace")
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        said=(text.strip().splitlines() or [""])[-1][:200],
        seconds=usage.ru_utime + usage.ru_stime,
        memory=usage.ru_maxrss * 1024,
        traceback="Traceback" in text,
        right=right,
    )


# -- mutations: each changes one file, and gives a word about it -------------------------------------------------------


def flipped(path: Path, random: Random) -> str:
    """One byte is another."""
    content = bytearray(path.read_bytes())
    if content:
        content[random.randrange(len(content))] ^= random.randrange(1, 256)
    path.write_bytes(content)
    return "a flipped byte"


def cut(path: Path, random: Random) -> str:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) + 1)])
    return "cut off"


def replaced(path: Path, random: Random) -> str:
    """It is something else."""
    path.unlink()
    kind = random.choice(("missing", "folder", "pipe", "link", "noise", "zeros"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "noise":
        path.write_bytes(random.randbytes(random.randrange(1, 5000)))
    elif kind == "zeros":
        path.write_bytes(bytes(random.randrange(1, 5000)))
    return kind


def revalued(path: Path, random: Random) -> str:
    """One value of a YAML or JSON file is another; manifests get their hashes anew, so that the value is looked at."""
    import yaml

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else None
    if lines is not None:
        plain: Any = [json.loads(line) for line in lines]
    else:
        plain = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    node, key = random.choice(list(places(plain)))
    if random.random() < 0.2:
        del node[key]
        what = f"without {key}"
    else:
        node[key] = random.choice(VALUES)
        what = f"{key}={node[key]!r:.40}"
    if lines is not None:
        path.write_text("".join(json.dumps(line) + "\n" for line in plain))
    else:
        text = yaml.safe_dump(plain) if path.suffix == ".yaml" else json.dumps(plain, indent=1, sort_keys=True)
        path.write_text(text)
    if path.parent.name.startswith("step-"):
        vouched(path.parent)
    return what


def places(node: object) -> Iterator[tuple[dict, object]]:
    """Every (mapping, key) of a nested container."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield node, key
            yield from places(value)
    elif isinstance(node, list):
        for value in node[:50]:
            yield from places(value)


def vouched(checkpoint: Path) -> None:
    """Writes sizes and hashes of a checkpoint's files into its manifest, as a forger would."""
    from mbrl.files import sha256
    from mbrl.io.checkpoint import _canonical

    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest.pop("sha256", None)
        for name, entry in manifest["files"].items():
            content = (checkpoint / name).read_bytes()
            entry |= {"bytes": len(content), "sha256": sha256(content)}
        (checkpoint / "manifest.json").write_bytes(_canonical(manifest | {"sha256": sha256(_canonical(manifest))}))
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return  # the manifest itself is what was changed


def celled(path: Path, random: Random) -> str:
    """One cell of a table is another."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = random.choice(rows)
    row[random.randrange(len(row))] = random.choice(("", "x", "nan", "1e400", '"', "9" * 400, "é"))
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return "another cell"


def reheaded(path: Path, random: Random) -> str:
    """The header of a safetensors file says another length or shape."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    if random.random() < 0.5:
        content[:8] = struct.pack("<Q", random.choice((0, 1, length - 1, length + 1, 2**40, 2**63)))
    else:
        place = random.randrange(8, 8 + length)
        content[place] = random.choice(b"0123456789[]{},:")
    path.write_bytes(content)
    vouched(path.parent)
    return "another header"


ANY: tuple[Callable[[Path, Random], str], ...] = (flipped, cut, replaced)
OWN: dict[str, tuple[Callable[[Path, Random], str], ...]] = {
    ".yaml": (revalued, revalued, revalued),
    ".json": (revalued, revalued, revalued),
    ".jsonl": (revalued, revalued, revalued),
    ".csv": (celled, celled),
    ".npz": (archives.rearrayed, archives.rearrayed, archives.rearrayed),
    ".hdf5": (archives.relinked, archives.relinked, archives.relinked),
    ".parquet": (archives.recolumned, archives.recolumned, archives.recolumned),
    ".safetensors": (reheaded, reheaded),
}


def mutated(files: Sequence[Path], random: Random) -> tuple[Path, str]:
    """Changes one of some files, kinds being equally likely: which, and how."""
    kind = random.choice(sorted({path.suffix for path in files}))
    path = random.choice([path for path in files if path.suffix == kind])
    return path, random.choice((*ANY, *OWN.get(kind, ())))(path, random)


def fuzzed(cases: int, seed: int, folder: Path) -> Iterator[tuple[str, Ended]]:
    """(the mutation and the verb, how it ended) of every case; a case is a function of seed and number."""
    begun(folder)
    for case in range(cases):
        random = Random(f"{seed}/{case}")
        name = random.choice((*["run"] * len(archives.WORDS), *archives.WORDS))
        it = Path(shutil.copytree(folder / name, folder / f"case-{case}"))
        files = sorted(path for path in it.rglob("*") if path.is_file() and (name != "run" or path.suffix in READERS))
        path, how = mutated(files, random)
        words = random.choice(READERS[path.suffix]) if name == "run" else (*CONVERT, *archives.WORDS[name])
        right = (*RIGHT, DIVERGED) if path.name == "config.yaml" else RIGHT
        yield (
            f"case {case}, {name}/{path.relative_to(it)}: {how}, mbrl {words[0]}",
            opened(words, it, folder, right=right),
        )
        shutil.rmtree(it)
        shutil.rmtree(folder / "out", ignore_errors=True)


def main(cases: int, seed: int) -> int:
    """Runs them, or as many as there is time for until Ctrl-C; 1 if one was wrong."""
    codes: Counter[int] = Counter()
    longest, largest, wrong = 0.0, 0, 0
    tell = told("cases")
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        for name, ended in fuzzed(cases, seed, Path(folder)):
            codes[ended.code] += 1
            longest, largest = max(longest, ended.seconds), max(largest, ended.memory)
            if ended.wrong:
                wrong += 1
                print(f"WRONG {name}: exit {ended.code}, {ended.seconds:.1f} s, {ended.said}", flush=True)
            tell(codes.total(), cases)
    counts = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    print(f"{codes.total()} mutations, seed {seed}: exit codes {counts}; "
          f"at most {longest:.1f} s and {largest / 1e6:.0f} MB")  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    raise SystemExit(main(*(numbers + [1000, 0][len(numbers) :])))
