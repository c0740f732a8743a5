"""torch's attention kernel for sequences of different lengths, in every version that has it. Depends on torch only."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]


@dataclass(frozen=True)
class VarlenKernel:
    """`varlen_attn` of one version of torch as causal attention, with any scale and grouped heads where it can.

    Its arguments differ: torch 2.10 has `is_causal` and no scale, 2.11 has `window_size` and `scale`, 2.12 adds
    `enable_gqa`. The causal mask must be aligned at the last query and the last key of each sequence, which `agrees`
    tests on the device.

    Args:
        function: `torch.nn.attention.varlen.varlen_attn`, or a function with one of its signatures.
        causal: the argument that masks later keys.
        has_scale: whether it takes a scale.
        has_groups: whether it takes fewer heads of keys than of queries.
    """

    function: Callable[..., Any]
    causal: tuple[str, Any]
    has_scale: bool
    has_groups: bool

    @classmethod
    def of(cls, function: Callable[..., Any] | None) -> "VarlenKernel | None":
        """Return the kernel for a function's signature; None if there is no function, or none that can be causal."""
        if function is None:
            return None
        names = inspect.signature(function).parameters
        causal = {"window_size": (-1, 0), "is_causal": True}
        known = [(name, value) for name, value in causal.items() if name in names]
        return cls(function, known[0], "scale" in names, "enable_gqa" in names) if known else None

    def takes(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
        """Return whether the kernel supports these dtypes, sizes and scale, and computes them correctly here.

        Args:
            query: (1, heads, T, head size) on a CUDA device.
            key: (1, key heads, T, head size).
            value: (1, key heads, T, value size).
            scale: None is 1 / √head size.
        """
        size = query.shape[-1]
        fits = size == value.shape[-1] and size <= 256 and size % 8 == 0
        halved = query.dtype in (torch.float16, torch.bfloat16)
        if not (halved and fits and (self.has_scale or self._factor(scale, size) is not None)):
            return False
        if torch.cuda.get_device_capability(query.device) < (8, 0):
            return False
        return agrees(self, query.device, query.dtype, size, query.shape[1] // key.shape[1])

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, ends: "Ends", scale: float | None) -> Tensor:
        """Return the attention of each sequence of queries over its sequence of keys, (T_q, heads, size).

        Args:
            query: (T_q, heads, size).
            key: (T_k, key heads, size).
            value: (T_k, key heads, size).
            ends: the ends of the sequences.
            scale: None is 1 / √size; one that `takes` supports.
        """
        arguments: dict[str, Any] = dict([self.causal])
        if self.has_scale:
            arguments["scale"] = scale
        else:
            query = query * (self._factor(scale, query.shape[-1]) or 1.0)
        if self.has_groups:
            arguments["enable_gqa"] = query.shape[1] != key.shape[1]
        elif (group := query.shape[1] // key.shape[1]) > 1:
            key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        longest = (ends.longest_query, ends.longest_key)
        return self.function(query, key, value, ends.queries, ends.keys, *longest, **arguments)

    @staticmethod
    def _factor(scale: float | None, size: int) -> float | None:
        """The power of two that queries are multiplied by, exactly, where the kernel has no scale; None for others."""
        factor = 1.0 if scale is None else scale * math.sqrt(size)
        power = 2.0 ** round(math.log2(factor)) if factor > 0 else 1.0
        return power if math.isclose(factor, power, rel_tol=1e-12) else None


@dataclass(frozen=True)
class Ends:
    """The ends of sequences of queries and of their sequences of keys, as the kernel takes them."""

    queries: Tensor  # (sequences + 1,) int32, 0 first
    keys: Tensor  # (sequences + 1,) int32
    longest_query: int
    longest_key: int


KERNEL = VarlenKernel.of(varlen_attn)
"""The kernel of the installed torch, or None."""


@functools.cache
def agrees(kernel: VarlenKernel, device: torch.device, dtype: torch.dtype, size: int, group: int) -> bool:
    """Return whether the kernel's values and gradients are those of masked attention; warn if not.

    The test runs once for each device, dtype, head size and number of heads per key head, on sequences with fewer
    queries than keys: a mask that is aligned at the first tokens, or a wrong gradient, would not raise an error.
    """
    try:
        with _disable_current_modes():  # the first call may be under one whose tensors have no data
            worst = _difference(kernel, device, dtype, size, group)
        reason = None if worst < _TOLERANCE else f"differs from masked attention by {worst:.0e}"
    except (RuntimeError, TypeError, ValueError) as error:  # such as a kernel that this build or GPU does not have
        reason = f"fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    if reason is not None:
        warnings.warn(
            f"torch's attention for sequences of different lengths {reason} on {device} in {dtype}: prefix-shared rows "
            "use masked attention, which takes more time and memory",
            stacklevel=2,
        )
    return reason is None


_TOLERANCE = 0.05
"""Relative: bf16 rounds to 0.4 %, and a key too many or too few changes values and gradients by more than a tenth."""
_LENGTHS = ((5, 5), (3, 6), (1, 4), (2, 9))  # of queries and keys of each sequence


def _difference(kernel: VarlenKernel, device: torch.device, dtype: torch.dtype, size: int, group: int) -> float:
    """Return the largest relative difference of output and gradients from masked attention in fp32; NaN is infinite."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = ([length[side] for length in _LENGTHS] for side in (0, 1))
    shapes = [(sum(queries), 2 * group, size), *[(sum(keys), 2, size)] * 2, (sum(queries), 2 * group, size)]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float32, device="cpu") for s in shapes]
    # The first call may be in a validation, under autocast, or in a checkpointed block, whose hooks would recompute it.
    kept_as_is = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast, kept_as_is:
        q, k, v, upstream = (t.to(device, dtype) for t in drawn)
        inputs = [t.requires_grad_() for t in (q, k, v)]
        ends_q, ends_k = (torch.tensor([0, *each]).cumsum(0).to(device, torch.int32) for each in (queries, keys))
        output = kernel(q, k, v, Ends(ends_q, ends_k, max(queries), max(keys)), None)
        found = [output, *torch.autograd.grad(output, inputs, upstream)]
        wide = [t.detach().float().requires_grad_() for t in inputs]
        output = _masked(wide, queries, keys)
        expected = [output, *torch.autograd.grad(output, wide, upstream.float())]
        differences = [
            float((f.float() - e).detach().norm() / e.detach().norm()) for f, e in zip(found, expected, strict=True)
        ]
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def _masked(inputs: list[Tensor], queries: list[int], keys: list[int]) -> Tensor:
    outputs = []
    parts = (t.split(lengths) for t, lengths in zip(inputs, (queries, keys, keys), strict=True))
    for q, k, v in zip(*parts, strict=True):
        sees = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=sees)[0].transpose(0, 1))
    return torch.cat(outputs)
