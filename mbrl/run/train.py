"""THE loop, as in docs/algorithm.md, whose line numbers it carries; construction is in assemble.py."""

from __future__ import annotations

from mbrl.run.learning import Learning


def train(run: Learning) -> None:
    """Runs until the env steps are used up or a stop is asked for; leaves a checkpoint behind either way."""
    run.demonstrate()
    run.measure_random_policy()
    while run.going():
        if not run.behind():  # (a stopped run first does what was owed when it stopped)
            with run.timed("collect"):  # 1  act in the world, remember it
                finished = run.collect()
            with run.timed("measure"):  # 2  what no fit has seen yet says how good the world model is
                for episode in finished:
                    run.measure(episode)
        run.agree()  # (several processes: the others wait until here)
        for part in run.model.spec.parts:  # 3  fine-tune the world model on replay, each part on its cadence
            for update in run.owed(part):
                with run.timed("fit"):
                    run.note(run.updater.update(part, update))
        for update in run.owed("learn"):  # 4  the agent learns, in imagination (once the model is good enough)
            with run.timed("learn"):
                run.note(run.learn(update))
        for _ in run.owed("evaluate"):  # 5  how good is it?
            with run.timed("evaluate"):
                run.evaluate()
        for _ in run.owed("log"):
            run.report()
        for _ in run.owed("save"):  # 6  never lose more than this
            run.save()
    run.finish()
