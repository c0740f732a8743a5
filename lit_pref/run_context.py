"""The context of a run for references, selection and fitting, which do not see the Trainer."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from lit_pref.scoring.layout import Layout

ROUNDED = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}
"""The dtype to which Lightning rounds a policy under these precisions."""


@dataclass(frozen=True)
class RunContext:
    """Ranks, device, precision and limits of a run, and the few operations that involve all ranks.

    Args:
        stage: the Trainer's command: `fit`, `validate`, `test` or `predict`.
        rank: the rank of this process.
        world_size: number of processes.
        device: the device of this process; its type is the kind of accelerator.
        precision: Lightning's name, such as `32-true` or `bf16-mixed`.
        dtype_in_transit: the dtype to which sharding casts fp32 weights before a model computes with them; None if it
            casts none.
        forward_context: the context in which models of this precision are called.
        convert: rounds a module's weights as the policy's are rounded.
        shard: shards a module over the ranks, in place; None if models are whole on every rank.
        layout: the layout of the batches.
        seed: the run's seed.
        max_steps: optimizer steps after which the run stops; None for no limit.
        max_epochs: epochs after which the run stops; None for no limit.
        evaluation_limits: batches that a rank reads in `val`, `test` and `predict`: a number, or a float as share.
        gather: returns the values of all ranks, in rank order, on every rank.
        broadcast: returns the first rank's value on every rank.
        barrier: waits for all ranks.
        say: prints a line, on the first rank only.
        refuse: stops all ranks with a `UserError`; every rank must call it.
    """

    stage: str
    rank: int
    world_size: int
    device: torch.device
    precision: str
    dtype_in_transit: str | None
    forward_context: Callable[[], AbstractContextManager[Any]]
    convert: Callable[[nn.Module], nn.Module]
    shard: Callable[[nn.Module], None] | None
    layout: Layout
    seed: int
    max_steps: int | None
    max_epochs: int | None
    evaluation_limits: Mapping[str, int | float]
    gather: Callable[[Any], list[Any]]
    broadcast: Callable[[Any], Any]
    barrier: Callable[[], None]
    say: Callable[[str], None]
    refuse: Callable[[str], NoReturn]

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first rank, which prints and writes."""
        return self.rank == 0
