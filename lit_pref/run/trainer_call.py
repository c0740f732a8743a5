"""Calls a method of a run's Trainer, and ends all processes of the run with one sentence if it fails in one of them."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_pref.callbacks.termination import Terminated, ending_on_sigterm
from lit_pref.errors import UsageError, UserError
from lit_pref.run.disk_faults import disk_faults
from lit_pref.run.folders import refuse_shards
from lit_pref.run.lightning_messages import lightning_errors
from lit_pref.run.lost_process import one_sentence


def trainer_call(
    method: Callable[..., Any], trainer: Trainer, run_dir: Path, relaunchable: bool, *arguments: Any, **options: Any
) -> None:
    """Call a method of a Trainer.

    Args:
        method: `trainer.fit`, or another one.
        trainer: the Trainer of a run.
        run_dir: the run folder.
        relaunchable: whether this process's command line can start further processes of this run.
        arguments: passed to the method.
        options: passed to the method.

    Raises:
        UserError: the run cannot be done as configured, or lost a process, its disk or its data.
        Terminated: SIGTERM arrived.
    """
    launcher = trainer.strategy.launcher
    launches = isinstance(launcher, _SubprocessScriptLauncher) and launcher.num_processes > 1
    if launches and not relaunchable:
        raise UsageError(
            f"{trainer.world_size} processes cannot be started from within Python, because Lightning would run the "
            "whole program again in each: use `python -m lit_pref`, torchrun, or trainer.devices 1"
        )
    refuse_shards(options.get("ckpt_path"), trainer.strategy)
    with lightning_errors(), ending_on_sigterm(trainer):
        try:
            with one_sentence(trainer, run_dir), disk_faults(trainer, run_dir):
                method(*arguments, **options)
        except (UserError, Terminated):
            # The first process reports why and ends; the processes that it started would wait for it.
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGKILL)
            raise
