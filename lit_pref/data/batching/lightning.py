"""What Lightning 2.6 must be told so that it stops, validates and resumes at the ends of optimiser windows."""

from collections.abc import Callable
from typing import Any

from lit_pref.data.batching.sampling import WindowSampler
from lit_pref.errors import UsageError


def epochs_of_run(trainer: Any, sampler: Callable[[int], WindowSampler]) -> int:
    """The epochs that a run begins at most, whose windows all have to fit the same number of micro-batches.

    Args:
        trainer: the Trainer, its limits as the user gave them.
        sampler: that of a run with so many epochs.

    Raises:
        UsageError: the run has no end.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs == -1 and steps == -1:
        raise UsageError(
            "data.max_tokens needs to know how long the run is, as each of its steps takes as many micro-batches as "
            "the one that needs most; set trainer.max_epochs or trainer.max_steps, or give data.micro_batch instead."
        )
    if steps == -1 or epochs == 0:
        return max(1, epochs)
    found, needed = 0, 1
    # More epochs can need more micro-batches a step; then limit_train_batches leaves an epoch fewer steps.
    while found < needed:
        found = needed if epochs == -1 else min(needed, epochs)
        full = sampler(found)
        limit = trainer.limit_train_batches
        batches = limit if isinstance(limit, int) else int(limit * len(full))
        windows = full.windows if batches >= len(full) else max(1, batches // full.accumulation)
        needed = found if found == epochs else -(-steps // windows)
    return found


def align_with_windows(trainer: Any, sampler: WindowSampler, scheduled: bool) -> None:
    """Set the Trainer's accumulation, and move its shares of an epoch to window ends.

    A checkpoint within a window lacks the gradients gathered so far, and a cut window would have the wrong mean.

    Args:
        trainer: the Trainer, before it asks for the training loader.
        sampler: of the training loader.
        scheduled: whether a callback would change the accumulation.

    Raises:
        UsageError: the Trainer was told something else in so many words.
    """
    every, length = sampler.accumulation, len(sampler)
    if trainer.accumulate_grad_batches not in (1, every) or scheduled:
        raise UsageError(
            "trainer.accumulate_grad_batches is set, but accumulation follows from data.global_batch "
            f"{sampler.global_batch} ({every} micro-batches here); leave it out and set data.global_batch and "
            "data.micro_batch or data.max_tokens."
        )
    trainer.accumulate_grad_batches = every
    if trainer.overfit_batches:
        raise UsageError(
            "trainer.overfit_batches would repeat other pairs each epoch, as the order is shuffled; leave it out and "
            "give data.train a small file."
        )
    if not trainer.fast_dev_run:
        limit = _at_window_end(trainer.limit_train_batches, every, length, "limit_train_batches")
        trainer.limit_train_batches = limit
        _align_validation(trainer, every, min(limit, length) if isinstance(limit, int) else length)


def _align_validation(trainer: Any, every: int, length: int) -> None:
    if not trainer.limit_val_batches:
        return
    if trainer._val_check_time_interval is not None:
        raise UsageError(
            "trainer.val_check_interval is a duration, which would stop within an optimiser step; give a number of "
            f"micro-batches that is a multiple of {every}, or a share of an epoch."
        )
    if trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = _at_window_end(trainer.val_check_interval, every, length, "val_check_interval")
    # Counted through epochs: a ragged last window shifts the windows of all later epochs.
    elif int(trainer.val_check_interval) % (every if length % every == 0 else length):
        raise UsageError(
            f"trainer.val_check_interval {trainer.val_check_interval} is not at the end of an optimiser step in every "
            f"epoch; make it a multiple of {every if length % every == 0 else length}, or leave "
            "trainer.check_val_every_n_epoch at 1."
        )


def _at_window_end(limit: int | float, every: int, length: int, name: str) -> int | float:
    """A number of micro-batches, or a share of an epoch, that ends with a window."""
    if isinstance(limit, float):
        batches = int(limit * length)
        return limit if batches == length or limit == 0 else max(every, batches // every * every)
    if limit < length and limit % every:
        raise UsageError(
            f"trainer.{name} {limit} is within an optimiser step, which takes {every} micro-batches; make it a "
            f"multiple of {every}, such as {-(-limit // every) * every}."
        )
    return limit


def settle_epoch_of_checkpoint(trainer: Any) -> None:
    """Take an epoch that a checkpoint counts as over for what it is: over, or stopped within.

    Over: with `max_steps` set, Lightning 2.6 always takes a resumed epoch for unfinished, and a checkpoint that was
    saved in `on_train_epoch_end` loses or repeats an epoch. Stopped within: a run that stops in mid-epoch (at a step,
    early) counts the epoch before it saves for the last time, and a resumed run would leave out the rest of its pairs.
    Called where the training loader is asked for: after the loop's state was restored, before it is used.
    """
    loop = trainer.fit_loop
    progress = loop.epoch_progress
    epoch = progress.current
    if not loop.is_resuming or not epoch.ready == epoch.started == epoch.processed > 0:
        return
    over = loop.epoch_loop.batch_progress.is_last_batch
    if not over:
        for counted in (progress.current, progress.total):
            counted.processed = counted.completed = counted.started - 1
    # The loop's own setter is what takes every epoch for unfinished; that of its base class does as it is told.
    super(type(loop), type(loop)).restarting.fset(loop, not over)
