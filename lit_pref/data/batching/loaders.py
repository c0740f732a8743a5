"""Loaders of micro-batches, and the position of the training loader, counted in pairs."""

import sys
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from lit_pref.data.batching.sampling import MicroBatch, WindowSampler
from lit_pref.errors import UserError


class BatchSource(Protocol):
    """Builds the batch of a micro-batch, possibly in a loader worker."""

    def __getitem__(self, index: MicroBatch, /) -> Any: ...


class MicroBatches(Sized, Protocol):
    def __iter__(self) -> Iterator[MicroBatch]: ...


def _unchanged(batch: Any) -> Any:
    return batch


class PairLoader:
    """Yields the batch `source[micro_batch]` of each micro-batch, built in `workers` processes if there are any.

    With `pin_memory` batches are in page-locked memory, from which a GPU copies them while the host goes ahead. Every
    worker is two batches ahead: a step takes far longer than a batch.

    It wraps a DataLoader instead of being one, because Lightning rebuilds DataLoaders with its own samplers
    (distributed, prediction, overfitting), which would undo the slices of the ranks.
    """

    def __init__(
        self, source: BatchSource, micro_batches: MicroBatches, workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._micro_batches = micro_batches
        # The separate generator is needed because a DataLoader draws a seed at every start, from the global one by
        # default.
        self._loader: DataLoader[Any] = DataLoader(
            source,  # type: ignore[arg-type]
            batch_size=None,
            sampler=micro_batches,
            num_workers=workers,
            # Workers are forked only once, because a fork while threads of the last epoch are ending can hang in
            # CPython 3.11.
            persistent_workers=workers > 0,
            # A fork shares the table of stored reference scores, which another start would copy to every worker.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            prefetch_factor=2 if workers else None,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class ResumableLoader(PairLoader):
    """The training loader, whose position is counted in pairs and checkpointed.

    The state is the same for all ranks, and counts the batches that the loop received, not those that workers fetched
    ahead. Training resumes at the start of an optimizer step; after the last batch of an epoch, at the start of the
    next epoch.

    Args:
        source: returns the batches.
        sampler: decides the order.
        fingerprint: fingerprint of the training data; resuming with other data is refused.
        workers: processes that build batches ahead.
        pin_memory: whether batches are in page-locked memory.
    """

    def __init__(
        self,
        source: BatchSource,
        sampler: WindowSampler,
        fingerprint: str,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(source, sampler, workers, pin_memory)
        self.sampler = sampler  # Lightning calls its set_epoch
        self._identity = identity_of(sampler, fingerprint)
        self._position = (0, 0)  # (epoch, pairs): the position of the next pair to return
        self._resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        # This is a generator, because Lightning calls iter() before it sets the epoch, and next() after.
        sampler = self.sampler
        first = 0
        if self._resume is not None:
            epoch, pairs = self._resume
            if sampler.epoch < epoch:
                return  # all batches of this epoch were used before the checkpoint
            if sampler.epoch == epoch:
                first = pairs // sampler.global_batch
            self._resume = None
        epoch = sampler.epoch
        sampler.start_window = first
        for given, batch in enumerate(super().__iter__(), start=first * sampler.accumulation + 1):
            # This is before the yield, because Lightning never requests another batch after the last one.
            pairs = sampler.pairs_in(given)
            self._position = (epoch + 1, 0) if pairs == sampler.pairs else (epoch, pairs)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position, with numbers and a fingerprint that identify the data and their order."""
        epoch, pairs = self._position
        return {"epoch": epoch, "pairs": pairs, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration start at the position in `state`.

        Raises:
            UserError: the data, seed, global batch or micro-batches differ, or the position is within a step.
        """
        refuse_other_data(state, self._identity)
        if state["pairs"] % self.sampler.global_batch:
            raise UserError(
                f"The checkpoint was written after {state['pairs']} pairs of epoch {state['epoch']}, within an "
                f"optimizer step of {state['global_batch']} pairs whose gradients it does not contain; resume from an "
                "earlier one."
            )
        self._resume = self._position = (state["epoch"], state["pairs"])


def identity_of(sampler: WindowSampler, fingerprint: str) -> dict[str, Any]:
    """Return numbers and a fingerprint that identify training pairs, their order and their micro-batches."""
    return {
        "fingerprint": fingerprint,
        "length": sampler.pairs,
        "seed": sampler.seed,
        "global_batch": sampler.global_batch,
        "accumulation": sampler.accumulation,
        "micro_batches": len(sampler),
    }


def refuse_other_data(
    state: dict[str, Any] | None, identity: dict[str, Any], changed: Sequence[str] | None = None
) -> None:
    """Refuse a position in other data, or in another order of them.

    Args:
        state: the position in a checkpoint; None or empty has none.
        identity: the `identity_of` this run.
        changed: the settings of data that differ between the runs, for the message; None if they are not known.

    Raises:
        UserError: the data, seed, global batch or micro-batches differ.
    """
    for name, (subject, remedy) in _REFUSALS.items():
        if state and name in state and state[name] != identity[name]:
            why = "; ".join(changed or ())
            if changed == [] and name in ("length", "fingerprint"):
                why = "no setting of data changed, so the rows did, or the tokenizer"
            raise UserError(
                f"The checkpoint was written with {subject} {state[name]}, this run has {identity[name]}"
                f"{f' ({why})' if why else ''}; {remedy}, or start a new run without --ckpt_path."
            )


_SAME_MICRO_BATCHES = (
    "use the same number of devices and the same data.micro_batch, or data.max_tokens with the same trainer.max_epochs "
    "and max_steps"
)
_REFUSALS = {
    "length": ("a number of training pairs of", "give it the same data and the same data options"),
    "fingerprint": ("prepared training data", "give it the same data, tokenizer and data options"),
    "seed": ("data.seed", "set data.seed to the value of the checkpoint"),
    "global_batch": ("data.global_batch", "set data.global_batch to the value of the checkpoint"),
    "accumulation": ("a number of micro-batches per optimizer step of", _SAME_MICRO_BATCHES),
    "micro_batches": ("a number of micro-batches per epoch of", _SAME_MICRO_BATCHES),
}
