"""An estimate of the memory of one optimizer step, compared with that of the device."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.batch import PreferenceBatch
from lit_pref.check.probe import Probe
from lit_pref.check.report import Finding, Severity
from lit_pref.data.batching.collation import collate
from lit_pref.references.moving import MovingReference

TIGHT = 0.9
"""The share of the device's memory above which an estimate causes a warning: allocator and framework need the rest."""


@dataclass(frozen=True)
class Devices:
    """The number of devices of a run, from `trainer.devices` and `trainer.num_nodes`.

    >>> [Devices(given, 2).count(auto=4) for given in ("auto", -1, 3, "3", [0, 5], "0,")]
    [8, 8, 6, 6, 4, 2]
    """

    given: Any = 1
    nodes: int = 1

    def count(self, auto: int) -> int:
        """Devices on all nodes; `auto` is the number of devices of this machine."""
        given = auto if self.given in ("auto", -1, "-1") else self.given
        if isinstance(given, str) and "," in given:
            given = [part for part in given.split(",") if part.strip()]
        return (len(given) if isinstance(given, list) else int(given)) * self.nodes


def memory(probe: Probe, devices: Devices) -> Finding:
    """Estimate the bytes for weights, gradients, optimizer state and activations.

    The optimizer state per weight is measured in one step on a small tensor. Activations are measured as the tensors
    that autograd saves in a forward pass over two pairs, without the weights, and scaled to the tokens of the largest
    micro-batch. Temporary buffers of operations and fragmentation are not included.

    Args:
        probe: a probe whose models are built.
        devices: the run's devices, among which the pairs of a step are divided.
    """
    module = probe.module
    every = list(probe.scorer.parameters())
    trained = [p for p in every if p.requires_grad]
    weights = _bytes(every) + _bytes(probe.scorer.buffers())
    scorers = [
        scorer
        for reference in module.references
        for scorer in (reference.copies if isinstance(reference, MovingReference) else [reference.scorer])
    ]
    # A stored reference has no model; `AdapterOff` uses the policy's.
    references = sum(_bytes(own.parameters()) for own in scorers if own is not None and own is not probe.scorer)
    state = int(_state_per_byte(probe, trained) * _bytes(trained))
    world = devices.count(probe.module.trainer.accelerator.auto_device_count())
    tokens = largest_batch(probe, world)
    kept = int(_kept_per_token(probe) * tokens)
    parts = {"weights": weights, "gradients": _bytes(trained), "optimiser": state, "activations": kept}
    parts |= {"references": references}
    total, device = sum(parts.values()), device_memory(probe.device)
    severity: Severity = "warning" if device is not None and total > TIGHT * device else "ok"
    words = ", ".join(f"{name.replace('optimiser', 'optimizer')} {_gib(size)}" for name, size in parts.items() if size)
    words = f"one optimizer step needs about {_gib(total)} ({words}; estimated for {tokens} tokens in a micro-batch)"
    words += f" of the {_gib(device)} on {probe.device.type}" if device is not None else ""
    words += f", on each of {world} devices unless weights are sharded" if world > 1 else ""
    if severity == "warning":
        words += ": lower data.micro_batch or data.max_tokens, use policy.gradient_checkpointing, or shard the weights"
    further = {"device": device, "devices": world, "tokens": tokens}
    return Finding("memory", severity, words, numbers={**parts, "total": total, **further})


def largest_batch(probe: Probe, world: int) -> int:
    """The number of tokens in the largest possible micro-batch, which has the longest pairs, in the run's layout."""
    data, lengths = probe.data, probe.data.train_pairs.lengths.astype(int)
    if data.max_tokens is not None:
        return int(data.max_tokens)
    pairs = min(data.micro_batch or -(-data.global_batch // world), len(lengths))
    if (lists := data.train_pairs.lists) is not None:  # it then counts lists
        pairs = int(sum(sorted(lists.sizes, reverse=True)[:pairs]))
    extra_response = data.train_pairs.extra_response_lengths.astype(int)
    further = (extra_response > 0) * (lengths[:, 0] + extra_response)  # extra responses are scored in rows of their own
    if probe.module.batch_layout == "prefix_shared":
        return int(sum(sorted(lengths.sum(1) + further, reverse=True)[:pairs]))
    sides = 2 if lengths[:, 2].any() else 1
    return int(pairs * (sides * (lengths[:, 0] + lengths[:, 1:].max(1)).max() + further.max()))


def device_memory(device: torch.device) -> int | None:
    """The memory in bytes of a GPU, or of this machine or container for the CPU; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found)


def _state_per_byte(probe: Probe, trained: list[nn.Parameter]) -> float:
    """The number of bytes of optimizer state per byte of trained weights."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=trained[0].dtype, device=probe.device))
    weight.grad = torch.ones_like(weight)
    optimizer = probe.module.optimizer([weight])
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim]
    return _bytes(tensors) / _bytes([weight])


def _kept_per_token(probe: Probe) -> float:
    """The number of bytes that autograd saves per token in a forward pass of the policy."""
    module = probe.module
    tokenizer = module.spec.load_tokenizer()
    extra_response = "extra_response" in module.objective.requirements.sides
    batch = collate(
        probe.pairs[:2], tokenizer.eos_token_id, layout=module.batch_layout, extra_response=extra_response
    ).to(probe.device)
    own = {t.untyped_storage().data_ptr() for t in (*probe.scorer.parameters(), *probe.scorer.buffers())}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with module.trainer.precision_plugin.forward_context():
            scores = probe.scorer(batch)
        sides = (scores.chosen, scores.rejected, scores.extra_response)
        loss = sum(side.scores.sum() for side in sides if side is not None)
    del loss
    return sum(seen.values()) / _tokens(batch)


def _tokens(batch: PreferenceBatch) -> int:
    """The number of tokens in the rows, including padding."""
    return batch.rows.input_ids.numel() + (
        0 if batch.extra_response is None else batch.extra_response.rows.input_ids.numel()
    )


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _each_once(tensors))


def _each_once(tensors: Any) -> Iterator[Tensor]:
    return iter({id(t): t for t in tensors}.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
