"""The devices of a run, and the memory of an optimizer step on each of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor

from lit_pref.check.step_memory import StepMemory
from lit_pref.models.loading import blocks_of
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule
from lit_pref.modules.sharding import FSDP2, is_trained, refuse_fsdp1, refuse_settings
from lit_pref.scoring.scorer import Scorer


@dataclass(frozen=True)
class Devices:
    """The number of devices of a run and its strategy, from the settings of the Trainer.

    Args:
        given: `trainer.devices`.
        nodes: `trainer.num_nodes`.
        strategy: what `strategy_of` returns for `trainer.strategy`.

    >>> [Devices(given, 2).count(auto=4) for given in ("auto", -1, 3, "3", [0, 5], "0,")]
    [8, 8, 6, 6, 4, 2]
    """

    given: Any = 1
    nodes: int = 1
    strategy: Strategy | None = None

    def count(self, auto: int) -> int:
        """Devices on all nodes; `auto` is the number of devices of this machine."""
        given = auto if self.given in ("auto", -1, "-1") else self.given
        if isinstance(given, str) and "," in given:
            given = [part for part in given.split(",") if part.strip()]
        return (len(given) if isinstance(given, list) else int(given)) * self.nodes

    def refuse(self, trainer: Trainer, spec: ModelSpec) -> None:
        """Refuse settings with which a run would stop before it computes anything.

        Args:
            trainer: a Trainer of the run's precision and accelerator.
            spec: the spec of the trained model.

        Raises:
            UserError: there are such settings.
        """
        if isinstance(self.strategy, FSDP2):
            self.strategy.precision_plugin = trainer.precision_plugin
        refuse_settings(self.strategy, spec, self.count(trainer.accelerator.auto_device_count()))

    def memory(self, alone: StepMemory, module: PairModule, world: int) -> StepMemory:
        """Return the memory of a step on each device of a run.

        Args:
            alone: that of the same step on a single device.
            module: its module, attached to a Trainer of the run's precision.
            world: the number of devices, from `count`.

        Raises:
            UsageError: FSDP2 cannot divide so many devices as its settings ask.
        """
        if isinstance(self.strategy, ModelParallelStrategy):
            return StepMemory(_sharded(alone.parts, module, self.strategy, world))
        if not isinstance(self.strategy, DDPStrategy) or world == 1:
            return alone
        if self.strategy._ddp_kwargs.get("gradient_as_bucket_view"):
            return alone  # else each gradient is copied into a bucket, and the sum over devices is copied back
        trained = _bytes(p for p in module.scorer.parameters() if p.requires_grad)
        return StepMemory({**alone.parts, "buckets": trained})


def strategy_of(setting: Any) -> Strategy | None:
    """Return the strategy that `trainer.strategy` stands for; None if it is one whose memory is that of one device.

    `auto` is DDP, as on several devices.

    Args:
        setting: a name, or the class with its arguments of a resolved configuration.

    Raises:
        UserError: it is one that a run refuses.

    >>> type(strategy_of("fsdp2")).__name__, strategy_of("deepspeed")
    ('FSDP2', None)
    """
    refuse_fsdp1(setting)
    if isinstance(setting, Strategy):
        return setting
    kind: Any
    if isinstance(setting, str):
        name = "ddp" if setting == "auto" else setting.lower()
        known: dict[str, Any] = dict(StrategyRegistry).get(name, {})  # its own `get` builds the strategy
        kind, arguments = known.get("strategy"), known.get("init_params", {})
    else:
        module, _, name = setting.class_path.rpartition(".")
        kind = getattr(import_module(module), name)
        refuse_fsdp1(kind)
        arguments = {**(setting.get("init_args") or {}), **(setting.get("dict_kwargs") or {})}
    counted = isinstance(kind, type) and issubclass(kind, DDPStrategy | ModelParallelStrategy)
    return kind(**arguments) if counted and not issubclass(kind, DeepSpeedStrategy) else None


def _sharded(parts: dict[str, int], module: PairModule, strategy: ModelParallelStrategy, world: int) -> dict[str, int]:
    """Return the parts on one device with FSDP2; live references are divided like the trained model."""
    shards = world
    if isinstance(strategy, FSDP2):
        strategy.refuse_devices(world)
        shards = world // strategy.replicas
        strategy.precision_plugin = module.trainer.precision_plugin
    copies = [copied for reference in module.references for copied in reference.copies]
    divided = {name: parts.get(name, 0) // shards for name in ("weights", "optimiser", "gradients")}
    elsewhere = sum(_bytes(copied.parameters()) for copied in copies) * (shards - 1) // shards
    return {
        **parts,
        **divided,
        "references": parts.get("references", 0) - elsewhere,
        # Weights that travel in the dtype of autocast need no copies in it.
        "casts": parts.get("casts", 0) if _itemsize(module.scorer, strategy) is None else 0,
        "gathered": _gathered_in_step(module, strategy),
    }


def _gathered_in_step(module: PairModule, strategy: ModelParallelStrategy) -> int:
    """Return the bytes of gathered weights, and whole gradients, of the model of a step that has most of them.

    Models are called one after another, and the weights of references are freed after each call. If the policy's
    distributions are compared with a reference's, a copy of that reference's head is kept.
    """
    live = [reference.scorer for reference in module.references if reference.copies]
    sizes = [_gathered(scorer, strategy) for scorer in (module.scorer, *live)]
    if module.objective.requirements.compares and module.references[0].copies and not live[0].full_logits:
        head = live[0].model.get_output_embeddings()
        sizes[0] += _bytes(head.parameters(), _itemsize(live[0], strategy))
    return max(sizes)


def _itemsize(scorer: Any, strategy: ModelParallelStrategy) -> int | None:
    """Return the bytes of a number of a model's weights in transit; None if they travel in their own dtype."""
    transit = strategy.policy(scorer).param_dtype if isinstance(strategy, FSDP2) else None
    return None if transit is None else transit.itemsize


def _gathered(scorer: Any, strategy: ModelParallelStrategy) -> int:
    """Return the bytes of weights and gradients that each device holds whole while a model computes.

    Those are the block that computes and the blocks gathered ahead of it, or all blocks if the strategy keeps them
    until the backward pass; and the weights outside of blocks, with their gradients.

    Args:
        scorer: a trained model, or a reference.
        strategy: its sharding.
    """
    itemsize = _itemsize(scorer, strategy)
    blocks = [list(block.parameters()) for block in blocks_of(scorer)]
    inside = {id(p) for block in blocks for p in block}
    outside = [p for p in scorer.parameters() if id(p) not in inside]
    of_root = itemsize if isinstance(scorer, Scorer) else None  # heads of rewards are not rounded
    total = _bytes(outside, of_root) + _bytes((p for p in outside if p.requires_grad), of_root)
    sizes = [_bytes(block, itemsize) for block in blocks]
    reshard: bool | int = True
    ahead = 1
    if isinstance(strategy, FSDP2):
        ahead = max(1, strategy.prefetch)
        if is_trained(scorer):
            reshard = strategy.reshard_after_forward
    whole = sum(sizes) if reshard is False else min(sum(sizes), (1 + ahead) * max(sizes, default=0))
    if not isinstance(reshard, bool):
        whole += sum(sizes) // reshard
    gradients = (_bytes((p for p in block if p.requires_grad), itemsize) for block in blocks)
    return total + whole + max(gradients, default=0)


def _bytes(tensors: Iterable[Tensor], itemsize: int | None = None) -> int:
    return sum(t.numel() * (itemsize or t.element_size()) for t in tensors)
