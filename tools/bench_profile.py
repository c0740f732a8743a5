"""Profile of one of our steps: shares of its time, by torch.profiler, and its multiplications against the fewest.

Operators are timed on the clock, so only a quiet machine gives the step's time; the shares suffer less.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench_ours import Ours
from bench_steps import Loop
from torch import nn
from torch.autograd import Function
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from lit_pref.batch import Rows
from lit_pref.scoring import head

SHARES = ("GEMM", "attention", "element-wise", "head", "optimiser", "Python")
FACTORS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1, "aten::bmm": 0, "aten::baddbmm": 1}
"""Operators that multiply matrices, and the place of the first factor among their arguments."""
GEMM = tuple(FACTORS)
MARKS = {"attention": ("scaled_dot_product",), "optimiser": ("_fused_adamw", "aten::_foreach")}


def _functions(base: type = Function) -> list[type]:
    return [cls for sub in base.__subclasses__() for cls in (sub, *_functions(sub))]


# The autograd functions of lit_pref.scoring but those of attention.
HEAD = tuple(
    sorted(
        cls.__name__
        for cls in _functions()
        if cls.__module__.startswith(head.__name__.rpartition(".")[0])
        and not any(part in cls.__module__ for part in ("attention", "varlen", "gather"))
    )
)


class ProfiledLoop(Loop):
    """Profiles the step after the first `skipped` ones."""

    def __init__(self, skipped: int) -> None:
        super().__init__()
        self.skipped = skipped
        self.profiler = torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.seconds = 0.0
        self.least_gemms = 0

    def end_step(self, model: Any, loss: float) -> None:
        super().end_step(model, loss)
        if len(self.losses) == self.skipped:
            model.scorer.register_forward_pre_hook(self._count)
            self.profiler.start()
            self.seconds = time.perf_counter()
        elif len(self.losses) == self.skipped + 1:
            self.seconds = time.perf_counter() - self.seconds
            self.profiler.stop()

    def _count(self, scorer: Any, inputs: Any) -> None:
        if len(self.losses) == self.skipped:
            self.least_gemms = least_gemms(scorer.model, inputs[0].rows)


def least_gemms(model: Any, rows: Rows) -> int:
    """Return the multiply-adds of the fewest products of matrices in a step of full fine-tuning, without attention.

    Every prompt is read once, nothing is padded, and each weight is multiplied three times: forward, and backward for
    its own gradient and for that of its input. The head is applied to the response tokens only.

    Args:
        model: a Hugging Face causal LM.
        rows: the rows of the step's batch, in the prefix-shared layout.
    """
    weights = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    head = model.get_output_embeddings().weight.numel()
    return 3 * (weights * rows.input_ids.numel() + head * len(rows.predictors))


def gemms(events: Iterable[Any]) -> int:
    """Return the multiply-adds of the products of matrices among the operators of a profile with shapes."""
    total = 0
    for event in events:
        if event.name in FACTORS:
            a, b = event.input_shapes[FACTORS[event.name] :][:2]
            total += math.prod(a) * b[-1]
    return total


def profile(cell: Any, folder: Path) -> dict[str, Any]:
    """The shares of one step of the real `fit`, and the operators that take most of it."""
    skipped = 1
    cell = replace(cell, work=replace(cell.work, windows=skipped + 2))
    cell.work.write(folder)
    loop = ProfiledLoop(skipped)
    Ours().train(cell.work, folder, loop)
    shares, operators = Counter[str](), Counter[str]()
    for event in loop.profiler.events():
        if share := share_of(event):
            shares[share] += event.self_cpu_time_total / 1e6
            operators[event.name] += event.self_cpu_time_total / 1e6
    # What no operator accounts for: Python, autograd's bookkeeping, Lightning.
    shares["Python"] = loop.seconds - sum(shares.values())
    return {
        "work": asdict(cell.work),
        "numbers": {"step_s": loop.seconds, **{name: shares[name] / loop.seconds for name in SHARES}},
        "gemms_over_least": gemms(loop.profiler.events()) / loop.least_gemms,
        "operators": {name: seconds / loop.seconds for name, seconds in operators.most_common(12)},
    }


def share_of(event: Any, heads: Sequence[str] = HEAD) -> str | None:
    """Return the part of a step that an operator belongs to: head, attention or optimizer; None if it is Python.

    Args:
        event: an operator of a profile.
        heads: the names of the functions that make log-probs from hidden states.
    """
    own, names = event.name, [event.name]
    while event.cpu_parent is not None:
        event = event.cpu_parent
        names.append(event.name)
    for share, marks in {"head": heads, **MARKS}.items():
        if any(mark in name for mark in marks for name in names):
            return share
    if not own.startswith("aten::"):
        return None
    return "GEMM" if own in GEMM else "element-wise"
