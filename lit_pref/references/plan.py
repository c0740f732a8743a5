"""Determines which pairs a run will read, because pairs that it never reaches need no reference scores."""

import itertools
import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.batching.sampling import epoch_order, evaluation_batches
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.data.prepared.lists import number_of_units
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.run_context import RunContext

Split = tuple[PairView, NDArray[Any]]
"""Pairs of a split, and the increasing indices of those that a run reads."""


class BatchedData(Protocol):
    """The attributes of a prepared data module that determine which pairs a run reads."""

    seed: int
    global_batch: int
    val_batch: int | None

    @property
    def train_pairs(self) -> PairView: ...

    @property
    def val_pairs(self) -> PairView: ...

    @property
    def windows_per_epoch(self) -> int: ...

    def rank_and_world(self) -> tuple[int, int]: ...

    def micro_batch_of(self, pairs: PairView, world: int) -> int | TokenBudget: ...


def pairs_read(data: BatchedData, run: RunContext, stage: str) -> list[Split]:
    """Return, for each split that a stage reads, its pairs and the indices of those that are read.

    Args:
        data: the prepared data.
        run: the run's context, with the limits of steps, epochs and batches.
        stage: "fit", "validate", "test" or "predict"; or "all", every pair of both splits.
    """
    if stage == "all":
        return [(pairs, np.arange(len(pairs))) for pairs in (data.train_pairs, data.val_pairs)]
    limit = {"fit": "val", "validate": "val", "test": "test", "predict": "predict"}[stage]
    held_out = (data.val_pairs, _evaluated(data, run.evaluation_limits[limit]))
    return [(data.train_pairs, _trained(data, run)), held_out] if stage == "fit" else [held_out]


def _trained(data: BatchedData, run: RunContext) -> NDArray[Any]:
    """The training pairs of all optimizer steps of the run; the order is a function of seed and epoch."""
    pairs, steps_per_epoch = number_of_units(data.train_pairs), data.windows_per_epoch
    steps = math.inf if run.max_steps is None else run.max_steps
    epochs = math.inf if run.max_epochs is None else run.max_epochs
    if epochs == steps == math.inf or (epochs > 0 and min(steps_per_epoch, steps) * data.global_batch >= pairs):
        return np.arange(len(data.train_pairs))
    seen = np.zeros(pairs, bool)
    for epoch in itertools.count():
        now = int(min(steps_per_epoch, steps - epoch * steps_per_epoch))
        if epoch >= epochs or now <= 0 or seen.all():
            return _records(data.train_pairs, seen)
        seen[epoch_order(pairs, data.seed, epoch)[: now * data.global_batch]] = True
    raise AssertionError


def _evaluated(data: BatchedData, limit: int | float) -> NDArray[Any]:
    """The held-out pairs in the first `limit` batches of every rank."""
    _, world = data.rank_and_world()
    pairs = number_of_units(data.val_pairs)
    if not pairs or limit == 0 or (limit == 1 and isinstance(limit, float)):
        return np.arange(len(data.val_pairs) if limit else 0)
    batch = data.val_batch or data.micro_batch_of(data.val_pairs, world)
    seen = np.zeros(pairs, bool)
    for rank in range(world):
        batches = evaluation_batches(pairs, rank, world, batch)
        for micro_batch in batches[: limit if isinstance(limit, int) else int(limit * len(batches))]:
            seen[list(micro_batch.indices)] = True
    return _records(data.val_pairs, seen)


def _records(pairs: PairView, seen: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the indices of the pairs that are seen, or of those in lists that are."""
    return np.flatnonzero(seen) if pairs.lists is None else pairs.lists.records(np.flatnonzero(seen))
