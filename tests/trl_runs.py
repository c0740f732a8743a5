"""Training runs of TRL and of lit_pref with the same settings, recorded so that they can be compared."""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers.utils import logging

from lit_pref.batch import PreferenceBatch
from lit_pref.scoring.layout import as_padded

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from bench_work import one_pass_in_order

# Two micro-batches of such a window hold 4 and 5 pairs: their means must not count alike.
WINDOW, PAIRS, EPOCHS, SEED = 9, 45, 4, 3
STEPS = EPOCHS * PAIRS // WINDOW
# With AdamW's usual epsilon (1e-8) a loss of twice the size gives the same updates to 8e-5; with this one to 0.25.
ADAMW: dict[str, Any] = {"lr": 2e-3, "betas": (0.9, 0.98), "eps": 1e-2, "weight_decay": 0.0}
LOSS_LIMIT, UPDATE_LIMIT = 1e-4, 1e-3

Row = tuple[list[int], list[int]]
"""The ids of prompt and response, and those of the response."""


@dataclass
class Run:
    """A recorded training run: for each optimizer step the loss, the rows (all chosen, then all rejected) and the
    number of forward passes; and the weights at its end."""

    losses: list[float]
    rows: list[list[Row]]
    passes: list[int]
    weights: dict[str, Tensor]


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differences(ours: Run, theirs: Run, initial: dict[str, Tensor]) -> tuple[float, float]:
    """The largest relative difference of a step's loss, and ‖Δ_ours - Δ_theirs‖ / ‖Δ_theirs‖ of the updates Δ."""
    assert ours.weights.keys() == theirs.weights.keys() == initial.keys()
    losses = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]

    def norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return math.sqrt(sum((a[name].double() - b[name].double()).square().sum().item() for name in initial))

    return max(losses), norm(ours.weights, theirs.weights) / norm(theirs.weights, initial)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Context in which datasets and transformers show no bars."""
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    yield
    datasets.enable_progress_bars()
    logging.enable_progress_bar()


def trl_arguments(folder: Path) -> dict[str, Any]:
    """The arguments of a TRL configuration: the windows of pairs in their order, with `ADAMW` in fp32."""
    return one_pass_in_order(WINDOW, ADAMW) | {
        "output_dir": str(folder / "out"),
        "optim": "adamw_torch",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_strategy": "no",
    }


class Recorder(Callback):
    """Keeps the batches of every optimiser step of a lit_pref run, with their unreduced losses."""

    def __init__(self) -> None:
        self.steps: defaultdict[int, list[tuple[PreferenceBatch, Tensor]]] = defaultdict(list)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        def keep(objective: Any, inputs: Any, output: Any) -> None:
            if pl_module.training:
                self.steps[trainer.global_step].append((self.batch, output.losses.detach()))

        pl_module.objective.register_forward_hook(keep)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch: PreferenceBatch = batch

    def run(self, model: Any) -> Run:
        """Return the recorded run, with the weights of the trained model."""
        losses = [torch.cat([losses for _, losses in step]).mean().item() for step in self.steps.values()]
        rows = [_rows([batch for batch, _ in step]) for step in self.steps.values()]
        return Run(losses, rows, [len(step) for step in self.steps.values()], weights_of(model))


def _rows(batches: Sequence[PreferenceBatch]) -> list[Row]:
    chosen, rejected = [], []
    for batch in map(as_padded, batches):
        kept = [
            ids[mask == 1].tolist() for ids, mask in zip(batch.rows.input_ids, batch.rows.attention_mask, strict=True)
        ]
        own = [batch.rows.targets[batch.rows.sequences == k].tolist() for k in range(batch.rows.num_sequences)]
        rows = list(zip(kept, own, strict=True))
        chosen += rows[: len(batch)]
        rejected += rows[len(batch) :]
    return chosen + rejected
