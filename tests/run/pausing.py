"""A callback that makes a run wait, so that a test can interrupt it there."""

import time
from typing import Any

from lightning.pytorch import Callback


class Pausing(Callback):
    """Prints `paused` and waits for a minute at the second batch of training, or in a validation that follows it.

    Args:
        within: `training` or `validation`.
    """

    def __init__(self, within: str = "training") -> None:
        self.within = within

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.within == "training" and batch_idx == 1:
            self._wait()

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.within == "validation" and not trainer.sanity_checking:
            self._wait()

    @staticmethod
    def _wait() -> None:
        print("paused", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.05)
