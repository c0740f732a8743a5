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
        limit = _at_window_end(trainer.limit_train_batches, every, length)
        trainer.limit_train_batches = limit
        _align_validation(trainer, every, min(limit, length) if isinstance(limit, int) else length)


def _align_validation(trainer: Any, every: int, length: int) -> None:
    """Turn a share of an epoch between validations into a number of optimizer steps; refuse what cannot be one."""
    if not trainer.limit_val_batches:
        return
    if trainer._val_check_time_interval is not None:
        raise UsageError(
            "trainer.val_check_interval is a duration, which would stop within an optimizer step; give a number of "
            "optimizer steps, or a share of an epoch."
        )
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        batches = int(interval * length)
        trainer.val_check_interval = interval if batches >= length else max(1, batches // every)
    elif trainer.check_val_every_n_epoch is not None and interval > (steps := -(-length // every)):
        raise UsageError(
            f"trainer.val_check_interval {interval} is more than the {steps} optimizer steps of an epoch, so that no "
            f"validation would take place; make it at most {steps}, or set trainer.check_val_every_n_epoch to null to "
            "count the steps of the whole run."
        )
    _validate_in_steps(trainer)


def _validate_in_steps(trainer: Any) -> None:
    """Let Lightning, which counts micro-batches, validate after `trainer.val_check_interval` optimizer steps.

    The steps are those of an epoch, or those of the run where `trainer.check_val_every_n_epoch` is null. No number of
    micro-batches would do, because the last step of an epoch may have fewer.
    """
    for callback in trainer.callbacks:
        # Lightning's callbacks take an interval of 1 for 1.0, a whole epoch, and would not look at its validations.
        for name in ("_check_on_train_epoch_end", "_save_on_train_epoch_end"):
            if isinstance(trainer.val_check_interval, int) and getattr(callback, name, False) is None:
                setattr(callback, name, False)
    loop = trainer.fit_loop.epoch_loop
    ask_lightning = type(loop)._should_check_val_fx

    def should_validate(fetcher: Any) -> bool:
        if isinstance(interval := trainer.val_check_interval, int):
            of_run = trainer.check_val_every_n_epoch is None
            step = trainer.global_step if of_run else loop.batch_idx // trainer.accumulate_grad_batches + 1
            due = not loop._should_accumulate() and step % interval == 0
            # Lightning validates if this divides the number of the batch, as the other number never does.
            trainer.val_check_batch = 1 if due else loop.total_batch_idx + 2
        return bool(ask_lightning(loop, fetcher))

    loop._should_check_val_fx = should_validate


def _at_window_end(limit: int | float, every: int, length: int) -> int | float:
    """Return a number of micro-batches, or a share of an epoch, that ends with an optimizer step."""
    if isinstance(limit, float):
        batches = int(limit * length)
        return limit if batches == length or limit == 0 else max(every, batches // every * every)
    if limit < length and limit % every:
        raise UsageError(
            f"trainer.limit_train_batches {limit} is within an optimizer step, which takes {every} micro-batches; make "
            f"it a multiple of {every}, such as {-(-limit // every) * every}."
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
