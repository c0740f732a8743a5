"""The memory of the run's largest micro-batch, compared with that of the device."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lit_pref.batch import PreferenceBatch
from lit_pref.check.devices import Devices
from lit_pref.check.probe import Probe
from lit_pref.check.report import Finding, Severity
from lit_pref.check.step_memory import PARTS, StepMemory, step_memory
from lit_pref.data.batching.collation import UncastBatches
from lit_pref.data.batching.sampling import WindowSampler
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.data.prepared.lists import number_of_units
from lit_pref.errors import UserError, visible
from lit_pref.modules.base import PairModule
from lit_pref.printing import say

TIGHT = 0.9
"""The share of the device's memory above which a prediction causes a warning: fragmentation needs the rest."""
HOPELESS = 1.25
"""The share above which the run must be changed: predictions are within a fifth of what steps take."""
SEARCHED = 500_000
"""Pairs among whose micro-batches the largest is looked for, at least one epoch: later epochs have the same pairs."""
STEP = 256
"""Suggested numbers of tokens are multiples of this."""
AT_THE_PEAK = "the parts that are alive at the peak; what is freed before it or allocated after it is not in them"
"""The heading of the table of parts."""


def memory(probe: Probe, devices: Devices) -> Finding:
    """Predict the memory of an optimizer step with the run's largest micro-batch; see `StepMemory`.

    Args:
        probe: a probe whose models are built.
        devices: the run's devices, among which the pairs of a step are divided.

    Raises:
        UserError: the run would refuse its devices.
    """
    module = probe.module
    world = devices.count(module.trainer.accelerator.auto_device_count())
    batch, accumulates = largest_micro_batch(module, world)
    tokens = tokens_of(batch)
    say(
        f"predicting the memory of an optimizer step: one with the largest micro-batch ({tokens} tokens) is taken with "
        "tensors that have no data ..."
    )
    try:
        predicted = devices.memory(step_memory(module, batch, accumulates), module, world)
    except UserError:
        raise
    except Exception as error:  # a model or an optimizer of the user's own may read numbers, which are not there
        words = f"the memory of a step cannot be predicted: {type(error).__name__}: {visible(str(error))[:300]}"
        return Finding("memory", "note", words, numbers={"devices": world, "tokens": tokens})
    device = device_memory(probe.device)
    fits = None if device is None else tokens_that_fit(predicted, tokens, TIGHT * device)
    severity: Severity = "ok"
    if device is not None and predicted.total > TIGHT * device:
        severity = "stop" if predicted.total > HOPELESS * device else "warning"
    words = f"one optimizer step needs, at its peak, about {_gib(predicted.total)}"
    words += f" of the {_gib(device)} on {probe.device.type}" if device is not None else ""
    words += f", on each of {world} devices" if world > 1 else ""
    words += f"; the largest micro-batch has {tokens} tokens"
    longest = max(TokenBudget(1, *_sizes(module)).costs.tolist())
    words += f": {_remedy(module, predicted, fits, longest)}" if severity != "ok" else ""
    words += (
        f", and about {fits} would fit an empty device (data.max_tokens)"
        if severity == "ok" and fits is not None
        else ""
    )
    numbers = {name: predicted.parts.get(name, 0) for name in PARTS}
    further = {"total": predicted.total, "device": device, "devices": world, "tokens": tokens, "fits": fits}
    return Finding("memory", severity, words, numbers=numbers | further)


def memory_parts(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, size and meaning of each part of a prediction that takes memory, given the finding's numbers."""
    for name, meaning in PARTS.items():
        if size := numbers.get(name, 0):
            yield name.replace("optimiser", "optimizer"), _gib(size), meaning


def memory_table(numbers: Mapping[str, Any]) -> Iterator[str]:
    """Yield a heading and one line for each part of a prediction that takes memory, given the finding's numbers."""
    parts = list(memory_parts(numbers))
    if parts:
        yield f"{AT_THE_PEAK}:"
    yield from (f"{name:12} {size:>10}  {meaning}" for name, size, meaning in parts)


def tokens_that_fit(predicted: StepMemory, tokens: int, room: float) -> int:
    """Return about how many tokens a micro-batch can have, in proportion to those of a prediction.

    >>> tokens_that_fit(StepMemory({"weights": 1000, "activations": 4000}), tokens=2000, room=3000.0)
    768
    """
    count = int((room - predicted.fixed) / max(predicted.total - predicted.fixed, 1) * tokens)
    return max(count // STEP * STEP, 0)


def _remedy(module: PairModule, predicted: StepMemory, fits: int | None, longest: int) -> str:
    spec = module.spec
    further = [] if spec.gradient_checkpointing else ["set policy.gradient_checkpointing"]
    further += [] if spec.adapters is not None else ["train adapters (policy.lora)"]
    further.append("shard the weights over more devices (configs/fsdp.yaml)")
    if not fits:
        needed = f"weights, gradients and optimizer state alone need {_gib(predicted.fixed)}"
        return f"{needed}: {' or '.join(words for words in further if 'checkpointing' not in words)}"
    if fits < longest:
        tokens = f"about {fits} tokens fit, and the largest pair has {longest}"
        return f"{tokens}: lower data.max_length, or {' or '.join(further)}"
    return f"set data.max_tokens to {fits} or less, or {' or '.join(further)}"


def largest_micro_batch(module: PairModule, world: int = 1) -> tuple[PreferenceBatch, bool]:
    """Return the run's micro-batch with most tokens, of all ranks, and whether steps have more than one micro-batch.

    Args:
        module: a module that is attached to its Trainer, with prepared data.
        world: ranks among which the pairs of a step are divided.
    """
    data = module.data
    pairs, budget = data.train_pairs, TokenBudget(1, *_sizes(module))
    units = number_of_units(pairs)
    per_epoch = math.ceil(units / data.global_batch)
    epochs = max(1, min(math.ceil(module.total_steps / per_epoch), SEARCHED // units))
    limit = data.micro_batch_of(pairs, world)
    sampler = WindowSampler(units, data.seed, data.global_batch, limit, world, rank=0, epochs=epochs)
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches.append(max((b for ranks in sampler.rounds() for b in ranks), key=lambda b: budget.cost(b.indices)))
    largest = max(batches, key=lambda batch: budget.cost(batch.indices))
    tokenizer, requirements = module.spec.load_tokenizer(), module.objective.requirements
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    extra_response = "extra_response" in requirements.sides
    collated = UncastBatches(
        pairs, pad_id, module.batch_layout, requirements.token_functions, extra_response, pairs.lists
    )
    return collated[largest].batch.to(module.trainer.strategy.root_device), sampler.accumulation > 1


def _sizes(module: PairModule) -> tuple[Any, ...]:
    pairs = module.data.train_pairs
    return pairs.lengths, module.batch_layout, pairs.extra_response_lengths, pairs.lists


def tokens_of(batch: PreferenceBatch) -> int:
    """Return the number of tokens in the rows, including padding."""
    extra = 0 if batch.extra_response is None else batch.extra_response.rows.input_ids.numel()
    return batch.rows.input_ids.numel() + extra


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


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
