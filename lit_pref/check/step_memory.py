"""The memory of an optimizer step, found by taking the step with tensors that have shapes and no data."""

import copy
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from lit_pref.batch import PreferenceBatch
from lit_pref.check.live_tensors import LiveTensors
from lit_pref.modules.base import PairModule
from lit_pref.modules.optimizers import build_optimizer
from lit_pref.references.reference import AdapterOff
from lit_pref.references.stored import Stored
from lit_pref.scores import TokenLogps, TokenRewards
from lit_pref.scoring.scorer import evaluating

PARTS = {
    "weights": "parameters and buffers of the trained model, each once however often it is used",
    "references": "weights of live references; stored references have none",
    "optimiser": "state of the optimizer after its first step, and the buffers of a step",
    "gradients": "gradients of the trained weights",
    "buckets": "with DDP: the copy of the gradients that is summed over devices",
    "casts": "weights in the precision of autocast, kept for a whole pass",
    "activations": "tensors that the forward pass of the largest micro-batch keeps for the backward pass",
    "attention": "masks, and what the attention kernels return",
    "head": "tiles of logits, and the gradients of hidden states",
    "backward": "gradients of activations, and activations that gradient checkpointing computes again",
    "heap": "on a CPU: freed memory between kept tensors, which the C library cannot reuse",
    "gathered": "with FSDP2: whole weights and gradients of a few blocks and of what is outside of blocks",
    "workspace": "on CUDA: memory in which cuBLAS multiplies",
    "context": "on CUDA: memory of the driver, which no allocator of torch counts",
}
"""The parts of `StepMemory`, with what each of them holds."""

HOLES, HOLES_CHECKPOINTING = 0.55, 0.28
"""The shares of the memory that a forward pass frees which glibc does not find again, fitted to measured steps."""
CUDA_WORKSPACE, CUDA_CONTEXT = 32 * 2**20, 512 * 2**20
"""On Hopper, by cuBLAS's documentation; the size of a context is a usual one. Neither is measured."""


