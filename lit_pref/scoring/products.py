"""Matrix products of an output head: the rounding of their operands, and sums in fp32 or wider."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

Summands = tuple[Tensor, ...]
"""Matrices whose sum stands for one operand."""


class HeadPrecision(StrEnum):
    """The rounding of operands in the multiplications of an output head; sums and log-softmax are fp32 or wider.

    - `fp32` rounds nothing: operands are fp32, or fp64 for an fp64 model. TF32 is off for these multiplications, also
      where `torch.set_float32_matmul_precision` allows it.
    - `bf16` rounds hidden states and weights to bf16, and in the backward pass the gradients of the logits. Hidden
      states and weights that are bf16 already lose nothing.
    - `split` replaces each fp32 operand by the sum of two bf16 matrices, its rounded value and the rounded rest. The
      product of two rests is left out. So one multiplication becomes two if one operand is fp32, and three if both are.
    - `auto` is `bf16` on a CUDA device if the model computes in bf16, under autocast or with bf16 hidden states.
      Everywhere else it is `fp32`. That includes models that compute in fp16, in which small gradients of logits would
      vanish.

    Errors against fp64, with fp32 hidden states and weights and logits of standard deviation 3 (and in proportion to
    it), measured on a CPU for 896 to 2048 hidden sizes and 32k to 152k ids: largest and root-mean-square error of a
    log-prob in nats, and relative error of the gradients of hidden states and weights.

    | | largest | typical | gradients |
    |---|---|---|---|
    | `bf16` | 2.3e-2 | 7e-3 | 2.6e-3 |
    | `split` | 4e-5 | 1.3e-5 | 5e-6 |
    | `fp32` | 4e-6 | 1.1e-6 | 6e-7 |

    Of SmolLM2-135M with fp32 weights, over 1440 tokens of text, `bf16` has 5e-2 and 1e-2, without bias: a sum over 90
    to 150 tokens has an error of 0.08. With bf16 hidden states and weights every precision gives log-probs with the
    error of `fp32`; `bf16` gives gradients of relative error 2.5e-3, of which 1.7e-3 are those of storing them in bf16.
    """

    AUTO = "auto"
    BF16 = "bf16"
    SPLIT = "split"
    FP32 = "fp32"

    def chosen(self, device: str, computes_in_bf16: bool) -> "HeadPrecision":
        """Return what `auto` stands for.

        Args:
            device: the type of the device.
            computes_in_bf16: whether the model computes in bf16.
        """
        if self is not HeadPrecision.AUTO:
            return self
        return HeadPrecision.BF16 if device == "cuda" and computes_in_bf16 else HeadPrecision.FP32

    def chosen_for(self, hidden: Tensor) -> "HeadPrecision":
        """Return what `auto` stands for, given hidden states; autocast must be as it was when they were computed."""
        device = hidden.device.type
        if self is not HeadPrecision.AUTO or device != "cuda":
            return self.chosen(device, False)
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        return self.chosen(device, hidden.dtype == torch.bfloat16 or (autocast and hidden.dtype != torch.float64))


@dataclass(frozen=True)
class Products:
    """Products of matrices that are rounded to a precision, multiplied exactly and summed in `dtype`.

    Products of bf16 values are exact in fp32 and in TF32. So where a device cannot multiply bf16 matrices with fp32
    sums, their upcast values are multiplied, with the same result up to the order of sums.

    Args:
        precision: `bf16`, `split` or `fp32`.
        dtype: fp32 or fp64.
        device: the device of the matrices.
    """

    precision: HeadPrecision
    dtype: torch.dtype
    device: torch.device

    def summands(self, matrix: Tensor) -> Summands:
        """Return the operand that stands for a matrix."""
        if self.precision is HeadPrecision.FP32:
            return (matrix.to(self.dtype),)
        rounded = matrix.bfloat16()
        if self.precision is HeadPrecision.BF16 or matrix.dtype == torch.bfloat16:
            return (self._ready(rounded),)
        return self._ready(rounded), self._ready(matrix.sub(rounded).bfloat16())

    def product(self, a: Summands, b: Summands, out: Tensor | None = None) -> Tensor:
        """Return `a b`, written to `out` if given."""
        if a[0].dtype == torch.bfloat16:
            options = {} if out is None else {"out": out}
            total = torch.mm(a[0], b[0], out_dtype=self.dtype, **options)
        else:
            total = torch.mm(a[0], b[0], out=out)
        for x, y in _cross(a, b):
            self._add(total, x, y)
        return total

    def add(self, total: Tensor, a: Summands, b: Summands) -> None:
        """Add `a b` to `total`."""
        for x, y in ((a[0], b[0]), *_cross(a, b)):
            self._add(total, x, y)

    def tile_dtype(self, summed: bool) -> torch.dtype:
        """Return the dtype of a tile that is only an operand: that of its part, unless it is also `summed` as it is."""
        rounds = self.precision is HeadPrecision.BF16 and self._native and not summed
        return torch.bfloat16 if rounds else self.dtype

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Context without autocast, in which no product rounds its operands on a CUDA device.

        TF32 is off for `fp32`, and on for upcast bf16 values.
        """
        with torch.autocast(self.device.type, enabled=False):
            rounds = self.precision is not HeadPrecision.FP32
            if self.device.type != "cuda" or self.dtype != torch.float32 or (rounds and self._native):
                yield
                return
            with tf32(allowed=rounds):
                yield

    @property
    def _native(self) -> bool:
        return self.dtype == torch.float32 and multiplies_bf16(self.device)

    def _ready(self, rounded: Tensor) -> Tensor:
        return rounded if self._native else rounded.to(self.dtype)

    def _add(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        if a.dtype != torch.bfloat16:
            total.addmm_(a, b)
        elif adds_bf16(self.device):
            torch.addmm(total, a, b, out_dtype=self.dtype, out=total)
        else:
            total += torch.mm(a, b, out_dtype=self.dtype)


def sliced(summands: Summands, rows: slice) -> Summands:
    """Return some rows of an operand, as views."""
    return tuple(matrix[rows] for matrix in summands)


def transposed(summands: Summands) -> Summands:
    """Return the transpose of an operand, as views."""
    return tuple(matrix.T for matrix in summands)


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bf16 matrices with fp32 sums and results, which is tried once.

    CUDA devices do so from torch 2.8 on.
    """
    if device.type != "cuda":
        return False
    ones = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    try:
        torch.mm(ones, ones, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


@cache
def adds_bf16(device: torch.device) -> bool:
    """Return whether a device adds products of bf16 matrices to an fp32 matrix in place, which is tried once."""
    if not multiplies_bf16(device):
        return False
    ones = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    total = ones.float()
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)
    except (TypeError, RuntimeError):
        return False
    return True


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context in which fp32 matrices are multiplied as TF32 on CUDA devices, or are not."""
    matmul = torch.backends.cuda.matmul
    value: str | bool
    name, value, before = "fp32_precision", "tf32" if allowed else "ieee", getattr(matmul, "fp32_precision", "none")
    # Where a user has set `fp32_precision`, which does not mix with the older setting, reading that one is an error.
    with suppress(RuntimeError):
        name, value, before = "allow_tf32", allowed, matmul.allow_tf32
    if before == value:
        yield
        return
    try:
        word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = None
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)
        if word == "medium":  # which `allow_tf32` would turn into "high"
            torch.set_float32_matmul_precision(word)


def _cross(a: Summands, b: Summands) -> list[tuple[Tensor, Tensor]]:
    """Return the products of a rest and a rounded value."""
    return [*((rest, b[0]) for rest in a[1:]), *((a[0], rest) for rest in b[1:])]
