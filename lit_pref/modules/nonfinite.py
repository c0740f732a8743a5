"""Stops a run whose loss or gradient is not finite, before the weights change or anything of that step is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from lit_pref.batch import PairData
from lit_pref.errors import Diverged
from lit_pref.modules.distributed import gather_objects, refuse, sum_over_ranks

NOT_FINITE = "is not finite at step"
"""Words of the sentence by which the end of another process is known to be a divergence."""

NAMED = 8
"""Pairs that a sentence names at most."""

REMEDY = (
    "a backward pass overflows or has a fault: try model.policy.attention eager, trainer.precision 32-true or "
    "model.policy.compile false, or lower the learning rate"
)

Seen = list[tuple[Tensor, list[str]]]
"""For each micro-batch of an optimizer step, which losses are not finite, (B,), and the names of the pairs."""


class NonfiniteGuard:
    """Stops a run at a loss or gradient that is not finite, before it changes a trained weight or anything saved.

    On a CPU, `check` looks at them before the step. On a GPU a look would be a wait for all the work that the
    device still has. There `check` gives the optimizer a flag on the device, with which its fused kernel leaves weights
    and state as they are, and the flag is read where it has arrived by itself: by the `check` of the next step. Before
    anything of the step is saved, logged or evaluated, `settle` reads it. Other optimizers than the fused ones of torch
    have no such switch, and the loss scale of fp16 is read in every step anyway: with these, `check` waits.

    A step that is switched off so leaves the weights and the state of the optimizer and the objective as they are. A
    moving reference may move after it, towards weights that did not change; nothing of it is saved or logged.

    Losses are finite and gradients are not where a backward pass overflows or has a fault. The gradients are those
    before clipping. Under the loss scale of fp16 they are not looked at: some are infinite now and then, and torch
    skips these steps.
    """

    deferred: bool | None = None
    """Whether a check does not wait, if the optimizer has a switch; None: on a GPU."""

    def __init__(self) -> None:
        self._seen: Seen = []
        self._unread: _Unread | None = None

    def add(self, losses: Tensor, pairs: PairData) -> None:
        """Remember which losses of a micro-batch are not finite."""
        self._seen.append((~torch.isfinite(losses.detach()) & pairs.is_real, pairs.names))

    def check(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Check the losses and gradients of an optimizer step, on all ranks, before the weights change.

        A rank that stopped alone would leave the others waiting for its gradients.

        Raises:
            UserError: a loss or gradient is not finite, of this step or, where the check does not wait, of the one
                before; see `refuse`.
        """
        self.settle(trainer)
        seen, self._seen = self._seen, []
        bad = torch.cat([bad for bad, _ in seen]).sum().double()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            bad = bad + _count_nonfinite(optimizer)
        bad = sum_over_ranks(trainer, bad)
        deferred = bad.device.type == "cuda" if self.deferred is None else self.deferred
        if deferred and _has_switch(trainer, optimizer):
            self._unread = _Unread(trainer.global_step, seen, (bad > 0).float())
            optimizer.grad_scale, optimizer.found_inf = None, self._unread.flag  # type: ignore[attr-defined]
        elif bad:
            _refuse_step(trainer, trainer.global_step, seen)

    def settle(self, trainer: Trainer) -> None:
        """Read the flag of the last step, if that was not done; every rank must call it equally often.

        Raises:
            UserError: a loss or gradient of that step was not finite; see `refuse`.
        """
        unread, self._unread = self._unread, None
        if unread is not None and unread.is_bad():
            _refuse_step(trainer, unread.step, unread.seen)

    @contextmanager
    def holding(self, state: nn.Module) -> Iterator[None]:
        """Context in which a module's buffers keep their values if the last step was switched off."""
        if self._unread is None:
            yield
            return
        before = {name: (b, b._version, b.clone()) for name, b in state.named_buffers()}
        yield
        for name, buffer in state.named_buffers():
            same, version, value = before[name]
            if buffer is not same or buffer._version != version:
                # Not a new version of the buffer: if the step counts, its value is that of the old one.
                buffer.data.copy_(torch.where(self._unread.flag > 0, value, buffer))


class _Unread:
    """The check of an optimizer step whose result is still on its way from the device."""

    def __init__(self, step: int, seen: Seen, flag: Tensor) -> None:
        self.step, self.seen, self.flag = step, seen, flag
        self._copy, self._arrived = flag, None
        if flag.device.type == "cuda":
            self._copy = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def is_bad(self) -> bool:
        """Whether a number of any rank was not finite; waits until the device has come to the end of that step."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._copy)


def _has_switch(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernel can be told on the device to change nothing, as for a gradient of fp16."""
    fused = isinstance(optimizer, Adam | AdamW | SGD | Adagrad) and all(g.get("fused") for g in optimizer.param_groups)
    return fused and getattr(trainer.precision_plugin, "scaler", None) is None


def _count_nonfinite(optimizer: Optimizer) -> Tensor | int:
    """The number of this rank's gradients, or shards of them, whose norm in fp32 or wider is not finite."""
    found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    by_dtype: dict[torch.dtype, list[Tensor]] = {}  # torch computes the norms of one dtype together
    for gradient in (g.to_local() if isinstance(g, DTensor) else g for g in found):
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    norms = [
        norm
        for dtype, gradients in by_dtype.items()
        for norm in torch._foreach_norm(gradients, 2, dtype=torch.promote_types(dtype, torch.float32))
    ]
    return (~torch.stack(norms).isfinite()).sum() if norms else 0


def _refuse_step(trainer: Trainer, step: int, seen: Seen) -> NoReturn:
    own = [name for bad, names in seen for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    ranks = gather_objects(trainer, (own, [name for _, names in seen for name in names][:NAMED]))
    if pairs := [name for own, _ in ranks for name in own]:
        refuse_nonfinite(trainer, pairs, step)
    some = "; ".join([name for _, names in ranks for name in names][:NAMED])
    refuse(
        trainer,
        f"the gradient {NOT_FINITE} {step}, though every loss is; pairs of this step: {some}; {REMEDY}",
        Diverged,
    )


def refuse_nonfinite(trainer: Trainer, pairs: list[str], step: int) -> NoReturn:
    """Stop all ranks because the losses of these pairs are not finite; every rank calls it with the pairs of all ranks.

    Args:
        trainer: the run's Trainer.
        pairs: the names of the pairs.
        step: the optimizer step of the losses.

    Raises:
        Diverged: see `refuse`.
    """
    remedy = "lower the learning rate or beta, clip gradients (trainer.gradient_clip_val), or look at them"
    refuse(
        trainer, f"the loss of {len(pairs)} pair(s) {NOT_FINITE} {step}: {'; '.join(pairs[:NAMED])}; {remedy}", Diverged
    )
