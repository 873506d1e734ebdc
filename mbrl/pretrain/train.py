"""THE loop of pre-training; construction is in assemble.py."""

from __future__ import annotations

from mbrl.pretrain.run import Pretraining


def pretrain(run: Pretraining) -> None:
    """Runs until the updates are used up or a stop is asked for; leaves a checkpoint behind either way."""
    while run.going():
        if run.due("evaluate"):  # how good is it on episodes that it never learns from?
            run.evaluate()
            if run.stopped:
                break
        for part in run.parts:  # tokenizer, transformer, or one update of each in turn
            with run.timed():
                run.note(run.updater.update(part, run.updates))
        run.count()
        if run.due("log"):
            run.report()
        if run.due("save"):  # never lose more than this
            run.save()
    run.finish()