@dataclass(frozen=True)
class StepMemory:
    """The memory of an optimizer step at its peak, as a sum of parts in bytes, by the names in `PARTS`.

    Its formula is a count: the step is taken with tensors that have shapes and no data, by the code that trains, and
    the bytes of all live tensors are added up after every operation. So any architecture, layout, objective and
    precision is counted as it is. What no count gives:

        heap      = 0.55 f on a CPU with glibc, 0.28 f with gradient checkpointing, f the bytes that the policy's
                    forward pass allocates and frees again: its freed tensors lie between kept ones;
                    0 if MALLOC_MMAP_THRESHOLD_ is at most 1 MiB: the C library then returns freed tensors at once
        workspace = 32 MiB and context = 512 MiB, on CUDA

    The step is that of one device; `Devices.memory` gives that of each of several.

    >>> StepMemory({"weights": 2, "activations": 3, "context": 5}).allocated
    5
    """

    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parts: what the device must have."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """All parts that `torch.cuda.max_memory_allocated` counts."""
        return self.total - self.parts.get("context", 0)

    @property
    def fixed(self) -> int:
        """The parts that do not depend on the micro-batch."""
        growing = ("activations", "attention", "head", "backward", "heap")
        return sum(size for name, size in self.parts.items() if name not in growing)


def step_memory(module: PairModule, batch: PreferenceBatch, accumulates: bool = False) -> StepMemory:
    """Predict the memory of an optimizer step of a module, without computing anything.

    Args:
        module: a module that is attached to its Trainer, with its scorer and its live references built.
        batch: the largest micro-batch, on the module's device.
        accumulates: the step has more than one micro-batch, so that gradients are kept while others are computed.
    """
    step = _Step(module, batch, accumulates)
    with step.mode, torch.compiler.set_stance("force_eager"), step.tensors:
        for _ in range(2):  # from the second one on, there are optimizer state and the gradients of the step before
            step.tensors.forget_peak()
            step.take()
    peak = {name: step.tensors.peak[name] for name in PARTS if step.tensors.peak[name]}
    if batch.rows.input_ids.device.type == "cuda":
        peak |= {"workspace": CUDA_WORKSPACE, "context": CUDA_CONTEXT}
    elif _keeps_freed_memory():
        share = HOLES_CHECKPOINTING if module.spec.gradient_checkpointing else HOLES
        peak["heap"] = int(share * step.freed)
    return StepMemory(peak)


def _keeps_freed_memory() -> bool:
    """Return whether the C library keeps the memory of freed tensors in the process."""
    given = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    return platform.libc_ver()[0] == "glibc" and not (given.isdigit() and int(given) <= 2**20)


class _Step:
    """An optimizer step of copies of the models that have shapes and no data."""

    def __init__(self, module: PairModule, batch: PreferenceBatch, accumulates: bool) -> None:
        self.module, self.accumulates = module, accumulates
        live = [reference for reference in module.references if not isinstance(reference, Stored)]
        copies = [copied for reference in live for copied in reference.copies]
        self.mode, memo = FakeTensorMode(), dict[int, Any]()
        compared = live[:1] if module.objective.requirements.compares else []
        # Texts are tokenized again here, because only a tensor with data can be moved to another layout.
        read = [batch if reference in compared else reference.as_read(batch) for reference in live]
        with FakeCopyMode(self.mode):
            self.scorer, self.batch, copies, scorers, read = copy.deepcopy(
                (module.scorer, batch, copies, [reference.scorer for reference in live], read), memo
            )
        for scorer in (self.scorer, *scorers):
            scorer.head_kernels = False  # a kernel reads memory, and these tensors have none
        self.references = list(zip(live, scorers, read, strict=True))
        self.tensors = LiveTensors(granularity=512 if batch.rows.input_ids.device.type == "cuda" else 1)
        self.tensors.count(_weights([self.scorer]), "weights")
        self.tensors.count(_weights(copies), "references")
        self._label(self.scorer)
        with self.mode:
            stand_in: Any = SimpleNamespace(scorer=self.scorer, optimizer=module.optimizer, trainer=module.trainer)
            self.optimizer = build_optimizer(stand_in)
        self.freed = 0

    def _label(self, scorer: Any) -> None:
        """Let the tensors of the model's body and the gradients of weights be counted as such."""
        model = scorer.model.get_base_model() if hasattr(scorer.model, "get_base_model") else scorer.model

        def enter(*_: Any) -> None:
            self.tensors.part = "activations" if self.tensors.part == "head" else self.tensors.part

        def leave(*_: Any) -> None:
            self.tensors.part = "head" if self.tensors.part == "activations" else self.tensors.part

        model.base_model.register_forward_pre_hook(enter)
        model.base_model.register_forward_hook(leave)
        for p in scorer.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: self.tensors.move(p.grad, "gradients"))

    def take(self) -> None:
        """Take the step as Lightning does, which keeps the gradients of a step until the backward pass of the next."""
        loss = self._loss()
        if not self.accumulates:
            self.optimizer.zero_grad()
        with self.tensors.of("backward"):
            loss.backward()
        with self.tensors.of("optimiser"):
            self.optimizer.step()

    def _loss(self) -> Tensor:
        context = self.module.trainer.precision_plugin.forward_context
        # The loss of an objective takes a few numbers for each pair, and some read them: here it is the sum of scores.
        needs = self.module.objective.requirements.statistics - {TokenLogps(), TokenRewards()}
        arguments: list[Any] = [needs]
        with context():
            for number, (reference, scorer, batch) in enumerate(self.references):
                compared = number == 0 and self.module.objective.requirements.compares
                with self.tensors.of("references"), torch.no_grad(), _frozen(reference, scorer):
                    if compared:
                        arguments.append(scorer.readout(batch))
                    else:
                        scorer(batch)
            before, live = self.tensors.allocated, self.tensors.live.total()
            with self.tensors.of("head"):
                scores = self.scorer(self.batch, *arguments)
                sides = [side for side in (scores.chosen, scores.rejected, scores.extra_response) if side is not None]
                loss = torch.stack([side.scores.sum() for side in sides]).sum()
            self.freed = self.tensors.allocated - before - (self.tensors.live.total() - live)
        return loss


@contextmanager
def _frozen(reference: Any, scorer: Any) -> Iterator[None]:
    with evaluating(scorer), scorer.model.disable_adapter() if isinstance(reference, AdapterOff) else nullcontext():
        yield


def _weights(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
