"""Lines about the optimizer steps of a run: how many there are, what ends it, and when it is validated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

from lit_pref.data.prepared.lists import number_of_units


@dataclass(frozen=True)
class Steps:
    r"""The optimizer steps of a run.

    Args:
        pairs: training pairs.
        global_batch: pairs of an optimizer step.
        per_epoch: optimizer steps of an epoch, under `trainer.limit_train_batches`.
        total: optimizer steps of the whole run.
        max_epochs: the Trainer's limit; None is none.
        max_steps: the Trainer's limit; None is none.
        stop_at: `--stop_at_step`; None if the run is not stopped early.
        interval: optimizer steps between two validations; None is no validation.
        every_epoch: the interval counts the steps of each such epoch; None counts those of the run.
        may_end_sooner: what else may end the run.
        limit: `trainer.limit_train_batches`, if it is a number and no share.
        micro_batches: of an optimizer step.
        unit: what `pairs` and `global_batch` count.
        alone: the objective that compares the pairs of a micro-batch, if each of these has one pair; else empty.

    >>> print(*Steps(22, 8, 3, 5, max_epochs=4, max_steps=5).lines(), sep="\n")
    5 optimizer step(s) of 8 pairs (the last one of an epoch has 6), 3 an epoch
    max_steps 5 ends the run in epoch 2 of 4
    """

    pairs: int
    global_batch: int
    per_epoch: int
    total: int
    max_epochs: int | None = None
    max_steps: int | None = None
    stop_at: int | None = None
    interval: int | None = None
    every_epoch: int | None = 1
    may_end_sooner: str = ""
    limit: int | None = None
    micro_batches: int = 1
    unit: str = "pairs"
    alone: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the number of steps, and what ends the run."""
        size, rest = min(self.global_batch, self.pairs), self.pairs % self.global_batch
        whole = self.per_epoch == -(-self.pairs // self.global_batch)
        ragged = f" (the last one of an epoch has {rest})" if rest and whole and self.pairs > self.global_batch else ""
        limited = "" if whole else ", by trainer.limit_train_batches"
        if not whole and self.limit is not None:
            limited += f" {self.limit}, which counts micro-batches ({self.micro_batches} a step)"
        yield f"{self.total} optimizer step(s) of {size} {self.unit}{ragged}, {self.per_epoch} an epoch{limited}"
        if self.max_epochs and self.max_steps and self.max_steps < self.max_epochs * self.per_epoch:
            epoch = -(-self.max_steps // self.per_epoch)
            yield f"max_steps {self.max_steps} ends the run in epoch {epoch} of {self.max_epochs}"
        if self.stop_at is not None and self.stop_at < self.total:
            yield f"--stop_at_step {self.stop_at} ends it there, under the schedule of all {self.total}"
        if self.may_end_sooner:
            yield f"{self.may_end_sooner} may end it sooner"

    def validation(self) -> str:
        """Describe after which optimizer steps the run is validated."""
        if self.interval is None:
            return "none"
        which = {None: "the run", 1: "each epoch"}.get(self.every_epoch, f"every {self.every_epoch} epochs, the last")
        last, end = max(self.validated_at(), default=0), self._end
        at_end = f"; the last one after step {last}" + ("" if last == end else f" of {end}")
        return f"after every {self.interval} optimizer step(s) of {which}{at_end if last else '; never in this run'}"

    def validated_at(self) -> list[int]:
        """Return the optimizer steps after which the run is validated."""
        by_steps = self._end in (self.max_steps, self.stop_at)  # such an end is validated too

        def due(step: int) -> bool:
            assert self.interval is not None
            if self.every_epoch is None:
                return step % self.interval == 0 or (by_steps and step == self._end)
            epoch, within = divmod(step - 1, self.per_epoch)
            here = (within + 1) % self.interval == 0 or (by_steps and step == self._end)
            return here and (epoch + 1) % self.every_epoch == 0

        return [] if self.interval is None else [step for step in range(1, self._end + 1) if due(step)]

    @property
    def _end(self) -> int:
        return self.total if self.stop_at is None else min(self.total, self.stop_at)

    def warnings(self) -> Iterator[str]:
        """Yield what may not be what was asked for."""
        if self.global_batch > self.pairs:
            yield (
                f"data.global_batch {self.global_batch} is more than the {self.pairs} training {self.unit}: every "
                f"optimizer step is a whole epoch of {self.pairs} {self.unit}; lower data.global_batch for more steps"
            )
        if self.max_epochs and self.max_steps and self.max_steps > self.total:
            yield (
                f"trainer.max_epochs {self.max_epochs} ends the run at step {self.total}, before trainer.max_steps "
                f"{self.max_steps}: set trainer.max_epochs to -1 to take that many steps"
            )
        if self.alone:
            yield (
                f"{self.alone} compares the pairs of a micro-batch, and each has one pair: raise data.micro_batch (and "
                "data.global_batch, if that is as small)"
            )
        if self.stop_at is not None and self.stop_at > self.total:
            yield f"--stop_at_step {self.stop_at} is never reached: the run ends at step {self.total}"


def steps_of(module: Any) -> Steps:
    """Return the steps of a run whose data are prepared."""
    data, trainer = module.data, module.trainer
    interval = trainer.val_check_interval if len(data.val_pairs) and trainer.limit_val_batches else None
    stopping = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    asked = module.plain_config.get("trainer", {})
    stopping += ["trainer.max_time"] if asked.get("max_time") else []
    limit = asked.get("limit_train_batches")  # the Trainer's own was rounded to whole steps
    single = data.micro_batch_of(data.train_pairs, data.rank_and_world()[1]) == 1
    return Steps(
        pairs=number_of_units(data.train_pairs),
        unit="pairs" if data.train_pairs.lists is None else "lists",
        global_batch=data.global_batch,
        per_epoch=data.windows_per_epoch,
        total=module.total_steps,
        max_epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
        max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        stop_at=module.stop_at_step,
        interval=data.windows_per_epoch if isinstance(interval, float) else interval,
        every_epoch=trainer.check_val_every_n_epoch,
        may_end_sooner=" or ".join(stopping),
        limit=limit if isinstance(limit, int) else None,
        micro_batches=trainer.accumulate_grad_batches,
        alone=type(module.objective).__name__ if module.objective.batch_coupled and single else "",
    )
