"""Plans by hand, and trials that are computed instead of trained."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lit_pref.studies.cells import cells_of
from lit_pref.studies.plan_file import Plan, Planned
from lit_pref.studies.reading import read_study
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Outcome, Trial
from lit_pref.studies.worker import Worker


def plan_by_hand(study: Study, steps: int = 10) -> Plan:
    """The plan of a study whose runs are never built."""
    cells = [Planned(cell.name, cell.labels, "digest", steps, values=cell.values) for cell in cells_of(study)]
    return Plan(study.key, cells, shared=True)


def number(cell: str, seed: int, step: int = 10) -> float:
    """The primary measure of a computed trial: the margin is better by about 1 at beta 0.3, and not at beta 0.1."""
    noise = int(hashlib.sha256(f"{cell}/{seed}/{step}".encode()).hexdigest()[:8], 16) / 2**32
    effect = {"target=margin,beta=0.3": 1.0, "target=margin,beta=0.1": 0.1 * (-1) ** seed}.get(cell, 0.0)
    return 5.0 + seed + 0.1 * noise + effect + step / 100


def ended(trial: Trial, labels: dict[str, str], **changes: Any) -> Outcome:
    """The outcome of a computed trial."""
    curve = [(step, number(trial.cell, trial.seed, step)) for step in (0, 4, 10)]
    known: dict[str, Any] = {"state": "finished", "step": 10, "steps": 10, "seconds": 2.0, "digest": "digest"}
    known["curves"] = {"score": curve, "other": [(10, 0.5)]}
    return Outcome(labels, trial.seed, **{**known, **changes})


def computed(trial: Trial, stop: int | None, cell: Planned) -> None:
    """Train a trial by computing its curve."""
    steps = [step for step in (0, 4, 8, 10) if stop is None or step <= stop]
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    curves = {"score": [(step, number(cell.name, trial.seed, step)) for step in steps], "other": [(steps[-1], 0.5)]}
    (trial.run_dir / "curves.json").write_text(json.dumps(curves))


def curves(run_dir: Path) -> dict[str, Any]:
    """Read the curves of a computed trial."""
    file = run_dir / "curves.json"
    return json.loads(file.read_text()) if file.exists() else {}


def work_slowly(config: str) -> None:
    """Work as a worker whose trials take a moment; it must not import torch."""

    def slowly(trial: Trial, stop: int | None, cell: Planned) -> None:
        time.sleep(0.15)
        computed(trial, stop, cell)

    study = read_study(config)
    (study.folder / "worker.pid").write_text(str(os.getpid()))
    Worker(study, plan_by_hand(study), slowly, curves, lease=1.0, beat=0.2, pause=0.05).work()
    assert "torch" not in sys.modules
