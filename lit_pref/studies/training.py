"""Trains a trial by `run.build`, in this process where one is enough, and prepares what all trials share."""

import gc
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

import lit_pref
from lit_pref.errors import Diverged, UserError
from lit_pref.printing import say
from lit_pref.studies.plan_file import Planned
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Busy, Trial, config_of

ONE_PROCESS = {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}
"""Options by which a run of several processes is looked at in one."""


def train(trial: Trial, stop: int | None, cell: Planned) -> None:
    """Train a trial, resuming from its newest checkpoint; what the run prints goes to the trial's log.

    Args:
        trial: the trial.
        stop: the optimizer step to stop at, under the schedule of the whole run; None is the end.
        cell: says how many processes a run has.

    Raises:
        Diverged: a loss is not finite.
        Busy: another process trains this trial.
        Exception: anything else that can go wrong in a run.
    """
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("a", encoding="utf-8") as log:
        if cell.processes > 1:
            _by_command_line(trial, stop, log.fileno())
            return
        with redirect_stdout(log), redirect_stderr(log):
            try:
                _here(trial, stop)
            except Exception:
                traceback.print_exc(file=log)
                raise


def make_shared(study: Study, cells: Sequence[Planned]) -> None:
    """Compute the reference scores of all cells, so that trials that start together do not each compute them."""

    from lit_pref.run.run import build

    def fill(module: Any) -> None:
        for preparation in module.reference_preparations("fit"):
            preparation.fill()

    for cell in cells:
        several = ONE_PROCESS if cell.processes > 1 else {}
        seeds = study.seeds if _follows_seed(study, cell) else study.seeds[:1]
        say(f"scores      {cell.name}: references{f' with {len(seeds)} seeds' if len(seeds) > 1 else ''}")
        for seed in seeds:
            options = {**several, "run_dir": ".", "seed_everything": seed}
            build(str(config_of(study.folder, cell.name)), options, "score").before_training(fill)


def _follows_seed(study: Study, cell: Planned) -> bool:
    """Whether each seed has a testbed of its own."""
    config = yaml.safe_load(config_of(study.folder, cell.name).read_text(encoding="utf-8"))
    return config.get("testbed") is not None and config["testbed"]["seed"] is None


def _here(trial: Trial, stop: int | None) -> None:
    import torch

    from lit_pref.run.folder_lock import holder_of
    from lit_pref.run.run import build

    if (holder := holder_of(trial.run_dir)) is not None:
        raise Busy(f"another run{holder} trains in {trial.run_dir}")
    _reset_peak_memory()
    try:
        build(str(trial.config), trial.overrides(stop)).fit()
    finally:
        gc.collect()  # models of this trial, before the next one's are built
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _by_command_line(trial: Trial, stop: int | None, log: int) -> None:
    """Train by `python -m lit_pref fit`, which starts the processes of the run."""
    from lit_pref.modules.nonfinite import NOT_FINITE

    # Lightning takes the variables of a SLURM job for those of its own ranks, and would use one device.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    package = str(Path(lit_pref.__path__[0]).resolve().parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "lit_pref", *trial.command(stop)]
    code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        last = (trial.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]
        raise (Diverged if NOT_FINITE in last else UserError)(f"{last} (exit code {code}, log {trial.log})")


def _reset_peak_memory() -> None:
    """Begin a new peak, so that `train/peak_memory_gib` is that of this trial and not of one before it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")
