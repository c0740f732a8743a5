"""Settings and fixes for Lightning 2.6, so that it stops, validates and resumes at the end of optimizer steps."""

from collections.abc import Callable
from typing import Any

from lit_pref.data.batching.sampling import WindowSampler
from lit_pref.errors import UsageError


def epochs_of_run(trainer: Any, sampler: Callable[[int], WindowSampler]) -> int:
    """Return the maximum number of epochs of a run; all their steps take the same number of micro-batches.

    Args:
        trainer: the Trainer, with its limits as the user gave them.
        sampler: returns the sampler of a run with a number of epochs.

    Raises:
        UsageError: the run has no end.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs == -1 and steps == -1:
        raise UsageError(
            "data.max_tokens needs the length of the run, because each of its steps takes as many micro-batches as "
            "the one that needs most; set trainer.max_epochs or trainer.max_steps, or give data.micro_batch instead."
        )
    if steps == -1 or epochs == 0:
        return max(1, epochs)
    count, needed = 0, 1
    # More epochs can need more micro-batches per step; limit_train_batches then leaves an epoch fewer steps.
    while count < needed:
        count = needed if epochs == -1 else min(needed, epochs)
        full = sampler(count)
        limit = trainer.limit_train_batches
        batches = limit if isinstance(limit, int) else int(limit * len(full))
        windows = full.windows if batches >= len(full) else max(1, batches // full.accumulation)
        needed = count if count == epochs else -(-steps // windows)
    return count


def steps_per_epoch(trainer: Any, sampler: WindowSampler) -> int:
    """Return the optimizer steps of an epoch, limited by `trainer.limit_train_batches`."""
    limit = trainer.limit_train_batches
    batches = min(limit, len(sampler)) if isinstance(limit, int) else int(limit * len(sampler))
    return -(-batches // sampler.accumulation)


def align_with_windows(trainer: Any, sampler: WindowSampler, scheduled: bool) -> None:
    """Set the Trainer's accumulation, and round limits given as shares of an epoch to whole optimizer steps.

    A checkpoint within a step lacks the gradients accumulated so far, and a step cut short would have a wrong mean.

    Args:
        trainer: the Trainer, before it requests the training loader.
        sampler: sampler of the training loader.
        scheduled: whether a callback would change the accumulation.

    Raises:
        UsageError: the Trainer was explicitly given other settings.
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
            "trainer.overfit_batches would use different pairs in each epoch, because the order is shuffled; leave it "
            "out and give data.train a small file."
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
            "trainer.val_check_interval is a duration, which would stop within an optimizer step; give a number of "
            f"micro-batches that is a multiple of {every}, or a share of an epoch."
        )
    if trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = _at_window_end(trainer.val_check_interval, every, length, "val_check_interval")
    # Lightning counts batches across epochs, so a smaller last step shifts the steps of all later epochs.
    elif int(trainer.val_check_interval) % (every if length % every == 0 else length):
        raise UsageError(
            f"trainer.val_check_interval {trainer.val_check_interval} is not at the end of an optimizer step in every "
            f"epoch; make it a multiple of {every if length % every == 0 else length}, or leave "
            "trainer.check_val_every_n_epoch at 1."
        )


def _at_window_end(limit: int | float, every: int, length: int, name: str) -> int | float:
    """Return a number of micro-batches, or a share of an epoch, that ends with an optimizer step."""
    if isinstance(limit, float):
        batches = int(limit * length)
        return limit if batches == length or limit == 0 else max(every, batches // every * every)
    if limit < length and limit % every:
        raise UsageError(
            f"trainer.{name} {limit} is within an optimizer step, which takes {every} micro-batches; make it a "
            f"multiple of {every}, such as {-(-limit // every) * every}."
        )
    return limit


def settle_epoch_of_checkpoint(trainer: Any) -> None:
    """Correct the loop if an epoch that a checkpoint counts as finished was stopped early, or the other way round.

    Finished: with `max_steps` set, Lightning 2.6 always treats a resumed epoch as unfinished, and a checkpoint saved in
    `on_train_epoch_end` loses or repeats an epoch. Stopped early: a run that stops in mid-epoch counts the epoch before
    it saves for the last time, and a resumed run would skip the rest of its pairs. Called when the training loader is
    requested: after the loop's state was restored, before it is used.
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
    # The loop's own setter treats every epoch as unfinished; the setter of its base class sets the given value.
    super(type(loop), type(loop)).restarting.fset(loop, not over)
