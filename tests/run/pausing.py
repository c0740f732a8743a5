"""A callback that makes a run wait, so that a test can interrupt it there."""

import time
from typing import Any

from lightning.pytorch import Callback


def pause_exports() -> None:
    """Make every export wait once its weights are written."""
    from lit_pref.run import export

    save = export.save_folder

    def save_and_wait(*arguments: Any) -> Any:
        written = save(*arguments)
        Pausing._wait()
        return written

    export.save_folder = save_and_wait


class Pausing(Callback):
    """Prints `paused` and waits for a minute at the second batch of training, or in a validation that follows it.

    Args:
        within: `training`, `validation` (also one without training) or `export`.
    """

    def __init__(self, within: str = "training") -> None:
        self.within = within
        if within == "export":
            pause_exports()

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
