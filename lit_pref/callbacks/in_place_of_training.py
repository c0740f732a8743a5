"""Something else than training, on the Trainer's devices and with the run's data."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import _TunerExitException


class InPlaceOfTraining(Callback):
    """Calls `work` with the module once the data are prepared and before any model exists; then the run is over.

    Args:
        work: is called on every rank.
    """

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.work = work

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.work(pl_module)
        raise _TunerExitException  # how Lightning ends a run here by itself, without a failure, on every rank
