"""FSDP2: which devices share a model, in which dtype its weights and gradients travel, and when."""

from collections.abc import Set
from functools import cached_property
from typing import Any, cast

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lit_pref.errors import UsageError
from lit_pref.models.loading import blocks_of
from lit_pref.models.spec import ModelSpec
from lit_pref.run_context import ROUNDED
from lit_pref.scoring.scorer import Scorer

IN_TRANSIT = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FSDP2(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over the devices of a run, a transformer block at a time.

    The optimizer updates the sharded weights in their own dtype, fp32 by default, whatever the dtypes in transit. To
    recompute the activations of each block as well, set `model.policy.gradient_checkpointing`.

    Args:
        replicas: whole copies of the model, each sharded over as many devices (HSDP): with one for each node, only
            gradients travel between nodes. 1 shards over all devices.
        parameters: dtype in which fp32 weights are gathered and multiplied: `bfloat16` or `float32`; null is bfloat16
            under `trainer.precision: bf16-mixed`, and else float32. Weights of another dtype are gathered in theirs.
        gradients: dtype in which gradients are summed over devices, `bfloat16` or `float32`; null is that of the
            parameters. Micro-batches of a step are summed in the dtype of the weights.
        reshard_after_forward: true frees the gathered weights of a block after its forward pass and gathers them again
            in the backward pass; false keeps them, which takes memory; a number keeps them sharded over so many
            devices.
        prefetch: the number of blocks whose weights are gathered ahead, in both passes; 0 leaves it to torch.
        save_distributed_checkpoint: true saves a folder, to which each process writes its shards; false one file.

    Raises:
        UsageError: an argument is out of range.

    >>> FSDP2(replicas=2, gradients="float32").describe()
    'FSDP2(replicas=2, gradients=float32)'
    """

    def __init__(
        self,
        replicas: int = 1,
        parameters: str | None = None,
        gradients: str | None = None,
        reshard_after_forward: bool | int = True,
        prefetch: int = 0,
        save_distributed_checkpoint: bool = True,
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        for name, given in (("parameters", parameters), ("gradients", gradients)):
            if given is not None and given not in IN_TRANSIT:
                raise UsageError(f"FSDP2: {name} is '{given}'; use {' or '.join(IN_TRANSIT)}, or null")
        for name, number, least in (("replicas", replicas, 1), ("prefetch", prefetch, 0)):
            if number < least:
                raise UsageError(f"FSDP2: {name} is {number}; it must be at least {least}")
        self.replicas, self.parameters, self.gradients = replicas, parameters, gradients
        self.reshard_after_forward, self.prefetch = reshard_after_forward, prefetch

    def describe(self) -> str:
        """Return the settings that differ from the defaults, as a call."""
        settings = {"replicas": 1, "parameters": None, "gradients": None, "reshard_after_forward": True, "prefetch": 0}
        given = [f"{k}={getattr(self, k)}" for k, default in settings.items() if getattr(self, k) != default]
        return f"FSDP2({', '.join(given)})"

    def in_words(self, dtype: str, devices: int) -> str:
        """Return a line on the copies of the model, the dtypes in transit, and the other settings.

        Args:
            dtype: dtype of the weights as they are built.
            devices: all devices of the run, which the copies divide.
        """
        dtype = ROUNDED.get(str(self.precision_plugin.precision), dtype)
        gathered = (dtype_in_transit(self) if dtype == "float32" else None) or dtype
        reduced = self.gradients or gathered
        copies = f"{self.replicas} copies of the model, each over" if self.replicas > 1 else "the model over"
        shards, one_file = devices // self.replicas, not self._save_distributed_checkpoint
        without = " (without effect, because a copy is whole on its device)" if shards == 1 else ""
        return (
            f"{copies} {shards} device{'s' * (shards > 1)}; weights are gathered in {gathered}, gradients summed over "
            f"devices in {reduced}, weights and optimizer state kept in {dtype}; reshard_after_forward "
            f"{str(self.reshard_after_forward).lower()} and prefetch {self.prefetch}{without}, "
            f"save_distributed_checkpoint {'false' if one_file else 'true'}"
        )

    def setup_environment(self) -> None:
        # Runs of this package were refused before (`refuse_settings`); a Trainer of the user's own was not.
        devices = self.num_nodes * self.num_processes
        self.refuse_devices(devices)
        self._data_parallel_size = devices
        super().setup_environment()

    def refuse_devices(self, devices: int) -> None:
        """Refuse a number of devices that cannot be divided as the settings ask.

        Raises:
            UsageError: it cannot.
        """
        shards, left = divmod(devices, self.replicas)
        if left:
            raise UsageError(
                f"FSDP2: replicas is {self.replicas}, which does not divide the {devices} "
                f"device{'s' * (devices > 1)} of this run: set trainer.devices, or leave replicas out"
            )
        kept = self.reshard_after_forward
        if not isinstance(kept, bool) and (not 1 < kept < shards or shards % kept):
            raise UsageError(
                f"FSDP2: reshard_after_forward is {kept}: a number must divide the {shards} devices that share a copy "
                "of the model, and lie between 1 and it; use true or false"
            )

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The devices over which models are sharded: all of them, or replicas x shards."""
        whole = self.device_mesh["data_parallel"]
        if self.replicas == 1:
            return whole
        shape = (self.replicas, whole.size() // self.replicas)
        return init_device_mesh(whole.device_type, shape, mesh_dim_names=("replicas", "shards"))

    @property
    def parameters_in_transit(self) -> torch.dtype | None:
        """The dtype to which fp32 weights are cast before they are gathered; None if they are not cast."""
        if self.parameters is None:
            return torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        dtype = IN_TRANSIT[self.parameters]
        return None if dtype == torch.float32 else dtype

    def policy(self, model: nn.Module) -> MixedPrecisionPolicy:
        """Return the dtypes in transit of a model's blocks.

        Raises:
            UsageError: the model is trained, and has weights that cannot be gathered in the dtype of `parameters`.
        """
        rounded = ROUNDED.get(str(self.precision_plugin.precision))
        gradients = None if self.gradients is None else IN_TRANSIT[self.gradients]
        if {p.dtype for p in model.parameters()} == {torch.float32} and (rounded is None or not is_trained(model)):
            return MixedPrecisionPolicy(param_dtype=self.parameters_in_transit, reduce_dtype=gradients)
        if is_trained(model):
            self.refuse_dtypes({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        return MixedPrecisionPolicy(reduce_dtype=gradients)

    def refuse_dtypes(self, built: Set[str]) -> None:
        """Refuse weights that are trained and cannot be gathered in the dtype of `parameters`.

        Args:
            built: their dtypes before the precision of the run rounds them.

        Raises:
            UsageError: they cannot.
        """
        kept = {ROUNDED.get(str(self.precision_plugin.precision), dtype) for dtype in built}
        if self.parameters is not None and kept not in ({"float32"}, {self.parameters}):
            raise UsageError(
                f"FSDP2: parameters is {self.parameters}, and the weights are kept in {' and '.join(sorted(kept))} "
                "(model.policy.dtype, trainer.precision) and can only be gathered as they are: leave parameters out, "
                "or keep all weights in float32"
            )


def dtype_in_transit(strategy: Strategy) -> str | None:
    """Return the dtype to which a strategy casts fp32 weights before they are gathered; None if it casts none."""
    cast = strategy.parameters_in_transit if isinstance(strategy, FSDP2) else None
    return None if cast is None else str(cast).removeprefix("torch.")


StrategyRegistry.register("fsdp2", FSDP2, description="FSDP2 over all devices")


def refuse_settings(strategy: Any, spec: ModelSpec, devices: int) -> None:
    """Refuse settings of FSDP2 that do not suit the devices or the trained model, before anything is computed.

    Args:
        strategy: the strategy of a run, with its precision; others than FSDP2 are not looked at.
        spec: the spec of the trained model.
        devices: all devices of the run.

    Raises:
        UsageError: they do not.
    """
    if isinstance(strategy, FSDP2):
        strategy.refuse_devices(devices)
        if strategy.parameters is not None:
            strategy.refuse_dtypes(trained_dtypes(spec))


def trained_dtypes(spec: ModelSpec) -> set[str]:
    """Return the dtypes of a trained model's weights as they are built, known from its spec."""
    # peft keeps adapters, and a reward model its head, in fp32 if the weights are narrower.
    wide = spec.dtype in ("bfloat16", "float16") and (spec.outputs is not None or spec.adapters is not None)
    return {spec.dtype, "float32"} if wide else {spec.dtype}


def shard(scorer: nn.Module, strategy: ModelParallelStrategy) -> None:
    """Shard `scorer` with FSDP2: each transformer block separately, the rest (embeddings, norm, head) with the root.

    Raises:
        UsageError: the strategy has tensor parallelism.
    """
    if strategy.device_mesh["tensor_parallel"].size() != 1:
        raise UsageError(
            "ModelParallelStrategy: tensor parallelism is not supported; use trainer.strategy fsdp2, or set "
            "trainer.strategy.data_parallel_size to the number of devices and trainer.strategy.tensor_parallel_size "
            "to 1"
        )
    trained = is_trained(scorer)
    # A model that takes no gradient, a reference, has no backward pass for which its weights could be kept. By default
    # torch keeps those of a root after its forward pass, and only a backward pass would free them.
    of_root: dict[str, Any] = {} if trained else {"reshard_after_forward": True}
    if isinstance(scorer, Scorer):
        scorer.frees_weights = not trained
    if not isinstance(strategy, FSDP2):
        for module in blocks_of(scorer):
            fully_shard(module, mesh=strategy.device_mesh["data_parallel"])
        fully_shard(scorer, mesh=strategy.device_mesh["data_parallel"], **of_root)
        return
    mesh, policy, blocks = strategy.mesh, strategy.policy(scorer), blocks_of(scorer)
    reshard = strategy.reshard_after_forward if trained else True
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    whole = MixedPrecisionPolicy(reduce_dtype=policy.reduce_dtype)
    if isinstance(scorer, Scorer) and scorer.value is not None:
        fully_shard(scorer.value, mesh=mesh, mp_policy=whole)
    # Values of prompts and rewards are computed in fp32, so their heads are not rounded.
    dtypes = policy if isinstance(scorer, Scorer) else whole
    fully_shard(scorer, mesh=mesh, mp_policy=dtypes, **of_root)
    _prefetch(cast(list[FSDPModule], blocks), strategy.prefetch)


def is_trained(model: nn.Module) -> bool:
    """Return whether a model has weights that take a gradient."""
    return any(parameter.requires_grad for parameter in model.parameters())


def _prefetch(blocks: list[FSDPModule], ahead: int) -> None:
    """Gather the weights of so many blocks ahead, in the order of the forward and of the backward pass."""
    if not ahead:
        return
    for k, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[k + 1 : k + 1 + ahead])
        block.set_modules_to_backward_prefetch(blocks[max(0, k - ahead) : k][::-1])


def refuse_fsdp1(strategy: Any) -> None:
    """Refuse FSDP1, with a message on how to use FSDP2.

    Raises:
        UsageError: `strategy` is FSDP1, by name, as a class or as an object.
    """
    name, kind = str(strategy).lower(), strategy if isinstance(strategy, type) else type(strategy)
    if issubclass(kind, FSDPStrategy) or (name.startswith("fsdp") and name != "fsdp2"):
        raise UsageError(
            "trainer.strategy fsdp (FSDP1) is not supported; use FSDP2, `trainer.strategy: fsdp2`, which also shards "
            "weights, gradients and optimizer state; configs/fsdp.yaml has its settings"
        )
