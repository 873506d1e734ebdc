"""A search over configuration keys with Optuna's ask and tell. Stopped at any moment, the same command goes on.

pip install optuna
python docs/examples/search.py runs/search 20 task.name=door-close-v3
"""

import subprocess
import sys
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mbrl.rundir.result import Episodes, read_result

KEYS = {
    "agent.actor_optim.lr": FloatDistribution(5e-5, 1e-3, log=True),
    "agent.entropy_coef": FloatDistribution(1e-4, 1e-2, log=True),
    "schedule.learn.updates": IntDistribution(2, 12, step=2),
}


def value_of(folder, words, chosen):
    """Mean success of the run's final score, or return where a world knows no success; None if the run failed."""
    line = [*words, *(f"{key}={value}" for key, value in chosen.items()), f"run_dir={folder}"]
    # goes on with a run that was stopped
    if (code := subprocess.run([sys.executable, "-m", "mbrl", "train", *line], check=False).returncode) == 75:
        raise SystemExit(code)  # saved and left: the trial stays open
    if not (result := read_result(folder)):
        return None
    final = Episodes.of(result["final"]).metrics()
    return final.get("success", final["return"])


def main(folder, trials, *words):
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize", load_if_exists=True)
    while True:
        open_trials = study.get_trials(states=(TrialState.RUNNING,))  # asked for, and not told yet
        if not open_trials and len(study.trials) >= trials:
            return study
        number, chosen = next(((one.number, one.params) for one in open_trials), (None, None))
        if number is None:
            trial = study.ask(KEYS)
            number, chosen = trial.number, trial.params
        value = value_of(folder / f"trial-{number}", words, chosen)
        study.tell(number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    done = found.get_trials(states=(TrialState.COMPLETE,))
    print(f"best of {len(found.trials)}: {found.best_value} with {found.best_params}" if done else "all trials failed")
