"""The memory of one optimiser step, and what the device has."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_pref.batch import PreferenceBatch
from lit_pref.commands.check.findings import Finding, Severity
from lit_pref.data.batching.collation import collate

if TYPE_CHECKING:
    from lit_pref.commands.check.probes import Probe

TIGHT = 0.9
"""The share of a device from which an estimate is too near to its end: allocator and framework need some too."""


@dataclass(frozen=True)
class Devices:
    """`trainer.devices` and `trainer.num_nodes` of a run.

    >>> [Devices(given, 2).count(auto=4) for given in ("auto", -1, 3, "3", [0, 5], "0,")]
    [8, 8, 6, 6, 4, 2]
    """

    given: Any = 1
    nodes: int = 1

    def count(self, auto: int) -> int:
        """Over all nodes; `auto` are those of this machine."""
        given = auto if self.given in ("auto", -1, "-1") else self.given
        if isinstance(given, str) and "," in given:
            given = [part for part in given.split(",") if part.strip()]
        return (len(given) if isinstance(given, list) else int(given)) * self.nodes


def memory(probe: "Probe", devices: Devices) -> Finding:
    """Weights + gradients + the optimiser's state + what a forward pass keeps for the backward pass, bytes.

    The state is measured: one step of the run's optimiser on a small tensor says how many bytes it keeps for each
    weight. What is kept is measured too: everything that autograd saves in one forward pass over two of the pairs, less
    the weights, for each token; times the tokens of the largest micro-batch. Left out: what an operation needs while it
    runs, and what the allocator wastes.

    Args:
        probe: with its models.
        devices: of the run, which divide a step's pairs.
    """
    module = probe.module
    every = list(probe.scorer.parameters())
    trained = [p for p in every if p.requires_grad]
    weights = _bytes(every) + _bytes(probe.scorer.buffers())
    scorers = [reference.scorer for reference in module.references]
    # A stored reference has none, and that with the adapter off has the policy's.
    references = sum(_bytes(own.parameters()) for own in scorers if own is not None and own is not probe.scorer)
    state = int(_state_per_byte(probe, trained) * _bytes(trained))
    world = devices.count(probe.module.trainer.accelerator.auto_device_count())
    tokens = largest_batch(probe, world)
    kept = int(_kept_per_token(probe) * tokens)
    parts = {"weights": weights, "gradients": _bytes(trained), "optimiser": state, "activations": kept}
    parts |= {"references": references}
    total, device = sum(parts.values()), device_memory(probe.device)
    severity: Severity = "warning" if device is not None and total > TIGHT * device else "ok"
    words = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    words = f"one step needs about {_gib(total)} ({words}; measured on two pairs, for {tokens} tokens in a micro-batch)"
    words += f" of {_gib(device)} on {probe.device.type}" if device is not None else ""
    words += f", on each of {world} devices where weights are not sharded" if world > 1 else ""
    if severity == "warning":
        words += ": lower data.micro_batch or data.max_tokens, set policy.gradient_checkpointing, or shard"
    further = {"device": device, "devices": world, "tokens": tokens}
    return Finding("memory", severity, words, numbers={**parts, "total": total, **further})


def largest_batch(probe: "Probe", world: int) -> int:
    """Tokens of the largest micro-batch that the run can meet: of its longest pairs, in its layout."""
    data, lengths = probe.data, probe.data.train_pairs.lengths.astype(int)
    if data.max_tokens is not None:
        return int(data.max_tokens)
    pairs = min(data.micro_batch or -(-data.global_batch // world), len(lengths))
    extra_response = data.train_pairs.extra_response_lengths.astype(int)
    further = (extra_response > 0) * (lengths[:, 0] + extra_response)  # read apart, and kept as long
    if probe.module.batch_layout == "prefix_shared":
        return int(sum(sorted(lengths.sum(1) + further, reverse=True)[:pairs]))
    sides = 2 if lengths[:, 2].any() else 1
    return int(pairs * (sides * (lengths[:, 0] + lengths[:, 1:].max(1)).max() + further.max()))


def device_memory(device: torch.device) -> int | None:
    """Bytes that the device has: of a GPU, or of this machine or the container that this runs in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found)


def _state_per_byte(probe: "Probe", trained: list[nn.Parameter]) -> float:
    """Bytes that the optimiser keeps for each byte of what it trains."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=trained[0].dtype, device=probe.device))
    weight.grad = torch.ones_like(weight)
    optimizer = probe.module.optimizer([weight])
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim]
    return _bytes(tensors) / _bytes([weight])


def _kept_per_token(probe: "Probe") -> float:
    """Bytes that autograd keeps for each token of a forward pass of the policy."""
    module = probe.module
    tokenizer = module.policy.load_tokenizer()
    extra_response = "extra_response" in module.objective.sides
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
    """Of the rows, with their padding."""
    return batch.rows.input_ids.numel() + (
        0 if batch.extra_response is None else batch.extra_response.rows.input_ids.numel()
    )


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _each_once(tensors))


def _each_once(tensors: Any) -> Iterator[Tensor]:
    return iter({id(t): t for t in tensors}.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
