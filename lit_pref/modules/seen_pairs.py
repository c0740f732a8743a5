"""Which pairs a run will really see: what it never reaches needs no reference's score."""

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.batching.sampling import epoch_order, evaluation_batches
from lit_pref.data.prepared.pair_view import PairView

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule

Split = tuple[PairView, NDArray[Any]]


def seen_pairs(module: "PreferenceModule", stage: str) -> list[Split]:
    """(pairs, indices of those that are seen) of each split.

    Args:
        module: with its Trainer, whose data are prepared.
        stage: "fit", "validate", "test" or "predict"; or "all", every pair of both splits.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    if stage == "all":
        return [(pairs, np.arange(len(pairs))) for pairs in (data.train_pairs, data.val_pairs)]
    limit = {"fit": "val", "validate": "val", "test": "test", "predict": "predict"}[stage]
    held_out = (data.val_pairs, _evaluated(module, limit))
    return [(data.train_pairs, _trained(module)), held_out] if stage == "fit" else [held_out]


def _trained(module: "PreferenceModule") -> NDArray[Any]:
    """The windows of every epoch, as far as the run goes: the order is a function of seed and epoch."""
    trainer: Any = module.trainer
    data = trainer.datamodule
    pairs, windows = len(data.train_pairs), data.windows_per_epoch
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    steps = min(steps, module.stop_at_step or math.inf)
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if epochs == steps == math.inf or (epochs > 0 and min(windows, steps) * data.global_batch >= pairs):
        return np.arange(pairs)
    seen = np.zeros(pairs, bool)
    for epoch in itertools.count():
        now = int(min(windows, steps - epoch * windows))
        if epoch >= epochs or now <= 0 or seen.all():
            return np.flatnonzero(seen)
        seen[epoch_order(pairs, data.seed, epoch)[: now * data.global_batch]] = True
    raise AssertionError


def _evaluated(module: "PreferenceModule", name: str) -> NDArray[Any]:
    """The held-out pairs of the first batches of all ranks, as many as `trainer.limit_NAME_batches` leaves."""
    trainer: Any = module.trainer
    data, limit = trainer.datamodule, getattr(trainer, f"limit_{name}_batches")
    _, world = data.rank_and_world()
    pairs = len(data.val_pairs)
    if not pairs or limit == 0 or (limit == 1 and isinstance(limit, float)):
        return np.arange(pairs if limit else 0)
    batch = data.val_batch or data.micro_batch_of(data.val_pairs, world)
    seen = np.zeros(pairs, bool)
    for rank in range(world):
        cells = evaluation_batches(pairs, rank, world, batch)
        for cell in cells[: limit if isinstance(limit, int) else int(limit * len(cells))]:
            seen[list(cell.indices)] = True
    return np.flatnonzero(seen)
