"""A worker process whose trials sleep and compute a number instead of training; it must not import torch."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies.computed_trials import computed, curves, plan_by_hand

from lit_pref.studies.plan_file import Planned
from lit_pref.studies.reading import read_study
from lit_pref.studies.trial import Trial
from lit_pref.studies.worker import Worker


def slowly(trial: Trial, stop: int | None, cell: Planned) -> None:
    """Compute a trial, and record its start and its end."""
    attempts = trial.folder / "attempts"
    attempts.mkdir(exist_ok=True)
    name = f"{trial.cell}.s{trial.seed}.{os.getpid()}"
    (attempts / f"{name}.began").touch()
    time.sleep(0.2)
    computed(trial, stop, cell)
    (attempts / f"{name}.ended").touch()


if __name__ == "__main__":
    study = read_study(sys.argv[1])
    Worker(study, plan_by_hand(study), slowly, curves, lease=1.0, beat=0.2, pause=0.05).work()
    assert "torch" not in sys.modules
