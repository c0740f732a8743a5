"""The Trainer of a run, whose callbacks, loggers and plugins depend on the command."""

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment

from lit_pref.callbacks.checkpointing import AtomicCheckpointIO, Checkpoints
from lit_pref.callbacks.progress import progress
from lit_pref.callbacks.run_folder import RunFolder
from lit_pref.errors import UsageError
from lit_pref.modules.sharding import refuse_fsdp1
from lit_pref.run.first_lines import FirstLines
from lit_pref.run.lightning_messages import as_sentence

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


class WorkDone(Exception):
    """Ends `Run.before_training`, because a Trainer cannot be stopped otherwise before it builds the model."""


def trainer_of(config: Namespace, command: str, run_dir: Path, text: str) -> Trainer:
    """The Trainer of a command.

    Args:
        config: its arguments, with callbacks, loggers and strategy as objects.
        command: `fit` logs, saves checkpoints and writes a record of the run; `validate`, `test` and `predict` only
            show their progress; other commands do none of this.
        run_dir: the run folder.
        text: the configuration to record.

    Raises:
        UsageError: Lightning refuses a combination of settings, or the strategy is not supported.
    """
    arguments = {**config}
    if config.max_epochs is None and config.max_steps == -1:
        arguments["max_epochs"] = 1
    arguments |= {"default_root_dir": str(run_dir), "use_distributed_sampler": False}
    arguments["plugins"] = [*_as_list(config.plugins), AtomicCheckpointIO()]
    callbacks = _as_list(config.callbacks)
    if command in TRAINER_COMMANDS and config.enable_progress_bar is not False:
        callbacks.append(progress())
        arguments["enable_progress_bar"] = sys.stdout.isatty()
    if command == "fit":
        callbacks += [FirstLines(), RunFolder(text)]
        if not any(isinstance(callback, Checkpoints) for callback in callbacks):
            callbacks.append(Checkpoints())
    if config.logger is None or command not in TRAINER_COMMANDS or (command == "fit" and config.logger is True):
        arguments["logger"] = False  # `Run.fit` makes the default logger, once it knows the step from which to write
    refuse_fsdp1(config.strategy)
    if command == "fit" and config.enable_checkpointing is False:
        raise UsageError(
            "trainer.enable_checkpointing is false, and fit needs checkpoints to export the model: leave it out, and "
            "keep few of them by --trainer.callbacks+=Checkpoints --trainer.callbacks.keep 1"
        )
    try:
        trainer = Trainer(**{**arguments, "callbacks": callbacks})
    except (ValueError, TypeError, ImportError) as error:  # raised for impossible combinations of settings
        raise UsageError(as_sentence(error)) from error
    _refuse_processes(trainer, config.accelerator, command)
    return trainer


def _refuse_processes(trainer: Trainer, accelerator: str, command: str) -> None:
    """Refuse more processes than CPU cores if a GPU was probably meant, and nodes that would wait for each other."""
    cores = os.cpu_count() or 1
    if accelerator == "auto" and isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UsageError(
            f"trainer.devices is {trainer.num_devices} and no GPU was found, so as many processes would share {cores} "
            f"CPU cores: set trainer.devices to {cores} or less, or trainer.accelerator to cpu if this is meant"
        )
    missing = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} - os.environ.keys()
    alone = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    if command in TRAINER_COMMANDS and trainer.num_nodes > 1 and alone and missing:
        raise UsageError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing says where the nodes meet, so this process would "
            "wait for them for ever: start the command on each node with torchrun or srun (docs/lightning.md, Several "
            f"nodes), or set {', '.join(sorted(missing))} in the environment"
        )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
