"""Ranks and devices of a run: the run's context, reductions over ranks, random state."""

import random
import sys
import zlib
from functools import partial
from typing import Any, NoReturn

import numpy
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_pref.errors import UsageError, UserError
from lit_pref.modules.sharding import dtype_in_transit, shard
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
        dtype_in_transit=dtype_in_transit(strategy),
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
