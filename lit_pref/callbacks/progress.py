"""Shows the progress of a run: a bar on a terminal, lines in a log."""

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lit_pref.printing import say


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with the last logged loss and accuracy, for a terminal."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        numbers: dict[str, float] = getattr(pl_module, "training_numbers", {})
        shown = {"loss": "train/loss", "accuracy": "train/rewards/accuracies"}
        return {name: round(numbers[key], 4) for name, key in shown.items() if key in numbers}


class ProgressLines(Callback):
    """Prints a line whenever training logs and when a validation ends, for an output that is not a terminal."""

    def __init__(self) -> None:
        self._shown_step = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        numbers = pl_module.training_numbers
        if trainer.is_global_zero and numbers and pl_module.logged_step != self._shown_step:
            self._shown_step = pl_module.logged_step
            accuracy = numbers.get("train/rewards/accuracies")
            say(
                f"step {self._shown_step} of {pl_module.total_steps}  loss {numbers['train/loss']:.4f}"
                + ("" if accuracy is None else f"  accuracy {accuracy:.3f}")
                + f"  {numbers['train/pairs_per_second']:.1f} pairs/s"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        numbers = pl_module.evaluation.last
        if trainer.is_global_zero and numbers:
            accuracy = numbers.get("val/rewards/accuracies", numbers.get("val/lists/accuracies"))
            # A validation alone has no step of its own: that of the checkpoint counts.
            step = trainer.global_step if trainer.state.fn == "fit" else pl_module.checkpoint_step
            when = "before training" if trainer.sanity_checking or step == 0 else f"at step {step}"
            say(
                f"held out, {when}: loss {numbers['val/loss']:.4f}"
                + ("" if accuracy is None else f"  accuracy {accuracy:.3f}")
            )


def progress() -> Callback:
    """The callback that suits the output: a bar on a terminal, lines elsewhere."""
    return ProgressBar() if sys.stdout.isatty() else ProgressLines()
