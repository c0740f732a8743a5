"""Ranks and devices of a run: the run's context, reductions over ranks, random state, FSDP2 sharding."""

import random
import sys
import zlib
from functools import partial
from typing import Any, NoReturn

import numpy
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_pref.errors import UsageError, UserError
from lit_pref.models.loading import blocks_of
from lit_pref.printing import say
from lit_pref.run_context import RunContext
from lit_pref.scoring.layout import Layout


def run_context(trainer: Trainer, layout: Layout, seed: int, stop_at_step: int | None) -> RunContext:
    """Return the context of a Trainer's run.

    Args:
        trainer: the run's Trainer.
        layout: the layout of the batches.
        seed: the run's seed.
        stop_at_step: an optimizer step at which the run stops early; None if it does not.
    """
    strategy, plugin = trainer.strategy, trainer.precision_plugin
    assert trainer.state.fn is not None
    steps = [limit for limit in (trainer.max_steps, stop_at_step or None) if limit is not None and limit != -1]
    return RunContext(
        stage=trainer.state.fn.value,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        device=strategy.root_device,
        precision=str(trainer.precision),
        forward_context=plugin.forward_context,
        convert=plugin.convert_module,
        shard=partial(shard, strategy=strategy) if isinstance(strategy, ModelParallelStrategy) else None,
        layout=layout,
        seed=seed,
        max_steps=min(steps, default=None),
        max_epochs=None if trainer.max_epochs == -1 else trainer.max_epochs,
        evaluation_limits={name: getattr(trainer, f"limit_{name}_batches") for name in ("val", "test", "predict")},
        gather=partial(gather_objects, trainer),
        broadcast=strategy.broadcast,
        barrier=strategy.barrier,
        say=say,
        refuse=partial(refuse, trainer),
    )


def data_parallel_size(trainer: Trainer) -> int:
    """The number of ranks among which the pairs of an optimizer step are divided."""
    return trainer.world_size


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """The sum of `value` over all ranks; on GPUs the host does not wait for it."""
    if trainer.world_size == 1:
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)  # Lightning's reduction begins with a barrier, which is a wait
    return total


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on every rank."""
    if trainer.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def refuse(trainer: Trainer, sentence: str, kind: type[UserError] = UserError) -> NoReturn:
    """Stop all ranks; every rank must call it.

    Raises:
        UserError: raised on the first rank. The others exit silently and successfully, because after a failure a
            launcher would kill the first rank before it can print the message.
    """
    if not trainer.is_global_zero:
        sys.exit(0)
    raise kind(sentence)


def seed_batch(seed: int, batch: int, rank: int, device: torch.device) -> None:
    """Make all random state a function of the seed, the batch's number in the run, and the rank.

    A resumed run then draws the same numbers as an uninterrupted one.
    """
    key = zlib.crc32(f"{seed}/{batch}/{rank}".encode())
    # torch.manual_seed is avoided: it also seeds absent devices, which takes longer than all other overhead of a step.
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    random.seed(key)
    numpy.random.seed(key)


def shard(scorer: nn.Module, strategy: ModelParallelStrategy) -> None:
    """Shard `scorer` with FSDP2: each transformer block separately, the rest (embeddings, norm, head) with the root.

    Raises:
        UsageError: The strategy has tensor parallelism.
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


def refuse_tensors_outside(module: nn.Module, scorer: nn.Module) -> None:
    """Refuse trainable tensors outside the scorer: strategies synchronise it alone, so others would diverge.

    Raises:
        UsageError: `module` has such tensors.
    """
    inside = {id(p) for p in scorer.parameters()}
    outside = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise UsageError(f"trainable tensors outside the scorer: {', '.join(outside)}; move them into it")


def refuse_fsdp1(strategy: Any) -> None:
    """Refuse FSDP1, with a message on how to use FSDP2.

    Raises:
        UsageError: `strategy` is FSDP1, by name or as an object.
    """
    if isinstance(strategy, FSDPStrategy) or str(strategy).lower().startswith("fsdp"):
        raise UsageError(
            "trainer.strategy fsdp (FSDP1) is not supported; use FSDP2, which also shards weights, gradients and "
            "optimizer state: the trainer part of configs/fsdp.yaml (ModelParallelStrategy with data_parallel_size)"
        )


def check_devices(trainer: Trainer, devices: Any, nodes: int) -> None:
    """Refuse to run on fewer devices than requested: under SLURM, Lightning can silently train on one of several.

    Raises:
        UsageError: the number of devices is not the requested one.
    """
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        return
    asked = (len(devices) if isinstance(devices, list) else int(devices)) * nodes
    if asked > 0 and asked != trainer.world_size:
        raise UsageError(
            f"{asked} devices requested, {trainer.world_size} used: check trainer.devices, trainer.num_nodes, "
            "trainer.strategy, and under SLURM that --ntasks-per-node is the number of devices"
        )
