"""The options of batches: refusal of impossible ones, and the number of loader processes if none is given."""

import os
from typing import Any

import torch

from lit_pref.errors import UsageError

MOST_WORKERS = 4
"""The most processes that each loader of a GPU starts: further ones find no work, as a batch takes milliseconds."""


def check_batch_options(data: Any) -> None:
    """Refuse impossible batch options of a data module.

    Raises:
        UsageError: an option is out of range, or two options contradict each other.
    """
    at_least = {"global_batch": 1, "micro_batch": 1, "max_tokens": 1, "val_batch": 1, "seed": 0, "workers": 0}
    for name, least in at_least.items():
        value = getattr(data, name)
        if value is not None and value < least:
            raise UsageError(f"data.{name} is {value}; it must be at least {least}.")
    if data.micro_batch is not None and data.max_tokens is not None:
        raise UsageError(
            f"data.micro_batch {data.micro_batch} and data.max_tokens {data.max_tokens} are both set, and each "
            "decides how a step is cut; leave one of them out."
        )
    if data.val_fraction == 1:
        raise UsageError("data.val_fraction is 1; it must be at least 0 and below 1.")


def worker_processes(asked: int | None, device: torch.device, devices: int) -> int:
    """Return how many processes each loader of one device has: that of training, and that of validation.

    One loader's processes wait while the other's batches are read, so that they do not share the cores.

    If no number is given, it is 0 on a CPU, where they would take cores from the model. For a GPU it is one less than
    the cores of each device's process, because the run itself needs one, and at most `MOST_WORKERS`. A process's cores
    are those to which it is bound, or if it may use the whole machine, an equal share of these.

    Args:
        asked: the given number.
        device: the device of the run.
        devices: the run's devices on this machine.
    """
    if asked is not None:
        return asked
    if device.type != "cuda":
        return 0
    return max(0, min(MOST_WORKERS, _own_cores(devices) - 1))


def describe_loading(asked: int | None, workers: int, pin_memory: bool) -> str:
    """Describe in one line how the batches of a device are prepared; empty if it is done in the run's own process.

    >>> describe_loading(3, 3, pin_memory=True)
    '3 worker process(es) a device for training and as many for validation, in page-locked memory'
    """
    if not workers and not pin_memory:
        return ""
    rule = f" (data.workers null: one less than its cores, at most {MOST_WORKERS})" if asked is None else ""
    number = f"{workers} worker process(es) a device" + (" for training and as many for validation" if workers else "")
    return f"{number}{rule}{', in page-locked memory' if pin_memory else ''}"


def _own_cores(devices: int) -> int:
    """The number of cores for this process, one of as many as there are devices on this machine."""
    # A task of SLURM may see the cores of the whole machine; its own share is in this variable.
    if of_task := os.environ.get("SLURM_CPUS_PER_TASK"):
        return int(of_task)
    every = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    # Fewer cores than the machine has are already the share of this task, from `srun`, `taskset` or a container.
    return allowed if allowed < every else every // max(1, devices)
