"""Learning-rate schedules over optimizer steps."""

import math
from abc import ABC, abstractmethod

import torch
from torch.optim.lr_scheduler import LambdaLR

from lit_pref.errors import UsageError


class Schedule(ABC):
    """Base class of schedules: linear warm-up from 0, then the subclass's decay to `floor` times the peak rate.

    Args:
        warmup: Length of the warm-up: a fraction of all optimizer steps if below 1, else a number of steps.
        floor: The final rate as a fraction of the peak rate, in [0, 1].

    Raises:
        UsageError: `warmup` is negative or `floor` is not in [0, 1].
    """

    def __init__(self, warmup: float = 0.1, floor: float = 0.0) -> None:
        if warmup < 0:
            raise UsageError(f"schedule: warmup is {warmup}; give a fraction of the run in [0, 1) or a number of steps")
        if not 0 <= floor <= 1:
            raise UsageError(f"schedule: floor is {floor}; give a fraction of the peak rate in [0, 1]")
        self.warmup = warmup
        self.floor = floor

    def factor(self, step: int, total: int) -> float:
        """Return the multiplier of the peak rate at optimizer step `step` (from 0) of `total`."""
        warmup = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.floor + (1 - self.floor) * self.decay(done)

    @abstractmethod
    def decay(self, done: float) -> float:
        """Return the multiplier of the rate after a fraction `done` in [0, 1] of the steps that follow the warm-up."""

    def over(self, optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
        """Return the schedule as a torch scheduler over `total` optimizer steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(warmup={self.warmup}, floor={self.floor})"


class Cosine(Schedule):
    """Cosine decay from the peak rate to the floor.

    >>> [round(Cosine(warmup=2).factor(step, 6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    def decay(self, done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * done))


class Linear(Schedule):
    """Linear decay from the peak rate to the floor.

    >>> [round(Linear(warmup=2, floor=0.2).factor(step, 6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
    """

    def decay(self, done: float) -> float:
        return 1 - done


class Flat(Schedule):
    """The peak rate after the warm-up, without decay.

    >>> [Flat(warmup=2).factor(step, 6) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """

    def decay(self, done: float) -> float:
        return 1.0


def total_steps(steps_per_epoch: int, max_epochs: int | None, max_steps: int) -> int:
    """The optimizer steps of a whole run, under the limits of its Trainer.

    >>> total_steps(10, max_epochs=3, max_steps=-1), total_steps(10, max_epochs=3, max_steps=25)
    (30, 25)
    """
    limits = [max_steps] if max_steps and max_steps > 0 else []
    limits += [max_epochs * steps_per_epoch] if max_epochs and max_epochs > 0 else []
    return min(limits) if limits else steps_per_epoch
