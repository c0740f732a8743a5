"""Runs other work than training on the Trainer's devices and with the run's data."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class WorkDone(Exception):
    """Raised when the work is done, because the Trainer cannot be stopped otherwise before it builds the model."""


class InPlaceOfTraining(Callback):
    """Calls `work` with the module once the data are prepared and before any model exists, then raises `WorkDone`.

    Args:
        work: a function that is called on every rank.
    """

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.work = work

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.work(pl_module)
        raise WorkDone
