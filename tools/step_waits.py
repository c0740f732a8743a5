"""The lines of code at which a training step on a GPU lets the host wait for it, by torch's own debug mode."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

WARNING = "synchronizing CUDA operation"


class WatchedSteps(Callback):
    """Switches the debug mode on for some micro-batches, the loading of the later ones included.

    Args:
        first: the first watched micro-batch, counted from 0; the ones before it fill caches.
        last: the last one.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += self.first <= batch_idx <= self.last
        if batch_idx == self.last:
            torch.cuda.set_sync_debug_mode("default")


def waits_of_steps(fit: Callable[[Callback], object], first: int = 3, last: int = 8) -> list[str]:
    """Return the lines of code, `file:line`, at which the host waits for the GPU in steps of a run; once for each wait.

    A logging step is one wait (the metrics), a validation and a checkpoint are others: the run should have none of them
    among the watched micro-batches.

    Args:
        fit: trains with a further callback, for at least `last` + 1 micro-batches.
        first: the first watched micro-batch, counted from 0.
        last: the last one.

    Raises:
        ValueError: the run ended before the last one.
    """
    watched = WatchedSteps(first, last)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(watched)
    if watched.seen <= last - first:
        raise ValueError(f"the run took fewer than {last + 1} micro-batches: {watched.seen} were watched")
    return [f"{Path(one.filename).name}:{one.lineno}" for one in caught if WARNING in str(one.message)]
