"""What the modules ask of the strategies: the data-parallel group, sums and records over ranks, FSDP2 sharding."""

import sys
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_pref.errors import UsageError, UserError
from lit_pref.models.loading import blocks_of


def data_parallel_size(trainer: Trainer) -> int:
    """Over how many ranks the pairs of a window are spread."""
    return trainer.world_size


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """The sum of `value` over all ranks."""
    return trainer.strategy.reduce(value, reduce_op="sum")


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if trainer.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def refuse(trainer: Trainer, sentence: str) -> NoReturn:
    """Stop all ranks; called on every one.

    Raises:
        UserError: on the first rank; the others leave without a word, and not as failures, which the first would be
            killed for before it has spoken.
    """
    if not trainer.is_global_zero:
        sys.exit(0)
    raise UserError(sentence)


def refuse_nonfinite(trainer: Trainer, pairs: list[str]) -> NoReturn:
    """Stop all ranks because of these pairs, by file and line; called on every rank, with the pairs of all.

    Raises:
        UserError: see `refuse`.
    """
    refuse(
        trainer,
        f"the loss of {len(pairs)} pair(s) is not finite at step {trainer.global_step}: {'; '.join(pairs[:8])}; "
        "lower the learning rate or beta, clip gradients (trainer.gradient_clip_val), or look at these pairs",
    )


def shard(scorer: nn.Module, strategy: ModelParallelStrategy) -> None:
    """Shard `scorer` with FSDP2: each transformer block on its own, the rest (embeddings, norm, head) with the root.

    Raises:
        UsageError: Tensor parallelism was asked for, or the data are not spread over all ranks.
    """
    mesh = strategy.device_mesh["data_parallel"]
    if strategy.device_mesh["tensor_parallel"].size() != 1:
        raise UsageError(
            "ModelParallelStrategy: tensor parallelism is not supported; set trainer.strategy.data_parallel_size to "
            "the number of devices and trainer.strategy.tensor_parallel_size to 1"
        )
    for block in blocks_of(scorer):
        fully_shard(block, mesh=mesh)
    fully_shard(scorer, mesh=mesh)


def gradient_norm(module: nn.Module) -> float:
    """The 2-norm of all gradients, before clipping, over all shards."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def refuse_fsdp1(strategy: Any) -> None:
    """Answer FSDP1 with the recipe for FSDP2.

    Raises:
        UsageError: `strategy` is FSDP1, by name or as an object.
    """
    if isinstance(strategy, FSDPStrategy) or str(strategy).lower().startswith("fsdp"):
        raise UsageError(
            "trainer.strategy fsdp (FSDP1) is not supported; use FSDP2, which shards weights, gradients and optimiser "
            "state too: the trainer part of configs/fsdp.yaml (ModelParallelStrategy with data_parallel_size)"
        )


def check_devices(trainer: Trainer, devices: Any, nodes: int) -> None:
    """Under SLURM Lightning can train on one device of many without a word.

    Raises:
        UsageError: other devices are used than were asked for.
    """
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        return
    asked = (len(devices) if isinstance(devices, list) else int(devices)) * nodes
    if asked > 0 and asked != trainer.world_size:
        raise UsageError(
            f"{asked} devices asked, {trainer.world_size} used: check trainer.devices, trainer.num_nodes, "
            "trainer.strategy, and under SLURM that --ntasks-per-node is the number of devices"
        )
